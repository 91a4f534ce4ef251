"""HTTP with the suite's errors: an answer that is not a success becomes the error it stands for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
from modelworks.client.credentials import ClientCredentials, TokenSource
from modelworks.kit import errors
from modelworks.kit.errors import ModelworksError, Unavailable
from modelworks.kit.telemetry import inject

_BY_CODE: dict[str, type[ModelworksError]] = {
    error.code: error
    for error in (
        errors.InvalidInput, errors.NotFound, errors.Conflict, errors.VersionConflict, errors.TooLarge,
        errors.DeadlineExceeded, errors.Unavailable, errors.StoreUnavailable,
    )
}  # fmt: skip
_BY_STATUS: dict[int, type[ModelworksError]] = {error.status: error for error in _BY_CODE.values()}


T = TypeVar("T")


class Transport:
    """One connection pool to one suite."""

    def __init__(self, url: str, token: TokenSource, *, timeout_seconds: float = 60) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self.timeout_seconds = timeout_seconds
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(timeout_seconds, connect=5),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=16),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def json(self, method: str, path: str, **request: Any) -> Any:
        """Send a request and return the JSON of its answer (None when it has no body).

        Raises:
            ModelworksError: the subclass that the answer stands for.
        """
        async with self.stream(method, path, **request) as answer:
            body = await answer.aread()
        return answer.json() if body else None

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **request: Any
    ) -> AsyncIterator[httpx.Response]:
        """Send a request; the body of a success is left to the caller. A refused token is renewed once.

        Raises:
            ModelworksError: the subclass that the answer stands for.
        """
        repeatable = "content" not in request or isinstance(request["content"], (bytes, str))
        for attempt in (1, 2):
            sent = {**inject(), **(headers or {}), "Authorization": f"Bearer {await self._token()}"}
            try:
                async with self._http.stream(method, path, headers=sent, **request) as answer:
                    if answer.status_code == 401 and attempt == 1 and repeatable and self._renew():
                        continue
                    if not answer.is_success:
                        await answer.aread()
                        raise error_of(answer)
                    yield answer
                    return
            except httpx.HTTPError as error:
                raise Unavailable(f"{method} {self.url}{path}: no answer ({type(error).__name__}: {error})") from error

    async def bulk(self, move: Callable[[str, Mapping[str, str], threading.Event], T], path: str) -> T:
        """Run a transfer of `modelworks.client.bulk` in a thread; a cancelled caller stops it."""
        headers = {**inject(), "Authorization": f"Bearer {await self._token()}"}
        stop = threading.Event()
        moving = asyncio.ensure_future(asyncio.to_thread(move, self.url + path, headers, stop))
        try:
            return await asyncio.shield(moving)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.gather(moving, return_exceptions=True)
            raise

    def _renew(self) -> bool:
        if isinstance(self._token, ClientCredentials):
            self._token.forget()
            return True
        return False


def error_of(answer: httpx.Response) -> ModelworksError:
    """The error that an answer stands for, with the service's own message."""
    try:
        body = answer.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    detail = str(body.get("detail") or body.get("error") or answer.text[:200] or answer.reason_phrase)
    given = body.get("data")
    data: dict[str, Any] = given if isinstance(given, dict) else {}
    status = answer.status_code
    if status == 401:
        return errors.Unauthenticated(detail)
    if status == 403:
        return errors.Forbidden(detail, action=str(data.get("action", "?")), resource=str(data.get("resource", "?")))
    if status == 429:
        retry_after = answer.headers.get("retry-after", "1")
        return errors.RateLimited(detail, retry_after_seconds=int(retry_after) if retry_after.isdigit() else 1)
    kind = _BY_CODE.get(str(body.get("code"))) or _BY_STATUS.get(status)
    if kind is None:
        kind = Unavailable if status >= 500 else ModelworksError
    return kind(detail, **data)
