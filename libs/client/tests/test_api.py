"""The client against a small server: errors become themselves again, damaged transfers are refused."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from modelworks.client import AsyncModelworks, static_token
from modelworks.client.credentials import ClientCredentials
from modelworks.kit.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    ModelworksError,
    NotFound,
    RateLimited,
    TooLarge,
    Unauthenticated,
    Unavailable,
    VersionConflict,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

DATA = b"weights" * 1000
SHA = hashlib.sha256(DATA).hexdigest()


def app(seen: list[Any]) -> Starlette:
    async def problem(request: Request) -> Response:
        status = int(request.path_params["status"])
        body = {
            "detail": "said so",
            "code": request.query_params.get("code", "x"),
            "data": {"action": "a", "resource": "r"},
        }
        return JSONResponse(body, status, headers={"Retry-After": "7"})

    async def file(request: Request) -> Response:
        damaged = request.path_params["path"] == "damaged"
        return Response(DATA[:-1] + b"!" if damaged else DATA, headers={"ETag": f'"{SHA}"'})

    async def blob(request: Request) -> Response:
        if request.method == "HEAD":
            return Response(status_code=404)
        seen.append(await request.body())
        return JSONResponse({}, 201)

    async def token(request: Request) -> Response:
        form = parse_qs((await request.body()).decode())
        seen.append(" ".join(form.get("scope", [])))
        if request.headers["authorization"].endswith("YTpi"):  # a:b
            return JSONResponse({"access_token": f"t{len(seen)}", "expires_in": 600})
        return JSONResponse({"error": "invalid_client", "error_description": "no such client"}, 401)

    async def picky(request: Request) -> Response:
        return JSONResponse(
            {"with": request.headers["authorization"]}, 200 if "t2" in request.headers["authorization"] else 401
        )

    return Starlette(
        routes=[
            Route("/problem/{status}", problem),
            Route("/api/v1/repositories/a/b/files/{path}", file),
            Route("/api/v1/repositories/a/b/blobs/{sha}", blob, methods=["HEAD", "PUT"]),
            Route("/oauth/token", token, methods=["POST"]),
            Route("/picky", picky),
        ]
    )


@pytest.fixture
def seen() -> list[Any]:
    return []


@pytest.fixture
async def server(seen: list[Any]) -> AsyncIterator[str]:
    import asyncio

    import uvicorn
    from modelworks.kit.service import listen

    sock = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app(seen), log_level="error", lifespan="off"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server._serve(sockets=[sock]))
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    server.should_exit = True
    await task


@pytest.fixture
async def client(server: str) -> AsyncIterator[AsyncModelworks]:
    async with AsyncModelworks(server, static_token("t")) as made:
        yield made


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid-input", InvalidInput), (401, "x", Unauthenticated), (403, "x", Forbidden), (404, "not-found", NotFound),
        (409, "conflict", Conflict), (412, "version-conflict", VersionConflict), (413, "too-large", TooLarge),
        (429, "rate-limited", RateLimited), (503, "store-unavailable", Unavailable), (502, "x", Unavailable), (418, "x", ModelworksError),
    ],
)  # fmt: skip
async def test_answer_becomes_the_error_it_stands_for(
    client: AsyncModelworks, status: int, code: str, kind: type[ModelworksError]
) -> None:
    with pytest.raises(kind, match="said so"):
        await client.http.json("GET", f"/problem/{status}?code={code}")


async def test_download_is_verified_and_whole(client: AsyncModelworks, tmp_path: Path) -> None:
    moved: list[int] = []

    await client.download("a/b", "model", "main", tmp_path / "m", progress=moved.append)

    assert (tmp_path / "m").read_bytes() == DATA
    assert sum(moved) == len(DATA)


async def test_damaged_download_leaves_nothing(client: AsyncModelworks, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="damaged"):
        await client.download("a/b", "damaged", "main", tmp_path / "m")

    assert list(tmp_path.iterdir()) == []


async def test_digest_that_the_caller_knows_is_what_counts(client: AsyncModelworks, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="0000"):
        await client.download("a/b", "model", "main", tmp_path / "m", sha256="0" * 64)


async def test_file_above_the_bound_is_not_read_whole(client: AsyncModelworks) -> None:
    with pytest.raises(TooLarge, match="100"):
        await client.read_file("a/b", "model", bytes_max=100)


async def test_upload_streams_a_file_and_gives_its_digest(
    client: AsyncModelworks, seen: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(DATA)

    assert await client.upload("a/b", tmp_path / "f") == SHA
    assert seen == [DATA]


@pytest.mark.parametrize("name", ["a", "a/b/c", "/b", "a/", ""])
async def test_malformed_name_is_refused_before_anything_is_sent(client: AsyncModelworks, name: str) -> None:
    with pytest.raises(InvalidInput, match="namespace/name"):
        await client.repository(name)


async def test_refused_token_is_renewed_once(server: str, seen: list[Any]) -> None:
    source = ClientCredentials(token_url=f"{server}/oauth/token", client_id="a", client_secret="b", scopes=("audit",))
    async with AsyncModelworks(server, source) as client:
        answer = await client.http.json("GET", "/picky")

    assert answer == {"with": "Bearer t2"}
    assert seen == ["audit", "audit"]


async def test_wrong_secret_is_a_clear_refusal(server: str) -> None:
    source = ClientCredentials(token_url=f"{server}/oauth/token", client_id="a", client_secret="wrong")

    with pytest.raises(Unauthenticated, match="no such client"):
        await source()


async def test_absent_server_is_unavailable() -> None:
    async with AsyncModelworks("http://127.0.0.1:9", static_token("t"), timeout_seconds=2) as client:
        with pytest.raises(Unavailable, match="no answer"):
            await client.repository("a/b")
