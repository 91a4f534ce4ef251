"""Bytes over real sockets: cut off, paused, damaged, and large."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from modelworks.events import Envelope, UploadRefused
from modelworks.kit.service import listen
from modelworks.registry.settings import RegistrySettings

from .conftest import ROOT, Hub

M = "acme/magika"
Eventually = Callable[..., Any]
MIB = 1024 * 1024


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def key(digest: str) -> str:
    return f"blobs/shared/acme/sha256/{digest[:2]}/{digest}"


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[tuple[str, int]]:
    """The app behind uvicorn on a free port."""
    sock: socket.socket = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server._serve(sockets=[sock]))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        host, port = sock.getsockname()
        yield host, port
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def address(hub: Hub) -> AsyncIterator[tuple[str, int]]:
    await hub.create()
    async with serving(hub.service.app) as address:
        yield address


@pytest.fixture
async def http(address: tuple[str, int], issuer: Any) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://{address[0]}:{address[1]}"
    async with httpx.AsyncClient(base_url=url, headers=issuer.headers(), timeout=60) as http:
        yield http


async def start_upload(address: tuple[str, int], issuer: Any, digest: str, *, length: int, sent: bytes) -> Any:
    """A request whose body stops after `sent`; returns the open streams."""
    reader, writer = await asyncio.open_connection(*address)
    head = (
        f"PUT {ROOT}/{M}/blobs/{digest} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
        f"Authorization: {issuer.headers()['Authorization']}\r\n\r\n"
    )
    writer.write(head.encode() + sent)
    await writer.drain()
    return reader, writer


async def nothing_left(hub: Hub, digest: str) -> None:
    """Nothing is readable under the digest, and no temporary file stays."""
    assert (await hub.http.head(f"{ROOT}/{M}/blobs/{digest}")).status_code == 404
    assert [info.key async for info in hub.stores.objects.list("blobs/")] == []


async def test_a_sender_that_goes_away_leaves_nothing_and_is_told_of(
    hub: Hub, address: tuple[str, int], issuer: Any, heard: list[Envelope], eventually: Eventually
) -> None:
    """INVARIANT: no part of an upload is ever readable.

    What would break it: writing to the final name before the digest is known.
    """
    data = b"x" * 3 * MIB
    _, writer = await start_upload(address, issuer, sha(data), length=len(data), sent=data[: 2 * MIB])

    writer.transport.abort()

    told = await eventually(lambda: [e for e in heard if isinstance(e.event, UploadRefused)])
    assert (told[0].event.reason, told[0].event.actual_sha256) == ("truncated", None)
    assert told[0].event.size_bytes <= 2 * MIB
    assert told[0].actor == "tester"
    await nothing_left(hub, sha(data))
    await hub.upload(data)


async def test_a_sender_that_closes_its_half_early_leaves_nothing(
    hub: Hub, address: tuple[str, int], issuer: Any, heard: list[Envelope], eventually: Eventually
) -> None:
    _, writer = await start_upload(address, issuer, sha(b"whole"), length=5, sent=b"who")

    writer.write_eof()

    told = await eventually(lambda: [e.event for e in heard if isinstance(e.event, UploadRefused)])
    assert (told[0].reason, told[0].actual_sha256) == ("truncated", None)
    await nothing_left(hub, sha(b"whole"))
    writer.close()


class TestImpatience:
    @pytest.fixture
    def settings(self) -> RegistrySettings:
        return RegistrySettings(upload_idle_ms_max=50)

    async def test_a_sender_that_pauses_too_long_is_answered_and_leaves_nothing(
        self, hub: Hub, address: tuple[str, int], issuer: Any, heard: list[Envelope], eventually: Eventually
    ) -> None:
        reader, writer = await start_upload(address, issuer, sha(b"whole"), length=5, sent=b"who")

        answer = await reader.readuntil(b"\r\n")

        assert answer.startswith(b"HTTP/1.1 400")
        told = await eventually(lambda: [e.event for e in heard if isinstance(e.event, UploadRefused)])
        assert told[0].reason == "truncated"
        await nothing_left(hub, sha(b"whole"))
        writer.close()


async def test_bytes_damaged_behind_the_first_chunk_break_the_transfer_off(hub: Hub, http: httpx.AsyncClient) -> None:
    """INVARIANT: a client never receives a complete file with other bytes than were committed.

    What would break it: sending the last chunk before the digest of the whole is known.
    """
    data = bytes(4 * MIB)
    await hub.committed({"w.bin": data})
    await hub.stores.objects.put(key(sha(data)), b"\1" + data[1:])

    received = 0

    async def read() -> None:
        nonlocal received
        async with http.stream("GET", f"{ROOT}/{M}/files/w.bin") as answer:
            assert answer.status_code == 200
            async for chunk in answer.aiter_raw():
                received += len(chunk)

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    assert received < len(data)
    metrics = (await hub.http.get("/metrics")).text
    assert "modelworks_registry_damaged_reads_total 1.0" in metrics


async def test_a_reader_that_goes_away_disturbs_nobody(hub: Hub, http: httpx.AsyncClient) -> None:
    data = bytes(8 * MIB)
    await hub.committed({"w.bin": data})

    async with http.stream("GET", f"{ROOT}/{M}/files/w.bin") as answer:
        assert answer.status_code == 200

    again = await http.get(f"{ROOT}/{M}/files/w.bin")
    assert sha(again.content) == sha(data)


async def test_a_head_over_a_socket_has_a_length_and_no_body(hub: Hub, http: httpx.AsyncClient) -> None:
    await hub.committed({"a": b"12345"})

    for _ in range(2):  # the connection stays usable
        answer = await http.head(f"{ROOT}/{M}/files/a")
        assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "5", b"")


async def test_an_upload_without_a_right_to_it_is_refused_before_its_bytes(hub: Hub, http: httpx.AsyncClient) -> None:
    asked: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        for n in range(4):
            asked.append(n)
            yield bytes(MIB)

    answer = await http.put(f"{ROOT}/{M}/blobs/{'0' * 64}", content=body(), headers={"Authorization": "Bearer x.y.z"})

    assert answer.status_code == 401
    await nothing_left(hub, "0" * 64)


async def test_memory_does_not_grow_with_the_file(hub: Hub, http: httpx.AsyncClient) -> None:
    """INVARIANT: the size of a file is bounded by the disk, not by memory.

    What would break it: reading a body or a blob whole anywhere on its way.
    """
    blocks, block = 192, bytes(range(256)) * 4096
    digest = hashlib.sha256()
    for _ in range(blocks):
        digest.update(block)
    url = f"{ROOT}/{M}/blobs/{digest.hexdigest()}"
    await hub.upload(block)  # warm
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def body() -> AsyncIterator[bytes]:
        for _ in range(blocks):
            yield block

    sent = await http.put(url, content=body(), headers={"Content-Length": str(blocks * len(block))})
    received = hashlib.sha256()
    async with http.stream("GET", url) as answer:
        async for chunk in answer.aiter_raw():
            received.update(chunk)

    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sent.status_code == 201, sent.text
    assert received.hexdigest() == digest.hexdigest()
    assert grown_kib < 48 * 1024, f"{grown_kib} KiB more for a file of {blocks} MiB"
