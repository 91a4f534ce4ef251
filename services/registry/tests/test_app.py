"""The registry as a process: it starts, says what is missing, drains, and survives being killed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from modelworks.registry.settings import RegistrySettings
from pydantic import ValidationError

from .conftest import ROOT

ISSUER = "http://issuer.test"
M = "acme/magika"


async def run(environment: dict[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "modelworks.registry",
        env={"PATH": os.environ["PATH"], **environment}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


@asynccontextmanager
async def keys(issuer: Any) -> AsyncIterator[str]:
    """The issuer's JWKS over HTTP."""
    body = json.dumps(await issuer.fetch()).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@asynccontextmanager
async def running(
    issuer: Any, data: Path, eventually: Callable[..., Any]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    """A registry in a process of its own, ready, and a client of it."""
    port = free_port()
    async with keys(issuer) as jwks:
        process = await run({
            "MODELWORKS_ISSUER": ISSUER, "MODELWORKS_JWKS_URL": jwks, "MODELWORKS_PORT": str(port),
            "STORES_COLUMN": "embedded", "STORES_DATA": str(data),
        })  # fmt: skip
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=issuer.headers(), timeout=20) as http:
            try:
                await eventually(lambda: is_ready(http), within=30)
                yield process, http
            finally:
                if process.returncode is None:
                    process.kill()
                await process.communicate()


async def is_ready(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


async def test_a_start_without_an_issuer_ends_with_one_clear_line() -> None:
    process = await run({})

    _, errors = await process.communicate()

    assert process.returncode == 1
    assert "registry: MODELWORKS_ISSUER is not set" in errors.decode().splitlines()[-1]
    assert "Traceback" not in errors.decode()


async def test_the_embedded_column_is_refused_in_production() -> None:
    process = await run({"MODELWORKS_ISSUER": ISSUER, "MODELWORKS_ENVIRONMENT": "production"})

    _, errors = await process.communicate()

    assert process.returncode == 1
    assert "STORES_COLUMN=real" in errors.decode().splitlines()[-1]


@pytest.mark.parametrize("name", ["UPLOAD_BYTES_MAX", "REFS_MAX", "SWEEP_MS", "PAGE_MAX"])
def test_settings_out_of_bounds_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"REGISTRY_{name}", "0")

    with pytest.raises(ValidationError, match=name.lower()):
        RegistrySettings()


def test_every_setting_is_described_and_bounded() -> None:
    for name, field in RegistrySettings.model_fields.items():
        assert field.description, name
        assert len(field.metadata) == 2, name


async def test_what_was_answered_survives_kill_9(issuer: Any, tmp_path: Path, eventually: Callable[..., Any]) -> None:
    """INVARIANT: a commit that was answered is there after a crash, and one that was not is whole or absent.

    What would break it: an answer before the log entry is durable, or a ref that points at objects not yet written.
    """
    data = tmp_path / "data"
    answered: list[str] = []
    blob = b"weights"
    digest = hashlib.sha256(blob).hexdigest()

    async def commit_on(http: httpx.AsyncClient) -> None:
        for n in range(10_000):
            body = {"message": str(n), "operations": [{"op": "put", "path": f"f{n}", "sha256": digest}]}
            answer = await http.post(f"{ROOT}/{M}/commits", json=body)
            assert answer.status_code == 201, answer.text
            answered.append(answer.json()["revision"])

    async with running(issuer, data, eventually) as (process, http):
        assert (await http.post(ROOT, json={"name": M})).status_code == 201
        assert (await http.put(f"{ROOT}/{M}/blobs/{digest}", content=blob)).status_code == 201
        committing = asyncio.create_task(commit_on(http))
        await eventually(lambda: len(answered) >= 25)
        process.kill()
        with pytest.raises(httpx.TransportError):
            await committing

    async with running(issuer, data, eventually) as (process, http):
        view = (await http.get(f"{ROOT}/{M}/revisions/main")).json()
        log = []
        cursor: str | None = None
        while True:
            params = {"limit": "100"} if cursor is None else {"limit": "100", "cursor": cursor}
            page = (await http.get(f"{ROOT}/{M}/commits", params=params)).json()
            log += [item["revision"] for item in page["items"]]
            cursor = page["cursor"]
            if cursor is None:
                break
        assert log[::-1][: len(answered)] == answered
        assert len(log) - len(answered) in (0, 1)
        assert len(view["tree"]) == len(log)
        body = {"message": "on", "operations": [{"op": "put", "path": "after", "sha256": digest}]}
        assert (await http.post(f"{ROOT}/{M}/commits", json=body)).status_code == 201

        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 20)
    assert process.returncode == 0
