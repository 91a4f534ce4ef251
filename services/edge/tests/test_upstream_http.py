"""Services in other processes: streamed both ways, honest when they break."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from modelworks.edge.app import build
from modelworks.edge.settings import EdgeSettings
from modelworks.kit.platform import Platform
from modelworks.stores.stores import Stores
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from conftest import Issuer
from services.edge.tests.serving import serving


class Service:
    """Answers in the ways a service can."""

    def __init__(self) -> None:
        self.received = 0
        self.first_chunk = asyncio.Event()
        self.disconnected = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        answer: dict[str, Callable[[], Awaitable[Any]]] = {"slow": self._slow, "break": self._break}
        if scope["path"].endswith("/upload"):
            try:
                async for chunk in request.stream():
                    self.received += len(chunk)
                    self.first_chunk.set()
            except Exception:
                self.disconnected.set()
                raise
            await JSONResponse({"received": self.received})(scope, receive, send)
            return
        kind = scope["path"].rpartition("/")[2]
        if kind in answer:
            await (await answer[kind]())(scope, receive, send)
            return
        await JSONResponse(
            {"raw": scope["raw_path"].decode(), "query": scope["query_string"].decode(), "host": request.headers["host"]},
            headers={"X-Own": "1", "Connection": "keep-alive"},
        )(scope, receive, send)  # fmt: skip

    async def _slow(self) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            for number in range(3):
                yield bytes([number]) * 1000
                await asyncio.sleep(0.05)

        return StreamingResponse(chunks())

    async def _break(self) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"x" * 1000
            raise RuntimeError("the service died")

        return StreamingResponse(chunks(), headers={"Content-Length": "5000"})


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def door(stores: Stores, platform: Platform, service: Service) -> AsyncIterator[str]:
    async with serving(service) as registry:
        settings = EdgeSettings(registry_url=registry, audit_url="http://127.0.0.1:9", stream_ping_seconds=0.2)
        edge = build(stores, settings, platform)
        async with edge.run(), serving(edge.app) as url:
            yield url


async def test_path_and_query_arrive_as_they_were_sent(door: str, issuer: Issuer) -> None:
    async with httpx.AsyncClient(base_url=door, headers=issuer.headers()) as http:
        answer = await http.get("/api/v1/repositories/a/b/revisions/x%2Fy?q=%20%2F&q=2")

    assert answer.json()["raw"] == "/api/v1/repositories/a/b/revisions/x%2Fy"
    assert answer.json()["query"] == "q=%20%2F&q=2"
    assert answer.headers["x-own"] == "1"


async def test_large_upload_is_streamed(door: str, issuer: Issuer, service: Service) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield os.urandom(256 * 1024)

    async with httpx.AsyncClient(base_url=door, headers=issuer.headers(), timeout=30) as http:
        answer = await http.put("/api/v1/repositories/a/b/upload", content=body())

    assert answer.json() == {"received": 16 * 1024 * 1024}


async def test_answer_is_streamed(door: str, issuer: Issuer) -> None:
    async with (
        httpx.AsyncClient(base_url=door, headers=issuer.headers()) as http,
        http.stream("GET", "/api/v1/repositories/a/b/slow") as answer,
    ):
        chunks = [chunk async for chunk in answer.aiter_raw()]

    assert b"".join(chunks) == b"\0" * 1000 + b"\1" * 1000 + b"\2" * 1000
    assert len(chunks) >= 3


async def test_answer_that_breaks_off_breaks_the_connection(door: str, issuer: Issuer) -> None:
    async with httpx.AsyncClient(base_url=door, headers=issuer.headers()) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get("/api/v1/repositories/a/b/break")


async def test_client_that_leaves_is_seen_by_the_service(door: str, issuer: Issuer, service: Service) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        await service.first_chunk.wait()
        raise RuntimeError("the client dies")

    async with httpx.AsyncClient(base_url=door, headers=issuer.headers()) as http:
        with pytest.raises(RuntimeError, match="the client dies"):
            await http.put("/api/v1/repositories/a/b/upload", content=body())

    await asyncio.wait_for(service.disconnected.wait(), 5)


async def test_absent_service_is_unavailable_and_shows_in_readiness(door: str, issuer: Issuer) -> None:
    async with httpx.AsyncClient(base_url=door, headers=issuer.headers()) as http:
        answer = await http.get("/api/v1/audit/events")
        ready = await http.get("/readyz")

    assert answer.status_code == 503
    assert "audit" in answer.json()["detail"]
    assert ready.status_code == 503
    assert "audit" in ready.json()["checks"]["audit"]
