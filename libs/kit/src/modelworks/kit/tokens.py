"""Checks access tokens in process: JWT access tokens by RFC 9068, signed with ES256.

Every service checks for itself; nobody trusts a header set by the edge. Keys
come from the issuer's JWKS and are cached; an unknown `kid` asks for them again
at most every `refresh_min`, so that a flood of forged ids costs nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from modelworks.kit.errors import Unauthenticated, Unavailable
from modelworks.kit.principal import Principal

KeyFetcher = Callable[[], Awaitable[Mapping[str, Any]]]
"""Reads the issuer's JWKS document."""

ALGORITHM = "ES256"
_MAX_TOKEN_CHARACTERS = 8_192
_MAX_JWKS_BYTES = 64 * 1024
_MAX_KEYS = 16
_LEEWAY_SECONDS = 5
_NOT_OURS = "access token is not valid here"


def fetch_over_http(url: str, *, timeout: timedelta = timedelta(seconds=5)) -> KeyFetcher:
    """Reads the JWKS from `url`; refuses documents above 64 KiB.

    Raises (the fetcher):
        Unavailable: the issuer did not answer with a JWKS.
    """

    async def fetch() -> Mapping[str, Any]:
        try:
            async with (
                httpx.AsyncClient(timeout=timeout.total_seconds()) as client,
                client.stream("GET", url) as answer,
            ):
                answer.raise_for_status()
                body = b""
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > _MAX_JWKS_BYTES:
                        raise Unavailable(f"JWKS at {url} is larger than {_MAX_JWKS_BYTES} bytes")
            document = httpx.Response(200, content=body).json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable(f"keys of the issuer could not be read from {url}: {error!r}") from error
        if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
            raise Unavailable(f"{url} did not answer with a JWKS document")
        return document

    return fetch


class TokenVerifier:
    """Verifies bearer tokens for one issuer and one audience."""

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        fetch_keys: KeyFetcher,
        refresh_min: timedelta = timedelta(seconds=30),
        refresh_max: timedelta = timedelta(minutes=10),
        cache_size: int = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`refresh_max`: keys are read again after this long, so that a retired key stops verifying."""
        self._issuer = issuer
        self._audience = audience
        self._fetch_keys = fetch_keys
        self._refresh_min = refresh_min.total_seconds()
        self._refresh_max = refresh_max.total_seconds()
        self._clock = clock
        self._keys: dict[str, KeySet] = {}
        self._fetched_at = float("-inf")
        self._fetching = asyncio.Lock()
        self._cache_size = cache_size
        # Digest of the token, never the token: a memory dump gives no credentials away.
        self._cache: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()

    async def verify(self, token: str) -> Principal:
        """The token's principal.

        Raises:
            Unauthenticated: the token is malformed, unsigned, expired, foreign or for another audience.
            Unavailable: the issuer's keys cannot be read and none are cached.
        """
        if len(token) > _MAX_TOKEN_CHARACTERS:
            raise Unauthenticated(f"{_NOT_OURS}: it is longer than {_MAX_TOKEN_CHARACTERS} characters")
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        now = self._clock()
        if now - self._fetched_at > self._refresh_max:
            await self._refresh(force=True)
            self._cache.clear()
        cached = self._cache.get(digest)
        if cached is not None and now < cached[0]:
            return cached[1]
        claims = await self._decode(token)
        principal = self._validate(claims, now)
        self._cache[digest] = (float(claims["exp"]), principal)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return principal

    async def _decode(self, token: str) -> dict[str, Any]:
        header = _peek_header(token)
        kid = header.get("kid")
        if not isinstance(kid, str) or not kid:
            raise Unauthenticated(f"{_NOT_OURS}: its header has no key id (kid)")
        if str(header.get("typ", "")).lower() not in ("at+jwt", "application/at+jwt"):
            # RFC 9068 section 4: an ID token must not pass for an access token.
            raise Unauthenticated(f"{_NOT_OURS}: it is not an access token (typ at+jwt)")
        if kid not in self._keys:
            await self._refresh()
        key = self._keys.get(kid)
        if key is None:
            raise Unauthenticated(f"{_NOT_OURS}: signed by a key this issuer does not publish")
        try:
            return dict(jwt.decode(token, key, algorithms=[ALGORITHM]).claims)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise Unauthenticated(f"{_NOT_OURS}: {type(error).__name__}") from error

    def _validate(self, claims: Mapping[str, Any], now: float) -> Principal:
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if claims.get("iss") != self._issuer:
            raise Unauthenticated(f"{_NOT_OURS}: another issuer made it")
        if self._audience not in audiences:
            raise Unauthenticated(f"{_NOT_OURS}: it is not for audience {self._audience!r}")
        times = {name: claims.get(name) for name in ("exp", "iat", "nbf")}
        for name, value in times.items():
            missing_allowed = name == "nbf" and value is None
            if not missing_allowed and (not isinstance(value, (int, float)) or isinstance(value, bool)):
                raise Unauthenticated(f"{_NOT_OURS}: claim {name} is missing or not a number")
        if claims["exp"] <= now - _LEEWAY_SECONDS:
            raise Unauthenticated("access token has expired: ask the token endpoint for a new one")
        if claims["iat"] > now + _LEEWAY_SECONDS or (times["nbf"] or 0) > now + _LEEWAY_SECONDS:
            raise Unauthenticated(f"{_NOT_OURS}: it is not valid yet")
        subject, token_id = claims.get("sub"), claims.get("jti")
        if not isinstance(subject, str) or not subject or not isinstance(token_id, str) or not token_id:
            raise Unauthenticated(f"{_NOT_OURS}: claims sub and jti are required")
        roles = claims.get("roles", [])
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise Unauthenticated(f"{_NOT_OURS}: claim roles is not a list of names")
        scopes = str(claims.get("scope", "")).split()
        return Principal(id=subject, roles=frozenset(roles), scopes=frozenset(scopes), token_id=token_id)

    async def _refresh(self, *, force: bool = False) -> None:
        async with self._fetching:
            age = self._clock() - self._fetched_at
            if age < self._refresh_min or (force and age <= self._refresh_max):
                return
            try:
                document = await self._fetch_keys()
            except Unavailable:
                if not self._keys or age > 2 * self._refresh_max:
                    raise
                return
            self._keys = {
                key["kid"]: KeySet.import_key_set({"keys": [dict(key)]})
                for key in document["keys"][:_MAX_KEYS]
                if isinstance(key, dict) and key.get("kty") == "EC" and key.get("crv") == "P-256" and key.get("kid")
            }
            self._fetched_at = self._clock()


def _peek_header(token: str) -> Mapping[str, Any]:
    import base64
    import binascii
    import json

    head, dot, _ = token.partition(".")
    try:
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))) if dot else None
    except (binascii.Error, ValueError, RecursionError) as error:
        raise Unauthenticated(f"{_NOT_OURS}: it is not a JWT") from error
    if not isinstance(header, dict):
        raise Unauthenticated(f"{_NOT_OURS}: it is not a JWT")
    return header
