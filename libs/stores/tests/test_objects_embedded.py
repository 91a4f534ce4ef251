"""The object contract on a folder, and what only this adapter promises: files, kill -9, memory, its own presigned door."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from modelworks.events import AccessDenied
from modelworks.kit.errors import Conflict, StoreUnavailable
from modelworks.kit.http import create_app
from modelworks.kit.platform import Platform
from modelworks.stores import Objects, PresignedRequest
from modelworks.stores.objects.folder import FolderObjects

pytest.register_assert_rewrite("libs.stores.tests.contract_objects")

from libs.stores.tests.contract_objects import (  # noqa: E402
    HELLO,
    MIB,
    WRITER,
    ObjectsContract,
    OpenObjects,
    Send,
    keys,
    noise,
    stream,
)

BASE_URL = "http://door.test/objects"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "objects"


def door(objects: FolderObjects, platform: Platform, refusals: list[AccessDenied]) -> httpx.AsyncClient:
    """A client of the presigned app, mounted as a service mounts it."""

    async def record(refusal: AccessDenied, _: str) -> None:
        refusals.append(refusal)

    app = create_app("registry", platform, routers=[], record=record)
    app.mount("/objects", objects.presigned_app())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app))


def sender(objects: FolderObjects, platform: Platform) -> Send:
    refusals: list[AccessDenied] = []

    async def send(
        request: PresignedRequest, *, content: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        async with door(objects, platform, refusals) as client:
            answer = await client.request(request.method, request.url, content=content or None, headers=headers)
        # The audit is told of each refusal, and of nothing else.
        assert len(refusals) == (answer.status_code == 403)
        refusals.clear()
        return answer.status_code, answer.content

    return send


class TestFolderObjects(ObjectsContract):
    @pytest.fixture
    async def open_objects(self, root: Path) -> AsyncIterator[OpenObjects]:
        opened: list[FolderObjects] = []

        def open_objects() -> FolderObjects:
            opened.append(FolderObjects(root, base_url=BASE_URL))
            return opened[-1]

        yield open_objects
        for objects in opened:
            await objects.close()

    @pytest.fixture
    def send(self, objects: Objects, platform: Platform) -> Send:
        assert isinstance(objects, FolderObjects)
        return sender(objects, platform)


@pytest.fixture
async def folder(root: Path) -> AsyncIterator[FolderObjects]:
    objects = FolderObjects(root, base_url=BASE_URL)
    yield objects
    await objects.close()


async def test_nothing_is_written_before_the_first_use(root: Path) -> None:
    await FolderObjects(root).close()

    assert not root.parent.exists()


async def test_a_folder_that_cannot_be_made_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    objects = FolderObjects(tmp_path / "file" / "objects")

    with pytest.raises(StoreUnavailable, match=r"file.objects cannot be used.*user may write"):
        await objects.check()
    with pytest.raises(StoreUnavailable):
        await objects.put("a", b"x")


async def test_a_closed_store_says_so(folder: FolderObjects) -> None:
    await folder.put("a", b"x")
    await folder.close()

    with pytest.raises(StoreUnavailable, match="closed"):
        await folder.head("a")


async def test_a_put_that_was_killed_leaves_nothing_readable(root: Path, folder: FolderObjects) -> None:
    """INVARIANT: a reader sees whole objects only; would break if a put wrote under its final name."""
    script = WRITER.format(
        imports="from modelworks.stores.objects.folder import FolderObjects",
        make="FolderObjects(Path(sys.argv[1]))",
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert await asyncio.to_thread(writer.stdout.readline) == b"sent\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()

    assert await folder.head("killed") is None
    assert await keys(folder, "") == []
    (left,) = (root / "temporary").iterdir()
    assert left.stat().st_size > 0


async def test_what_a_crash_left_is_removed_at_the_next_start_and_what_is_being_written_is_not(root: Path) -> None:
    first = FolderObjects(root)
    release = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        await release.wait()
        yield bytes(MIB)

    writing = asyncio.create_task(first.put("slow", slow()))
    while not (root / "temporary").is_dir() or not list((root / "temporary").iterdir()):
        await asyncio.sleep(0.01)
    stale = root / "temporary" / "stale"
    stale.write_bytes(b"left by a crash")
    long_ago = time.time() - 3600
    for path in (root / "temporary").iterdir():
        os.utime(path, (long_ago, long_ago))

    second = FolderObjects(root)
    await second.check()

    assert not stale.exists()
    release.set()
    await writing
    assert await second.head("slow") is not None
    assert list((root / "temporary").iterdir()) == []
    await first.close()
    await second.close()


async def test_uploads_nobody_went_on_with_for_a_week_are_removed(root: Path, folder: FolderObjects) -> None:
    old, young = await folder.start_multipart("a"), await folder.start_multipart("a")
    week_ago = time.time() - timedelta(days=7, minutes=1).total_seconds()
    os.utime(root / "uploads" / old, (week_ago, week_ago))

    await FolderObjects(root).check()

    assert [path.name for path in (root / "uploads").iterdir()] == [young]


async def test_memory_stays_flat_while_256_mebibytes_pass(folder: FolderObjects) -> None:
    chunk = noise(256 * 1024)
    await folder.put("warm", stream(*[chunk] * 16))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def large() -> AsyncIterator[bytes]:
        for _ in range(1024):
            yield chunk

    await folder.put("large", large(), size_bytes=256 * MIB)
    async for _ in folder.get("large"):
        pass

    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 24 * 1024


async def test_a_deleted_object_takes_its_empty_folders_along(root: Path, folder: FolderObjects) -> None:
    await folder.put("a/b/c/d", HELLO)
    await folder.put("a/e", HELLO)

    await folder.delete("a/b/c/d")

    assert sorted(path.name for path in (root / "data" / "a").iterdir()) == ["e@"]


async def test_puts_and_deletes_beside_each_other_in_one_folder_all_succeed(folder: FolderObjects) -> None:
    async def churn(name: str) -> None:
        for _ in range(20):
            await folder.put(f"x/y/{name}", HELLO)
            await folder.delete(f"x/y/{name}")

    await asyncio.gather(*(churn(str(n)) for n in range(8)))

    assert await keys(folder, "") == []


async def test_a_file_that_was_cut_from_outside_is_told(root: Path, folder: FolderObjects) -> None:
    await folder.put("a", noise(3 * MIB))

    reading = folder.get("a")
    await anext(reading)
    os.truncate(root / "data" / "a@", MIB + 5)

    with pytest.raises(StoreUnavailable, match="cut from outside"):
        async for _ in reading:
            pass


# Presigned requests


async def test_presigning_needs_an_address(root: Path) -> None:
    objects = FolderObjects(root)

    with pytest.raises(Conflict, match="base_url"):
        await objects.presign("GET", "a", expires=timedelta(minutes=1))
    objects.base_url = "http://elsewhere/objects/"
    request = await objects.presign("GET", "a", expires=timedelta(minutes=1))

    assert request.url.startswith("http://elsewhere/objects/a?")
    await objects.close()


async def test_the_secret_is_private_and_signs_across_restarts(
    root: Path, folder: FolderObjects, platform: Platform
) -> None:
    await folder.put("a", HELLO)
    request = await folder.presign("GET", "a", expires=timedelta(minutes=1))

    again = FolderObjects(root, base_url=BASE_URL)

    assert await sender(again, platform)(request) == (200, HELLO)
    assert stat.S_IMODE((root / "presign.key").stat().st_mode) == 0o600
    assert len((root / "presign.key").read_bytes()) == 32
    await again.close()


async def test_another_stores_signature_is_refused(tmp_path: Path, folder: FolderObjects, platform: Platform) -> None:
    other = FolderObjects(tmp_path / "other", base_url=BASE_URL)
    await folder.put("a", HELLO)

    request = await other.presign("GET", "a", expires=timedelta(minutes=1))

    assert (await sender(folder, platform)(request))[0] == 403
    await other.close()


@pytest.mark.parametrize(
    "query",
    ["", "expires=&method=GET&signature=", "expires=99999999999&method=GET&signature=00",
     "expires=9e9&method=GET&signature=ü", "expires=-1&method=GET&signature=x", "expires=99999999999999&signature=x"],
)  # fmt: skip
async def test_a_forged_query_is_refused(folder: FolderObjects, platform: Platform, query: str) -> None:
    await folder.put("a", HELLO)

    status, body = await sender(folder, platform)(PresignedRequest("GET", f"{BASE_URL}/a?{query}"))

    assert status == 403
    assert HELLO not in body


async def test_a_presigned_put_is_bounded_whether_or_not_it_says_its_length(root: Path, platform: Platform) -> None:
    objects = FolderObjects(root, base_url=BASE_URL, put_bytes_max=100)
    request = await objects.presign("PUT", "a", expires=timedelta(minutes=1))
    async with door(objects, platform, []) as client:
        announced = await client.put(request.url, content=bytes(101))
        unannounced = await client.put(request.url, content=stream(bytes(60), bytes(60)))
        fitting = await client.put(request.url, content=bytes(100))

    assert (announced.status_code, unannounced.status_code, fitting.status_code) == (413, 413, 200)
    assert announced.headers["content-type"] == "application/problem+json"
    assert await objects.read("a") == bytes(100)
    await objects.close()


async def test_a_presigned_get_of_nothing_is_not_found(folder: FolderObjects, platform: Platform) -> None:
    request = await folder.presign("GET", "missing", expires=timedelta(minutes=1))

    assert (await sender(folder, platform)(request))[0] == 404
