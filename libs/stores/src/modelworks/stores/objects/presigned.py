"""Presigned requests of the folder store: who holds a signed URL may send that one request until it expires.

GET|PUT <base>/<key>?expires=<unix seconds>&method=<method>&signature=<hex HMAC-SHA256>
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from modelworks.kit.errors import Forbidden, InvalidInput, NotFound, TooLarge
from modelworks.stores.objects.keys import not_found
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

if TYPE_CHECKING:
    from modelworks.stores.objects.port import Objects

_SECRET_BYTES = 32
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class Signer:
    """Makes and checks signatures with the folder's secret."""

    def __init__(self, secret: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._clock = clock

    @classmethod
    def load(cls, path: Path) -> Signer:
        """The secret of a file (mode 0600), which is made when missing."""
        try:
            # Written elsewhere and linked here: of two processes that start at once, both read the same secret.
            fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
            descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_SECRET_BYTES))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(fresh, path)
            finally:
                fresh.unlink()
        except FileExistsError:
            pass
        return cls(path.read_bytes())

    def query(self, method: str, key: str, *, expires: timedelta) -> str:
        """The query string that signs a request."""
        until = int(self._clock() + expires.total_seconds())
        return urlencode({"expires": until, "method": method, "signature": self._sign(method, key, until)})

    def verify(self, method: str, key: str, query: Mapping[str, str]) -> None:
        """Raises Forbidden unless the query signs this method of this key, and has not expired."""
        until = query.get("expires", "")
        number = int(until) if re.fullmatch(r"\d{1,12}", until, re.ASCII) else 0
        given = query.get("signature", "")
        # Every check is made before any answer: a refusal does not tell which one failed.
        signed = hmac.compare_digest(self._sign(method, key, number).encode(), given.encode("utf-8", "replace"))
        if not signed or query.get("method") != method or number < self._clock():
            raise Forbidden(
                "presigned URL is altered, for another method, or has expired: ask for a new one",
                action=f"object:{method.lower()}", resource=key[:900], reason="token-invalid",
            )  # fmt: skip

    def _sign(self, method: str, key: str, until: int) -> str:
        return hmac.new(self._secret, f"{method}\n{key}\n{until}".encode(), hashlib.sha256).hexdigest()


class PresignedApp:
    """ASGI app over an object store: presigned GET (with Range) and PUT, nothing else.

    To be mounted in an app of `kit.http.create_app`, which renders the errors that this raises and tells the audit of
    refused signatures.
    """

    def __init__(self, objects: Objects, signer: Callable[[], Awaitable[Signer]], *, put_bytes_max: int) -> None:
        self._objects = objects
        self._signer = signer
        self._put_bytes_max = put_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        # Mounted below a path, the scope's path is still the whole one (ASGI 3, `root_path`).
        key = scope["path"].removeprefix(scope.get("root_path", "")).lstrip("/")
        try:
            response = await self._answer(request, key)
        except ClientDisconnect:
            return  # in the middle of a body: nothing was written, and nobody is there to be told
        await response(scope, receive, send)

    async def _answer(self, request: Request, key: str) -> Response:
        (await self._signer()).verify(request.method, key, request.query_params)
        if request.method == "PUT":
            return await self._put(request, key)
        if request.method == "GET":
            return await self._get(request, key)
        raise InvalidInput(f"{request.method} is not served here: use GET or PUT")

    async def _put(self, request: Request, key: str) -> Response:
        announced = request.headers.get("content-length", "")
        size_bytes = int(announced) if re.fullmatch(r"\d{1,18}", announced, re.ASCII) else None
        self._bound(size_bytes or 0, key)

        async def body() -> AsyncIterator[bytes]:
            received = 0
            async for chunk in request.stream():
                received += len(chunk)
                self._bound(received, key)
                if chunk:
                    yield chunk

        info = await self._objects.put(key, body(), size_bytes=size_bytes)
        return Response(status_code=200, headers={"ETag": f'"{info.etag}"'})

    def _bound(self, size_bytes: int, key: str) -> None:
        if size_bytes > self._put_bytes_max:
            raise TooLarge(f"body for {key!r} has more than {self._put_bytes_max} bytes: upload it in parts")

    async def _get(self, request: Request, key: str) -> Response:
        info = await self._objects.head(key)
        if info is None:
            raise NotFound(not_found(key))
        headers = {"ETag": f'"{info.etag}"', "Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff"}
        start, length, status = 0, info.size_bytes, 200
        wanted = _RANGE.fullmatch(request.headers.get("range", "").strip())
        if wanted and any(wanted.groups()):
            bounds = _resolve(wanted[1], wanted[2], info.size_bytes)
            if bounds is None:
                return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{info.size_bytes}"})
            start, length = bounds
            status = 206
            headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{info.size_bytes}"
        headers["Content-Length"] = str(length)
        body = self._objects.get(key, start=start, length=length)
        return StreamingResponse(body, status, headers, media_type="application/octet-stream")


def _resolve(first: str, last: str, size_bytes: int) -> tuple[int, int] | None:
    """Start and length of a single range (RFC 9110 section 14.1.2), None when it cannot be satisfied."""
    if not first:
        length = min(int(last), size_bytes)
        return (size_bytes - length, length) if length else None
    start = int(first)
    end = min(int(last), size_bytes - 1) if last else size_bytes - 1
    return (start, end - start + 1) if start < size_bytes and start <= end else None
