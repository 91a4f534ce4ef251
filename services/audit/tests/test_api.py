"""Over HTTP: who may read, what is refused, and in which form."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from modelworks.audit.app import build
from modelworks.audit.settings import AuditSettings
from modelworks.audit.tlog.note import Signer, generate_key
from modelworks.audit.verify import verify_log, verify_search_answer, verify_whole_log
from modelworks.kit.errors import InvalidInput
from modelworks.kit.platform import Platform
from modelworks.stores.bus.port import Message
from modelworks.stores.stores import Stores
from pydantic import ValidationError

KEY = generate_key("test/audit")
PATHS = ("events", "checkpoint", "key", "entries/0", "proof/consistency?old=0&new=0", "health", "tile/0/000")


@pytest.fixture
async def client(stores: Stores, platform: Platform, issuer: Any) -> AsyncIterator[httpx.AsyncClient]:
    settings = AuditSettings(signing_key=KEY, lease_ms=500, check_seconds=0.05)
    service = build(stores, settings, platform)
    transport = httpx.ASGITransport(app=service.app)
    async with (
        service.run(),
        httpx.AsyncClient(
            transport=transport, base_url="http://audit.test", headers=issuer.headers("ada", "auditor")
        ) as http,
    ):
        yield http


async def search(client: httpx.AsyncClient, **query: Any) -> dict[str, Any]:
    answer = await client.get("/api/v1/audit/events", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture
def arrives(client: httpx.AsyncClient, stores: Stores, eventually: Any) -> Callable[..., Any]:
    """`await arrives(messages, total)`: publishes, and waits until that many entries are found."""

    async def publish(messages: list[Message], total: int) -> dict[str, Any]:
        await stores.bus.publish(messages)

        async def found() -> Any:
            answer = await client.get("/api/v1/audit/events")
            return answer.json() if answer.status_code == 200 and answer.json()["total"] >= total else None

        answer: dict[str, Any] = await eventually(found)
        return answer

    return publish


async def test_published_events_are_found_with_proofs_that_verify(
    client: httpx.AsyncClient, arrives: Any, message: Any, denial: Any
):
    await arrives([message(n) for n in range(30)], 30)
    await arrives([message(30, denial, "mallory")], 31)

    found = await search(client, q="mallory policy-denied")

    vkey = (await client.get("/api/v1/audit/key")).text
    assert vkey == Signer(KEY).verifier.vkey
    assert verify_search_answer(found, vkey) == 1
    hit = found["items"][0]
    assert {"index", "id", "type", "source", "time", "actor", "resource", "outcome", "data", "leaf", "proof"} <= set(
        hit
    )
    assert (hit["actor"], hit["outcome"], hit["resource"]) == ("mallory", "denied", "acme/filetype")
    assert hit["proof"].keys() == {"index", "size", "hashes"}


async def test_refusal_of_the_audits_own_door_is_in_the_audit(client: httpx.AsyncClient, issuer: Any, eventually: Any):
    refused = await client.get("/api/v1/audit/events", headers=issuer.headers("carol", "consumer"))
    anonymous = await client.get("/api/v1/audit/events", headers={"Authorization": ""})

    async def both() -> Any:
        answer = await client.get("/api/v1/audit/events", params={"outcome": "denied"})
        return answer.json() if answer.status_code == 200 and answer.json()["total"] == 2 else None

    found = await eventually(both)
    assert (refused.status_code, anonymous.status_code) == (403, 401)
    assert {(item["actor"], item["data"]["reason"]) for item in found["items"]} == {
        ("carol", "policy-denied"),
        ("anonymous", "token-missing"),
    }
    assert (await search(client, q="carol policy-denied"))["total"] == 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("roles", "scopes", "status"),
    [(("consumer",), ("audit",), 403), (("auditor",), ("predict",), 403), ((), (), 401)],
    ids=["wrong role", "wrong scope", "no token"],
)
async def test_nobody_reads_without_the_role_and_the_scope(
    client: httpx.AsyncClient, issuer: Any, path: str, roles: Any, scopes: Any, status: int
):
    headers = issuer.headers("carol", *roles, scopes=scopes) if roles else {"Authorization": ""}

    answer = await client.get(f"/api/v1/audit/{path}", headers=headers)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        ("events?limit=0", 400, "limit"),
        ("events?limit=201", 400, "limit"),
        ("events?outcome=maybe", 400, "outcome"),
        ("events?since=yesterday", 400, "since"),
        ("events?cursor=nonsense", 400, "cursor"),
        ("events?q=" + "x" * 1001, 400, "q"),
        ("events?q=" + "+".join(str(n) for n in range(150)), 400, "words"),
        ("entries/7", 404, "leaf 7"),
        ("entries/-1", 404, "leaf -1"),
        ("entries/x", 400, "index"),
        ("proof/consistency?old=1", 400, "new"),
        ("proof/consistency?old=1&new=2", 400, "0"),
        ("tile/0/000.p/256", 400, "tile"),
        ("tile/entries/%2e%2e/%2e%2e/checkpoint", 400, "tile"),
        ("tile/0/009", 404, ""),
        ("nothing", 404, "no such path"),
    ],
)
async def test_bad_question_gets_a_problem_that_names_it(
    client: httpx.AsyncClient, eventually: Any, path: str, status: int, word: str
):
    async def opened() -> bool:
        return (await client.get("/readyz")).status_code == 200

    await eventually(opened)

    answer = await client.get(f"/api/v1/audit/{path}")

    assert answer.status_code == status, answer.text
    assert word in answer.json()["detail"]


async def test_whole_log_can_be_verified_over_http(client: httpx.AsyncClient, arrives: Any, message: Any):
    await arrives([message(n) for n in range(300)], 300)
    vkey = Signer(KEY).verifier.vkey

    async def fetch(path: str) -> bytes:
        answer = await client.get(f"/api/v1/audit/{path}")
        assert answer.status_code == 200, answer.text
        return answer.content

    async def entries(start: int, end: int) -> list[Any]:
        return [(await client.get(f"/api/v1/audit/entries/{index}")).json() for index in range(start, end)]

    report = await verify_log(fetch, vkey)
    by_entries = await verify_whole_log(report.checkpoint, vkey, entries)

    assert report.size == 300
    assert by_entries["root"] == report.root


async def test_log_proves_that_it_only_grew(client: httpx.AsyncClient, arrives: Any, message: Any):
    from modelworks.audit.tlog.note import Verifier, open_checkpoint
    from modelworks.audit.tlog.proofs import verify_consistency

    verifier = Verifier.parse(Signer(KEY).verifier.vkey)
    await arrives([message(n) for n in range(10)], 10)
    old = open_checkpoint((await client.get("/api/v1/audit/checkpoint")).text, verifier)
    await arrives([message(n) for n in range(10, 40)], 40)
    new = open_checkpoint((await client.get("/api/v1/audit/checkpoint")).text, verifier)

    proof = (await client.get(f"/api/v1/audit/proof/consistency?old={old.size}&new={new.size}")).json()

    verify_consistency([bytes.fromhex(each) for each in proof["hashes"]], old, new)


async def test_health_tells_of_a_document_that_was_changed(
    client: httpx.AsyncClient, stores: Stores, arrives: Any, message: Any, eventually: Any
):
    from modelworks.audit.adapters.index_documents import SCHEMA
    from modelworks.audit.record import document_id

    await arrives([message(n) for n in range(5)], 5)

    async def looked(differing: int) -> Any:
        health = (await client.get("/api/v1/audit/health")).json()
        return health if health.get("leaves") == 5 and health["differing"] == differing else None

    clean = await eventually(lambda: looked(0))
    found = await stores.documents.get(SCHEMA.collection, document_id(2))
    assert found is not None
    await stores.documents.save(
        SCHEMA.collection, document_id(2), {**found.body, "outcome": "denied"}, expected=found.version
    )
    changed = await eventually(lambda: looked(1))

    assert clean["leading"] is True
    assert changed["differences"] == [
        {"kind": "edited", "document": document_id(2), "detail": "outcome of leaf 2's document was changed"}
    ]


async def test_metrics_tell_of_leaves_and_lag(
    client: httpx.AsyncClient, issuer: Any, arrives: Any, message: Any, eventually: Any
):
    await arrives([message(n) for n in range(5)], 5)

    async def counted() -> bool:
        text = (await client.get("/metrics", headers=issuer.headers("op", "operator"))).text
        return "modelworks_audit_leaves 5.0" in text and "modelworks_audit_lag_messages 0.0" in text

    await eventually(counted)


async def test_signing_key_is_required_and_never_shown(stores: Stores, platform: Platform, monkeypatch: Any):
    monkeypatch.delenv("AUDIT_SIGNING_KEY", raising=False)
    with pytest.raises(ValidationError, match="signing_key"):
        AuditSettings()
    with pytest.raises(InvalidInput, match="keygen") as refused:
        build(stores, AuditSettings(signing_key="PRIVATE+KEY+log+00000000+c2VjcmV0"), platform)
    with pytest.raises(InvalidInput, match="'test/audit'"):
        build(stores, AuditSettings(signing_key=KEY, origin="other/audit"), platform)

    assert "c2VjcmV0" not in str(refused.value)
    assert AuditSettings(signing_key=KEY).public()["signing_key"] == "set"


def test_command_makes_a_key_that_the_service_takes(capsys: pytest.CaptureFixture[str]):
    from modelworks.audit.__main__ import run

    assert run(["keygen", "example/audit"]) == 0
    printed = capsys.readouterr()
    assert Signer(printed.out).name == "example/audit"
    assert Signer(printed.out).verifier.vkey in printed.err
    assert run(["keygen", "a b"]) == 1
    assert run(["verify"]) == 2
