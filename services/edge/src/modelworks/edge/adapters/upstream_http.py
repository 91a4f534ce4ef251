"""A service in another process: requests and answers streamed over pooled HTTP/1.1 connections by aiohttp."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from modelworks.kit.errors import Unavailable
from starlette.types import Receive, Scope, Send
from yarl import URL

# RFC 9110 section 7.6.1: these belong to one connection and are not forwarded.
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
     b"transfer-encoding", b"upgrade", b"host"}
)  # fmt: skip
_CHUNK_BYTES = 256 * 1024


class HttpUpstream:
    """Forwards to `url`. Connects on first use."""

    def __init__(self, name: str, url: str, *, connections_max: int, timeout_seconds: float) -> None:
        self._name = name
        self._url = url.rstrip("/")
        self._connections_max = connections_max
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request.

        Raises:
            Unavailable: the service cannot be reached, or broke off before it answered.
        """
        target = self._url + scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        if scope["query_string"]:
            target += "?" + scope["query_string"].decode("latin-1")
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"] if k not in _HOP_BY_HOP]
        if scope.get("client"):
            # Appended after what the caller claims: a service that trusts this door reads from the right.
            headers.append(("x-forwarded-for", scope["client"][0]))
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        started = False
        try:
            async with self._open().request(
                scope["method"], URL(target, encoded=True), headers=headers,
                data=_body(receive) if has_body else None, allow_redirects=False,
            ) as answer:  # fmt: skip
                raw = [(k.lower(), v) for k, v in answer.raw_headers if k.lower() not in _HOP_BY_HOP]
                await send({"type": "http.response.start", "status": answer.status, "headers": raw})
                started = True
                async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if started:
                # The status line is gone: breaking the connection is the only honest answer left.
                raise ConnectionError(f"{self._name} broke off while it answered") from error
            raise Unavailable(f"service {self._name} does not answer: try again in a moment") from error

    async def check(self) -> None:
        """Readiness of the service itself.

        Raises:
            Unavailable: it does not answer, or says that it is not ready.
        """
        try:
            async with self._open().get(f"{self._url}/readyz", timeout=aiohttp.ClientTimeout(total=2)) as answer:
                if answer.status != 200:
                    raise Unavailable(f"{self._name} is not ready")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{self._name} does not answer at {self._url}") from error

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections_max, keepalive_timeout=20),
                timeout=self._timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )  # fmt: skip
        return self._session


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            # The service must see a broken request, not a complete shorter one.
            raise ConnectionResetError("the client left")
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body", False):
            return
