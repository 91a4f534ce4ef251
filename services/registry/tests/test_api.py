"""The HTTP surface: what it answers, and how it refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from modelworks.events import AccessDenied, Envelope, RefMoved, RepositoryCreated, RevisionCommitted, UploadRefused
from modelworks.kit.http import describe
from modelworks.registry.settings import RegistrySettings

from .conftest import ROOT, Hub, client_of

M = "acme/magika"
Eventually = Callable[..., Any]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def refused(answer: httpx.Response, status: int, code: str, *words: str) -> Mapping[str, Any]:
    """The problem document of a refusal."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: Mapping[str, Any] = answer.json()
    assert problem["code"] == code
    for word in words:
        assert word in problem["detail"]
    return problem


# --- repositories -------------------------------------------------------------------------------------------


async def test_a_new_repository_is_shown_and_announced(hub: Hub, heard: list[Envelope], eventually: Eventually) -> None:
    made = await hub.create(M, description="file types")

    answer = await hub.get(M)
    assert answer.json() == made
    assert {**made, "created_at": "", "updated_at": ""} == {
        "name": M, "kind": "model", "private": False, "owner": "tester", "description": "file types",
        "created_at": "", "updated_at": "", "default_branch": "main", "head": None, "tags": [], "library": None,
        "task": None, "license": None, "card_error": None,
    }  # fmt: skip
    await eventually(lambda: heard)
    assert heard[0].event == RepositoryCreated(repository=M, kind="model", private=False)
    assert heard[0].actor == "tester"


@pytest.mark.parametrize("name", [M, "ACME/Magika"])
async def test_a_taken_name_is_a_conflict_in_any_case(hub: Hub, name: str) -> None:
    await hub.create(M)

    answer = await hub.http.post(ROOT, json={"name": name})

    refused(answer, 409, "conflict", name)


@pytest.mark.parametrize(
    "body",
    [{}, {"name": "x"}, {"name": "../etc"}, {"name": "a/b/c"}, {"name": "a/" + "x" * 10_000}, {"name": "a/b", "kind": "zip"},
     {"name": "a/b", "privat": True}, {"name": "a/b", "private": "perhaps"}, {"name": 5}, [], "x",
     {"name": "a/b", "description": "x" * 2001}],
)  # fmt: skip
async def test_a_repository_that_cannot_be_is_refused(hub: Hub, body: Any) -> None:
    refused(await hub.http.post(ROOT, json=body), 400, "invalid-input")


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"\xff\xfe", b"[" * 100_000, b'{"name": "' + b"x" * 100_000, b'{"name": "a/\\ud800"}'],
    ids=["cut", "empty", "not text", "deep", "large", "half a pair"],
)
async def test_a_body_that_is_no_json_is_refused(hub: Hub, content: bytes) -> None:
    answer = await hub.http.post(ROOT, content=content, headers={"content-type": "application/json"})

    assert answer.status_code == 400


@pytest.mark.parametrize("path", ["acme/none", "Acme/Magika", "acme/" + "x" * 500, "a%00b/c", "%2e%2e/x"])
async def test_an_unknown_repository_is_not_found(hub: Hub, path: str) -> None:
    await hub.create(M)

    for suffix in ("", "/refs", "/commits", "/revisions/main", "/files/README.md", f"/blobs/{'0' * 64}"):
        refused(await hub.get(path + suffix), 404, "not-found")


# --- commits and files --------------------------------------------------------------------------------------


async def test_a_file_comes_back_as_it_was_committed(hub: Hub) -> None:
    await hub.create()
    data = b"weights" * 1000

    revision = await hub.committed({"weights/model.bin": data}, expected=None)

    answer = await hub.get(f"{M}/files/weights/model.bin")
    assert answer.status_code == 200
    assert answer.content == data
    assert answer.headers["etag"] == f'"{sha(data)}"'
    assert answer.headers["x-modelworks-revision"] == revision
    assert answer.headers["content-length"] == str(len(data))
    assert answer.headers["content-type"] == "application/octet-stream"


async def test_a_revision_shows_its_tree_in_path_order(hub: Hub) -> None:
    await hub.create()
    await hub.committed({"b.bin": b"2", "a/x.txt": b"1", "README.md": b"3"})

    view = (await hub.get(f"{M}/revisions/main")).json()

    assert view["tree"] == [
        {"path": "README.md", "size_bytes": 1, "sha256": sha(b"3")},
        {"path": "a/x.txt", "size_bytes": 1, "sha256": sha(b"1")},
        {"path": "b.bin", "size_bytes": 1, "sha256": sha(b"2"), "scan_state": "unscanned"},
    ]
    assert (view["repository"], view["message"], view["author"], view["parents"]) == (M, "change", "tester", [])
    assert "lineage" not in view


async def test_a_commit_is_answered_announced_and_logged(
    hub: Hub, heard: list[Envelope], eventually: Eventually
) -> None:
    await hub.create()
    first = await hub.committed({"a": b"1"})

    answer = await hub.commit({"a": b"2", "b": b"1"}, expected=first)

    body = answer.json()
    assert (body["parents"], body["branch"], body["created"], body["generation"]) == ([first], "main", True, 2)
    log = (await hub.get(f"{M}/commits")).json()
    assert [item["revision"] for item in log["items"]] == [body["revision"], first]
    assert log["cursor"] is None
    assert (await hub.get(M)).json()["head"] == body["revision"]
    await eventually(lambda: len(heard) == 5)
    assert [type(envelope.event) for envelope in heard] == [
        RepositoryCreated, RevisionCommitted, RefMoved, RevisionCommitted, RefMoved,
    ]  # fmt: skip
    committed = heard[3].event
    assert isinstance(committed, RevisionCommitted)
    assert [(change.path, change.change) for change in committed.changes] == [("a", "modified"), ("b", "added")]


async def test_a_commit_on_a_moved_branch_is_answered_412_naming_both(hub: Hub) -> None:
    await hub.create()
    first = await hub.committed({"a": b"1"})
    second = await hub.committed({"a": b"2"})

    problem = refused(await hub.commit({"a": b"3"}, expected=first), 412, "version-conflict", first, second)
    refused(await hub.commit({"a": b"3"}, expected=None), 412, "version-conflict", second)

    assert (problem["data"]["expected"], problem["data"]["actual"]) == (first, second)
    assert (await hub.get(f"{M}/files/a")).content == b"2"


async def test_an_unchanged_commit_is_answered_200_with_what_is_there(hub: Hub) -> None:
    await hub.create()
    first = await hub.committed({"a": b"1"})

    answer = await hub.commit({"a": b"1"})

    assert answer.status_code == 200
    assert (answer.json()["revision"], answer.json()["created"]) == (first, False)


async def test_an_idempotency_key_is_answered_with_the_same_commit(hub: Hub) -> None:
    await hub.create()
    first = await hub.commit({"a": b"1"}, idempotency_key="k")

    again = await hub.commit({"a": b"1"}, idempotency_key="k")

    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json() | {"created": False}
    refused(await hub.commit({"a": b"2"}, idempotency_key="k"), 409, "conflict")


PUT = {"op": "put", "path": "a", "sha256": "0" * 64}
COMMIT = {"message": "m", "operations": [PUT]}


@pytest.mark.parametrize(
    "change",
    [{"operations": []}, {"operations": None}, {"message": ""}, {"message": "x" * 2001}, {"branch": "a b"}, {"branch": ""},
     {"branch": "0" * 40}, {"expected": "main"}, {"expected": "A" * 40}, {"typo": 1}, {"idempotency_key": ""},
     {"idempotency_key": "x" * 201}, {"lineage": {"kind": "stolen"}}, {"message": "\ud800"},
     {"operations": [PUT | {"path": "../x"}]}, {"operations": [PUT | {"path": "/x"}]}, {"operations": [PUT | {"path": "\ud800"}]},
     {"operations": [PUT | {"path": "x" * 10_000}]}, {"operations": [PUT | {"sha256": "0"}]}, {"operations": [PUT | {"op": "move"}]},
     {"operations": [PUT, PUT]}, {"operations": [{"op": "put", "path": "a"}]}, {"operations": [{"op": "delete", "path": "a"}]},
     {"operations": [PUT | {"extra": 1}]}],
)  # fmt: skip
async def test_a_commit_that_cannot_be_is_refused(hub: Hub, change: Mapping[str, Any]) -> None:
    await hub.create()

    content = json.dumps({**COMMIT, **change})
    answer = await hub.http.post(f"{ROOT}/{M}/commits", content=content, headers={"content-type": "application/json"})

    refused(answer, 400, "invalid-input")
    assert (await hub.get(f"{M}/refs")).json() == []


async def test_a_put_of_a_blob_that_was_not_uploaded_names_the_path_and_the_blob(hub: Hub) -> None:
    await hub.create()

    answer = await hub.http.post(f"{ROOT}/{M}/commits", json=COMMIT)

    problem = refused(answer, 400, "invalid-input", "'a'", "0" * 64, f"PUT {ROOT}/{M}/blobs/")
    assert problem["data"] == {"path": "a", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("path", "code"),
    [("b", 404), ("d", 404), ("a/b", 404), ("..%2Fx", 400), ("%2Fetc%2Fpasswd", 400), ("a%00", 400), ("a//b", 400)],
)
async def test_a_file_that_is_not_there_is_not_found_or_refused(hub: Hub, path: str, code: int) -> None:
    await hub.create()
    await hub.committed({"a": b"1", "d/x": b"1"})

    assert (await hub.get(f"{M}/files/{path}")).status_code == code
    assert (await hub.http.head(f"{ROOT}/{M}/files/{path}")).status_code == code


@pytest.mark.parametrize("ref", ["none", "f" * 40, "refs/heads/none", "a..b", "x" * 200])
async def test_an_unknown_ref_is_not_found(hub: Hub, ref: str) -> None:
    await hub.create()
    await hub.committed({"a": b"1"})

    refused(await hub.get(f"{M}/revisions/{ref}"), 404, "not-found")
    refused(await hub.get(f"{M}/files/a", params={"ref": ref}), 404, "not-found")
    refused(await hub.get(f"{M}/commits", params={"ref": ref}), 404, "not-found")


async def test_an_empty_repository_has_no_revision_yet(hub: Hub) -> None:
    await hub.create()

    refused(await hub.get(f"{M}/revisions/main"), 404, "not-found", "none yet")


async def test_a_log_is_paged_by_a_cursor(hub: Hub) -> None:
    await hub.create()
    made = [await hub.committed({"a": bytes([n])}) for n in range(3)]

    first = (await hub.get(f"{M}/commits", params={"limit": 2})).json()
    second = (await hub.get(f"{M}/commits", params={"limit": 2, "cursor": first["cursor"]})).json()

    assert [item["revision"] for item in first["items"] + second["items"]] == made[::-1]
    assert second["cursor"] is None
    for params in ({"cursor": "x"}, {"limit": 0}, {"limit": 1001}):
        refused(await hub.get(f"{M}/commits", params=params), 400, "invalid-input")
    refused(await hub.get(f"{M}/commits", params={"cursor": "f" * 40}), 404, "not-found")


# --- refs ---------------------------------------------------------------------------------------------------


async def test_refs_with_slashes_are_made_read_moved_and_deleted(
    hub: Hub, heard: list[Envelope], eventually: Eventually
) -> None:
    await hub.create()
    first = await hub.committed({"a": b"1"})
    second = await hub.committed({"a": b"2"})
    url = f"{ROOT}/{M}/refs/branch/team/dev"

    made = await hub.http.put(url, json={"revision": first, "expected": None})
    moved = await hub.http.put(url, json={"revision": "main", "expected": first})
    seen = await hub.get(f"{M}/revisions/team/dev")
    listed = await hub.get(f"{M}/refs")
    stale = await hub.http.delete(url, params={"expected": first})
    gone = await hub.http.delete(url, params={"expected": second})

    assert (made.status_code, moved.status_code, gone.status_code) == (201, 200, 204)
    assert moved.json() == {"kind": "branch", "name": "team/dev", "revision": second}
    assert seen.json()["revision"] == second
    assert listed.json() == [
        {"kind": "branch", "name": "main", "revision": second}, {"kind": "branch", "name": "team/dev", "revision": second},
    ]  # fmt: skip
    refused(stale, 412, "version-conflict", first, second)
    refused(await hub.get(f"{M}/revisions/team/dev"), 404, "not-found")
    moves = await eventually(lambda: _moves(heard) if len(_moves(heard)) == 3 else None)
    assert moves == [(None, first), (first, second), (second, None)]


def _moves(heard: list[Envelope]) -> list[tuple[str | None, str | None]]:
    return [(e.event.old, e.event.new) for e in heard if isinstance(e.event, RefMoved) and e.event.ref == "team/dev"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("tag/v1", {"revision": "f" * 40}, 404), ("tag/v1", {"revision": "none"}, 404), ("tag/a b", {"revision": "main"}, 400),
     ("tag/a..b", {"revision": "main"}, 400), ("alias/x", {"revision": "main"}, 400), ("tag/v1", {}, 400),
     ("tag/" + "x" * 201, {"revision": "main"}, 400), ("tag/v1", {"revision": "main", "expected": "x"}, 400),
     ("tag/v1", {"revision": "main", "expected": "0" * 40}, 412)],
)  # fmt: skip
async def test_a_ref_that_cannot_be_is_refused(hub: Hub, path: str, body: Any, status: int) -> None:
    await hub.create()
    await hub.committed({"a": b"1"})

    assert (await hub.http.put(f"{ROOT}/{M}/refs/{path}", json=body)).status_code == status
    assert len((await hub.get(f"{M}/refs")).json()) == 1


async def test_the_default_branch_cannot_be_deleted(hub: Hub) -> None:
    await hub.create()
    await hub.committed({"a": b"1"})

    refused(await hub.http.delete(f"{ROOT}/{M}/refs/branch/main"), 409, "conflict", "default branch")
    refused(await hub.http.delete(f"{ROOT}/{M}/refs/branch/none"), 404, "not-found")


# --- bytes --------------------------------------------------------------------------------------------------


async def test_a_blob_is_uploaded_once_and_found_again(hub: Hub) -> None:
    await hub.create()
    url = f"{ROOT}/{M}/blobs/{sha(b'data')}"

    absent = await hub.http.head(url)
    first = await hub.http.put(url, content=b"data")
    second = await hub.http.put(url, content=b"data")
    head = await hub.http.head(url)
    get = await hub.http.get(url)

    assert (absent.status_code, first.status_code, second.status_code) == (404, 201, 200)
    assert first.json() == {"sha256": sha(b"data"), "size_bytes": 4}
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "4", b"")
    assert (get.content, get.headers["etag"]) == (b"data", f'"{sha(b"data")}"')


async def test_an_empty_blob_is_a_blob(hub: Hub) -> None:
    await hub.create()

    await hub.committed({"empty": b"", "README.md": b""})

    answer = await hub.get(f"{M}/files/empty")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")
    refused(await hub.get(f"{M}/files/empty", headers={"Range": "bytes=0-"}), 416, "range-not-satisfiable")


async def test_an_altered_upload_is_refused_leaves_nothing_and_is_told(
    hub: Hub, heard: list[Envelope], eventually: Eventually
) -> None:
    await hub.create()
    url = f"{ROOT}/{M}/blobs/{sha(b'data')}"

    answer = await hub.http.put(url, content=b"dada")

    problem = refused(answer, 400, "invalid-input", sha(b"data"), sha(b"dada"))
    assert problem["data"]["actual_sha256"] == sha(b"dada")
    assert (await hub.http.head(url)).status_code == 404
    told = await eventually(lambda: [e for e in heard if isinstance(e.event, UploadRefused)])
    assert told[0].actor == "tester"
    assert told[0].event == UploadRefused(
        repository=M, reason="digest-mismatch", expected_sha256=sha(b"data"), actual_sha256=sha(b"dada"), size_bytes=4
    )


async def test_an_altered_upload_of_a_blob_that_is_there_does_not_touch_it(hub: Hub) -> None:
    await hub.create()
    await hub.upload(b"data")

    refused(await hub.http.put(f"{ROOT}/{M}/blobs/{sha(b'data')}", content=b"dada"), 400, "invalid-input")

    assert (await hub.get(f"{M}/blobs/{sha(b'data')}")).content == b"data"


@pytest.mark.parametrize("digest", ["x", "A" * 64, "0" * 63, "0" * 65, "..%2F..", "0" * 10_000])
async def test_a_digest_that_is_none_is_refused(hub: Hub, digest: str) -> None:
    await hub.create()

    assert (await hub.http.put(f"{ROOT}/{M}/blobs/{digest}", content=b"x")).status_code in (400, 404)
    assert (await hub.get(f"{M}/blobs/{digest}")).status_code in (400, 404)


class TestSmallLimits:
    @pytest.fixture
    def settings(self) -> RegistrySettings:
        return RegistrySettings(upload_bytes_max=1000, body_bytes_max=1024)

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_a_blob_above_the_limit_is_refused_and_told(
        self, hub: Hub, heard: list[Envelope], eventually: Eventually, chunked: bool
    ) -> None:
        await hub.create()
        data = b"x" * 1001

        async def body() -> Any:
            for at in range(0, len(data), 100):
                yield data[at : at + 100]

        answer = await hub.http.put(f"{ROOT}/{M}/blobs/{sha(data)}", content=body() if chunked else data)

        refused(answer, 413, "too-large", "1000", "REGISTRY_UPLOAD_BYTES_MAX")
        assert (await hub.http.head(f"{ROOT}/{M}/blobs/{sha(data)}")).status_code == 404
        told = await eventually(lambda: [e.event for e in heard if isinstance(e.event, UploadRefused)])
        assert (told[0].reason, told[0].actual_sha256) == ("too-large", None)
        await hub.upload(b"x" * 1000)

    async def test_a_body_above_the_limit_is_refused(self, hub: Hub) -> None:
        await hub.create()

        answer = await hub.http.post(f"{ROOT}/{M}/commits", json={**COMMIT, "message": "x" * 1100})

        refused(answer, 413, "too-large", "REGISTRY_BODY_BYTES_MAX")

    async def test_a_stranger_is_not_even_listened_to(self, hub: Hub) -> None:
        answer = await hub.http.post(ROOT, content=b"x" * 5000, headers={"Authorization": ""})

        refused(answer, 401, "unauthenticated")


@pytest.mark.parametrize(
    ("asked", "status", "content", "content_range"),
    [("bytes=0-3", 206, b"0123", "bytes 0-3/10"), ("bytes=8-", 206, b"89", "bytes 8-9/10"), ("bytes=-3", 206, b"789", "bytes 7-9/10"),
     ("bytes=0-99", 206, b"0123456789", "bytes 0-9/10"), ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"), ("bytes=9-9", 206, b"9", "bytes 9-9/10"),
     ("bytes=10-", 416, None, "bytes */10"), ("bytes=-0", 416, None, "bytes */10"), ("bytes=99-100", 416, None, "bytes */10"),
     ("bytes=3-1", 200, b"0123456789", None), ("bytes=0-1,4-5", 200, b"0123456789", None), ("lines=0-1", 200, b"0123456789", None),
     ("bytes=-", 200, b"0123456789", None), ("bytes=x-y", 200, b"0123456789", None), ("", 200, b"0123456789", None)],
)  # fmt: skip
async def test_one_range_is_answered_as_the_rfc_says(
    hub: Hub, asked: str, status: int, content: bytes | None, content_range: str | None
) -> None:
    await hub.create()
    await hub.committed({"a": b"0123456789"})

    answer = await hub.get(f"{M}/files/a", headers={"Range": asked})

    assert answer.status_code == status
    assert answer.headers.get("content-range") == content_range
    assert content is None or answer.content == content


async def test_a_range_holds_only_for_the_bytes_the_caller_knows(hub: Hub) -> None:
    await hub.create()
    await hub.committed({"a": b"0123456789"})
    etag = f'"{sha(b"0123456789")}"'

    same = await hub.get(f"{M}/files/a", headers={"Range": "bytes=0-1", "If-Range": etag})
    other = await hub.get(f"{M}/files/a", headers={"Range": "bytes=0-1", "If-Range": '"x"'})
    known = await hub.get(f"{M}/files/a", headers={"If-None-Match": f'"y", {etag}'})

    assert (same.status_code, other.status_code, known.status_code) == (206, 200, 304)
    assert (known.content, known.headers["etag"]) == (b"", etag)


async def test_damaged_bytes_are_never_served_whole(hub: Hub) -> None:
    await hub.create()
    small, large = b"small", bytes(3 * 1024 * 1024)
    await hub.committed({"small": small, "large": large})

    def key(data: bytes) -> str:
        return f"blobs/shared/acme/sha256/{sha(data)[:2]}/{sha(data)}"

    await hub.stores.objects.put(key(small), b"smarl")
    await hub.stores.objects.put(key(large), large[:-1] + b"\1")

    refused(await hub.get(f"{M}/files/small"), 500, "damaged", sha(small))
    with pytest.raises(Exception, match=r"damaged|already started"):
        await hub.get(f"{M}/files/large")
    await hub.stores.objects.put(key(small), b"sma")
    refused(await hub.get(f"{M}/files/small"), 500, "damaged", "3 bytes")
    await hub.stores.objects.delete(key(small))
    refused(await hub.get(f"{M}/files/small", headers={"Range": "bytes=0-1"}), 500, "damaged", "missing")
    await hub.upload(small)
    assert (await hub.get(f"{M}/files/small")).content == small


# --- who may do what ----------------------------------------------------------------------------------------

Speak = Callable[..., Any]


async def test_nothing_is_reachable_without_a_token(hub: Hub, heard: list[Envelope], eventually: Eventually) -> None:
    await hub.create()
    routes = [
        (method, path.format(namespace="acme", name="magika", sha256="0" * 64, ref="main", path="a", kind="tag"))
        for path, methods in describe(hub.service.app)["paths"].items()  # type: ignore[arg-type]
        for method in methods
    ]
    assert len(routes) == 14

    for method, path in routes:
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer x.y.z"}):
            answer = await hub.http.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")

    await eventually(lambda: len([e for e in heard if isinstance(e.event, AccessDenied)]) >= 14)


async def test_a_role_that_may_only_read_is_refused_to_write_and_told(
    hub: Hub, speak: Speak, heard: list[Envelope], eventually: Eventually
) -> None:
    await hub.create()
    await hub.committed({"a": b"1"})

    async with speak("olga", "operator") as http:
        read = await http.get(f"{ROOT}/{M}/files/a")
        answers = [
            await http.post(ROOT, json={"name": "olga/x"}),
            await http.put(f"{ROOT}/{M}/blobs/{sha(b'1')}", content=b"1"),
            await http.post(f"{ROOT}/{M}/commits", json=COMMIT),
            await http.put(f"{ROOT}/{M}/refs/tag/v1", json={"revision": "main"}),
            await http.delete(f"{ROOT}/{M}/refs/branch/main"),
        ]

    assert read.status_code == 200
    for answer in answers:
        refused(answer, 403, "forbidden")
    denied = await eventually(
        lambda: d if len(d := [e for e in heard if isinstance(e.event, AccessDenied)]) == 5 else None
    )
    assert {(e.actor, e.event.reason, e.event.service) for e in denied} == {("olga", "policy-denied", "registry")}


async def test_a_token_without_the_scope_is_refused(hub: Hub, speak: Speak) -> None:
    await hub.create()

    async with speak("ada", "administrator", scopes=("predict",)) as http:
        for path in ("", f"/{M}", "/acme/none", f"/{M}/refs"):
            answer = await http.get(ROOT + path)
            refused(answer, 403, "forbidden", "repository:read")


async def test_a_private_repository_does_not_exist_for_others_but_the_audit_hears_of_it(
    hub: Hub, speak: Speak, heard: list[Envelope], eventually: Eventually
) -> None:
    """INVARIANT: who may not read a private repository cannot tell it from one that was never made.

    What would break it: another status, other words, or a search that counts it.
    """
    async with speak("ada", "publisher") as ada:
        assert (await ada.post(ROOT, json={"name": "lab/secret", "private": True})).status_code == 201
        assert (await ada.get(f"{ROOT}/lab/secret")).status_code == 200

        async with speak("bob", "publisher") as bob:
            for method, suffix, body in [
                ("GET", "", None), ("GET", "/refs", None), ("GET", "/commits", None), ("GET", "/revisions/main", None),
                ("GET", "/files/a", None), ("GET", f"/blobs/{'0' * 64}", None), ("POST", "/commits", COMMIT),
                ("PUT", "/refs/tag/v1", {"revision": "main"}), ("DELETE", "/refs/tag/v1", None),
                ("PUT", f"/blobs/{sha(b'null')}", None),
            ]:  # fmt: skip
                hidden = await bob.request(method, f"{ROOT}/lab/secret{suffix}", json=body)
                absent = await bob.request(method, f"{ROOT}/lab/absent{suffix}", json=body)
                assert hidden.status_code == absent.status_code == 404
                assert hidden.text.replace("secret", "absent") == absent.text
            await hub.stores.documents.refresh("registry-repositories")
            found = (await bob.get(ROOT)).json()
        assert (found["items"], found["total"]) == ([], 0)
        assert [each["name"] for each in (await ada.get(ROOT)).json()["items"]] == ["lab/secret"]

    assert [each["name"] for each in (await hub.http.get(ROOT)).json()["items"]] == ["lab/secret"]
    denied = await eventually(
        lambda: d if len(d := [e for e in heard if isinstance(e.event, AccessDenied)]) == 10 else None
    )
    assert {(e.actor, e.event.resource) for e in denied} == {("bob", "Repository:lab/secret")}
    assert "answered as not found" in denied[0].event.detail


async def test_a_service_works_on_a_private_repository(hub: Hub, speak: Speak) -> None:
    async with speak("ada", "publisher") as ada:
        await ada.post(ROOT, json={"name": "lab/secret", "private": True})

    async with speak("optimizer", "service") as http:
        put = await http.put(f"{ROOT}/lab/secret/blobs/{sha(b'x')}", content=b"x")
        commit = {"message": "m", "operations": [{"op": "put", "path": "a", "sha256": sha(b"x")}]}
        answer = await http.post(f"{ROOT}/lab/secret/commits", json=commit)

    assert (put.status_code, answer.status_code) == (201, 201)
    assert answer.json()["author"] == "optimizer"


async def test_blobs_of_one_namespace_cannot_be_probed_from_another(hub: Hub) -> None:
    """INVARIANT: no answer tells whether another namespace, or a private repository, has a blob.

    What would break it: blobs that spaces share, or an upload answered by what another space holds.
    """
    await hub.create("acme/m")
    await hub.create("acme/secret", private=True)
    await hub.create("other/m")
    await hub.upload(b"known", "acme/secret")

    for name in ("acme/m", "other/m"):
        url = f"{ROOT}/{name}/blobs/{sha(b'known')}"
        assert (await hub.http.head(url)).status_code == 404
        assert (await hub.http.get(url)).status_code == 404
        assert (await hub.http.put(url, content=b"known")).status_code == 201


# --- search -------------------------------------------------------------------------------------------------


@pytest.fixture
async def shelf(hub: Hub) -> Hub:
    cards = {
        "acme/resnet-50": ("model", "library_name: onnxruntime\npipeline_tag: image-classification\nlicense: mit\ntags: [vision, small]"),
        "acme/bert": ("model", "library_name: torch\npipeline_tag: fill-mask\nlicense: apache-2.0\ntags: [text, small]"),
        "other/images": ("dataset", "license: mit\ntags: [vision]"),
    }  # fmt: skip
    for name, (kind, front) in cards.items():
        await hub.create(name, kind=kind, description=f"about {name}")
        await hub.committed({"README.md": f"---\n{front}\n---\n# Card of {name}\nzebra".encode()}, name)
    await hub.stores.documents.refresh("registry-repositories")
    return hub


@pytest.mark.parametrize(
    ("params", "names"),
    [({}, ["other/images", "acme/bert", "acme/resnet-50"]), ({"sort": "name"}, ["acme/bert", "acme/resnet-50", "other/images"]),
     ({"sort": "-name"}, ["other/images", "acme/resnet-50", "acme/bert"]), ({"kind": "dataset"}, ["other/images"]),
     ({"namespace": "other"}, ["other/images"]), ({"owner": "nobody"}, []), ({"owner": "tester", "kind": "dataset"}, ["other/images"]),
     ({"tag": "small", "sort": "name"}, ["acme/bert", "acme/resnet-50"]), ({"tag": ["vision", "small"]}, ["acme/resnet-50"]),
     ({"library": "torch"}, ["acme/bert"]), ({"task": "fill-mask"}, ["acme/bert"]), ({"license": "mit", "sort": "name"}, ["acme/resnet-50", "other/images"]),
     ({"q": "resnet"}, ["acme/resnet-50"]), ({"q": "ZEBRA", "kind": "dataset"}, ["other/images"]), ({"q": "zebra bert"}, ["acme/bert"]),
     ({"q": "nothing"}, []), ({"q": '" OR 1=1 --'}, []), ({"created": "x"}, ["other/images", "acme/bert", "acme/resnet-50"])],
)  # fmt: skip
async def test_search_finds(shelf: Hub, params: Mapping[str, Any], names: list[str]) -> None:
    answer = await shelf.http.get(ROOT, params=params)

    assert answer.status_code == 200, answer.text
    assert [each["name"] for each in answer.json()["items"]] == names
    assert answer.json()["total"] == len(names)


async def test_search_shows_what_the_card_says(shelf: Hub) -> None:
    found = (await shelf.http.get(ROOT, params={"q": "resnet"})).json()["items"][0]

    assert (found["tags"], found["library"], found["task"], found["license"]) == (
        ["vision", "small"], "onnxruntime", "image-classification", "mit",
    )  # fmt: skip


async def test_search_is_paged_without_gaps_or_doubles(shelf: Hub) -> None:
    names = []
    params: dict[str, Any] = {"sort": "name", "limit": 1}
    for _ in range(3):
        page = (await shelf.http.get(ROOT, params=params)).json()
        names += [each["name"] for each in page["items"]]
        params["cursor"] = page["cursor"]

    assert names == ["acme/bert", "acme/resnet-50", "other/images"]
    assert params["cursor"] is None


@pytest.mark.parametrize(
    "params",
    [{"sort": "size"}, {"limit": 0}, {"limit": 5000}, {"cursor": "nonsense"}, {"kind": "space"}, {"q": "x" * 501}],
)
async def test_a_search_that_cannot_be_is_refused(shelf: Hub, params: Mapping[str, Any]) -> None:
    refused(await shelf.http.get(ROOT, params=params), 400, "invalid-input")


async def test_a_broken_card_is_said_to_be_broken(hub: Hub) -> None:
    await hub.create()

    await hub.committed({"README.md": b"---\ntags: [open\n---\n"})

    assert "not YAML" in (await hub.get(M)).json()["card_error"]


# --- the service --------------------------------------------------------------------------------------------


async def test_readiness_asks_every_store(hub: Hub) -> None:
    answer = await hub.http.get("/readyz", headers={"Authorization": ""})

    assert answer.status_code == 200
    assert answer.json()["checks"] == {"documents": "ok", "objects": "ok", "bus": "ok"}


async def test_metrics_count_what_happened(hub: Hub) -> None:
    await hub.create()
    await hub.committed({"a": b"12345"})
    await hub.http.put(f"{ROOT}/{M}/blobs/{'0' * 64}", content=b"wrong")
    await hub.get(f"{M}/files/a")

    text = (await hub.http.get("/metrics")).text

    for line in (
        "modelworks_registry_commits_total 1.0", 'modelworks_registry_uploads_total{outcome="stored"} 1.0',
        'modelworks_registry_uploads_total{outcome="digest-mismatch"} 1.0', "modelworks_registry_uploaded_bytes_total 10.0",
        "modelworks_registry_downloaded_bytes_total 5.0", 'modelworks_registry_ref_moves_total{kind="branch"} 1.0',
    ):  # fmt: skip
        assert line in text


async def test_the_openapi_document_names_what_each_route_answers(hub: Hub) -> None:
    document = describe(hub.service.app)  # type: ignore[arg-type]

    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation.get("description"), operation["operationId"]
        assert {"401", "403", "503"} <= operation["responses"].keys()
    commit = document["paths"][ROOT + "/{namespace}/{name}/commits"]["post"]
    assert commit["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/NewCommit")
    assert {"200", "201", "400", "404", "409", "412", "413"} <= commit["responses"].keys()


async def test_state_outlives_the_service(hub: Hub, platform: Any, issuer: Any) -> None:
    from modelworks.kit.platform import Platform
    from modelworks.kit.telemetry import Telemetry
    from modelworks.registry.app import build

    await hub.create()
    revision = await hub.committed({"a": b"1"})

    fresh = Platform(verifier=platform.verifier, policy=platform.policy, telemetry=Telemetry())
    service = build(hub.stores, RegistrySettings(), fresh)
    async with service.run(), client_of(service, issuer.headers()) as http:
        answer = await http.get(f"{ROOT}/{M}/files/a")

    assert (answer.content, answer.headers["x-modelworks-revision"]) == (b"1", revision)
