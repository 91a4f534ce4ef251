"""Where access tokens come from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import httpx
from modelworks.kit.errors import Unauthenticated, Unavailable

TokenSource = Callable[[], Awaitable[str]]
"""Gives a valid access token each time it is asked."""


def static_token(token: str) -> TokenSource:
    """A token that somebody else obtained."""

    async def give() -> str:
        return token

    return give


class ClientCredentials:
    """OAuth client credentials (RFC 6749 section 4.4); the token is kept until shortly before it expires."""

    def __init__(
        self,
        *,
        token_url: str,
        client_id: str,
        client_secret: str,
        scopes: tuple[str, ...] = (),
        timeout_seconds: float = 10,
    ) -> None:
        """`scopes`: empty asks for all that the client may have."""
        self._token_url = token_url
        self._auth = httpx.BasicAuth(client_id, client_secret)
        self._client_id = client_id
        self._scopes = scopes
        self._timeout_seconds = timeout_seconds
        self._token = ""
        self._expires_at = float("-inf")
        self._asking = asyncio.Lock()

    async def __call__(self) -> str:
        """A valid access token.

        Raises:
            Unauthenticated: the token endpoint refused the credentials.
            Unavailable: the token endpoint did not answer.
        """
        async with self._asking:
            if time.monotonic() >= self._expires_at:
                await self._ask()
            return self._token

    def forget(self) -> None:
        """Ask for a new token next time: the present one was refused."""
        self._expires_at = float("-inf")

    async def _ask(self) -> None:
        form = {"grant_type": "client_credentials", **({"scope": " ".join(self._scopes)} if self._scopes else {})}
        try:
            async with httpx.AsyncClient(timeout=self._timeout_seconds) as http:
                answer = await http.post(self._token_url, data=form, auth=self._auth)
            body = answer.json() if answer.headers.get("content-type", "").startswith("application/json") else {}
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable(f"the token endpoint {self._token_url} did not answer: {error!r}") from error
        if answer.status_code in (400, 401):
            reason = body.get("error_description") or body.get("error") or answer.status_code
            raise Unauthenticated(f"client {self._client_id!r} was refused by {self._token_url}: {reason}")
        if answer.status_code != 200 or "access_token" not in body:
            raise Unavailable(f"the token endpoint {self._token_url} answered {answer.status_code}")
        self._token = body["access_token"]
        lifetime = float(body.get("expires_in", 60))
        # A token must outlive the request it is sent with.
        self._expires_at = time.monotonic() + max(1.0, lifetime - min(30.0, lifetime / 4))
