"""Checks access tokens in process: JWT access tokens by RFC 9068, signed with ES256.

Every service checks for itself; nobody trusts a header set by the edge. Keys
come from the issuer's JWKS and are cached; an unknown `kid` asks for them again
at most every `refresh_min`, so that a flood of forged ids costs nothing.

How long a retired key still verifies is bounded by `refresh_max`, and twice
that when the issuer is down: after it nothing verifies.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey
from modelworks.kit.errors import Unauthenticated, Unavailable
from modelworks.kit.logging import get_logger
from modelworks.kit.principal import Principal

KeyFetcher = Callable[[], Awaitable[Mapping[str, Any]]]
"""Reads the issuer's JWKS document."""

ALGORITHM = "ES256"
_MAX_TOKEN_CHARACTERS = 8_192
_MAX_JWKS_BYTES = 64 * 1024
_MAX_KEYS = 16
_MAX_NAME_CHARACTERS = 200  # what an event's Identifier may hold: every refusal names the principal
_LEEWAY_SECONDS = 5
_RETRY_SECONDS = 1.0
"""Pause between attempts while no keys are known at all: a service that starts before its issuer."""
_NOT_OURS = "access token is not valid here"

log = get_logger("tokens")


def fetch_over_http(url: str, *, timeout: timedelta = timedelta(seconds=5)) -> KeyFetcher:
    """Reads the JWKS from `url`; refuses documents above 64 KiB.

    Raises (the fetcher):
        Unavailable: the issuer did not answer with a JWKS.
    """

    async def fetch() -> Mapping[str, Any]:
        try:
            async with (
                httpx.AsyncClient(timeout=timeout.total_seconds()) as client,
                # Not compressed: a small answer must not unpack into a large one.
                client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as answer,
            ):
                answer.raise_for_status()
                body = b""
                async for chunk in answer.aiter_raw(64 * 1024):
                    body += chunk
                    if len(body) > _MAX_JWKS_BYTES:
                        raise Unavailable(f"JWKS at {url} is larger than {_MAX_JWKS_BYTES} bytes")
            document = json.loads(body)
        except (httpx.HTTPError, ValueError, RecursionError) as error:
            raise Unavailable(f"keys of the issuer could not be read from {url}: {error!r}") from error
        if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
            raise Unavailable(f"{url} did not answer with a JWKS document")
        return document

    return fetch


class IssuerKeys:
    """The issuer's published keys, cached: asked for when they are old or a key is not among them."""

    def __init__(
        self, fetch: KeyFetcher, *, refresh_min_seconds: float, refresh_max_seconds: float, clock: Callable[[], float]
    ) -> None:
        self._fetch = fetch
        self._refresh_min = refresh_min_seconds
        self._refresh_max = refresh_max_seconds
        self._clock = clock
        self._keys: dict[str, ECKey] = {}
        self._fetched_at = float("-inf")
        self._attempted_at = float("-inf")
        self._fetching = asyncio.Lock()
        self.generation = 0
        """Grows whenever the set of keys changes: what was verified before must be verified again."""

    async def freshen(self) -> None:
        """Ask again when the keys are older than `refresh_max`.

        Raises:
            Unavailable: the issuer does not answer, and there are no keys or they are older than twice `refresh_max`.
        """
        now = self._clock()
        if 0 <= now - self._fetched_at <= self._refresh_max:
            return
        # One asks; the others go on with what is known, as long as that may be used.
        if not (self._fetching.locked() and self._usable(now)):
            await self._refresh(lambda: not 0 <= self._clock() - self._fetched_at <= self._refresh_max)
        if not self._usable(self._clock()):
            raise Unavailable("the keys of the token issuer cannot be read now: tokens cannot be checked")

    async def find(self, kid: str) -> ECKey | None:
        """The key, or None when the issuer does not publish it. Asks again for an unknown one, within bounds."""
        if kid not in self._keys:
            await self._refresh(lambda: kid not in self._keys)
        return self._keys.get(kid)

    def _usable(self, now: float) -> bool:
        return bool(self._keys) and now - self._fetched_at <= 2 * self._refresh_max

    async def _refresh(self, wanted: Callable[[], bool]) -> None:
        async with self._fetching:
            now = self._clock()
            pause = self._refresh_min if self._keys else _RETRY_SECONDS
            if not wanted() or 0 <= now - self._attempted_at < pause:
                return
            self._attempted_at = now
            try:
                found = _usable_keys(await self._fetch())
            except Unavailable as error:
                log.warning("keys.not-read", error=error.message, known=len(self._keys))
                return
            self._fetched_at = self._clock()
            if _thumbprints(found) != _thumbprints(self._keys):
                self._keys = found
                self.generation += 1


def _usable_keys(document: Mapping[str, Any]) -> dict[str, ECKey]:
    """The ES256 keys of a JWKS by `kid`. What is malformed or ambiguous is left out: it must not verify anything.

    Raises:
        Unavailable: not one is usable.
    """
    keys: dict[str, ECKey] = {}
    ambiguous: set[str] = set()
    for entry in document["keys"][:_MAX_KEYS]:
        if not isinstance(entry, dict) or entry.get("kty") != "EC" or entry.get("crv") != "P-256":
            continue
        kid = entry.get("kid")
        if not isinstance(kid, str) or not kid or entry.get("use", "sig") != "sig":
            continue
        if entry.get("alg", ALGORITHM) != ALGORITHM:
            continue
        try:
            key = ECKey.import_key({name: entry[name] for name in ("kty", "crv", "x", "y")} | {"kid": kid})
        except (JoseError, ValueError, TypeError, KeyError) as error:
            log.warning("keys.malformed", kid=kid[:_MAX_NAME_CHARACTERS], error=type(error).__name__)
            continue
        if kid in keys and keys[kid].thumbprint() != key.thumbprint():
            ambiguous.add(kid)
        keys[kid] = key
    for kid in ambiguous:
        log.warning("keys.ambiguous", kid=kid[:_MAX_NAME_CHARACTERS])
        del keys[kid]
    if not keys:
        raise Unavailable("the token issuer publishes no usable ES256 key")
    return keys


def _thumbprints(keys: Mapping[str, ECKey]) -> dict[str, str]:
    return {kid: key.thumbprint() for kid, key in keys.items()}


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
        self.issuer = issuer
        self.audience = audience
        self._keys = IssuerKeys(
            fetch_keys,
            refresh_min_seconds=refresh_min.total_seconds(),
            refresh_max_seconds=refresh_max.total_seconds(),
            clock=clock,
        )
        self._clock = clock
        self._cache_size = cache_size
        self._cache_generation = 0
        # Digest of the token, never the token: a memory dump gives no credentials away.
        self._cache: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()

    async def verify(self, token: str) -> Principal:
        """The token's principal.

        Raises:
            Unauthenticated: the token is malformed, unsigned, expired, foreign or for another audience.
            Unavailable: the issuer's keys cannot be read, and none are known or they are too old.
        """
        if len(token) > _MAX_TOKEN_CHARACTERS:
            raise Unauthenticated(f"{_NOT_OURS}: it is longer than {_MAX_TOKEN_CHARACTERS} characters")
        await self._keys.freshen()
        if self._cache_generation != self._keys.generation:
            self._cache.clear()
            self._cache_generation = self._keys.generation
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        cached = self._cache.get(digest)
        if cached is not None and self._clock() < cached[0]:
            return cached[1]
        claims = await self._decode(token)
        principal = self._validate(claims, self._clock())
        if self._cache_generation == self._keys.generation:
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
        if "crit" in header:
            # RFC 7515 section 4.1.11: extensions that we do not understand, and we understand none.
            raise Unauthenticated(f"{_NOT_OURS}: its header has critical extensions (crit)")
        key = await self._keys.find(kid)
        if key is None:
            raise Unauthenticated(f"{_NOT_OURS}: signed by a key this issuer does not publish")
        try:
            return dict(jwt.decode(token, key, algorithms=[ALGORITHM]).claims)
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise Unauthenticated(f"{_NOT_OURS}: {type(error).__name__}") from error

    def _validate(self, claims: Mapping[str, Any], now: float) -> Principal:
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if claims.get("iss") != self.issuer:
            raise Unauthenticated(f"{_NOT_OURS}: another issuer made it")
        if self.audience not in audiences:
            raise Unauthenticated(f"{_NOT_OURS}: it is not for audience {self.audience!r}")
        times = {name: claims.get(name) for name in ("exp", "iat", "nbf")}
        for name, value in times.items():
            missing_allowed = name == "nbf" and value is None
            if not missing_allowed and not _is_time(value):
                raise Unauthenticated(f"{_NOT_OURS}: claim {name} is missing or not a number")
        if claims["exp"] <= now - _LEEWAY_SECONDS:
            raise Unauthenticated("access token has expired: ask the token endpoint for a new one")
        if claims["iat"] > now + _LEEWAY_SECONDS or (times["nbf"] or 0) > now + _LEEWAY_SECONDS:
            raise Unauthenticated(f"{_NOT_OURS}: it is not valid yet")
        subject, token_id = claims.get("sub"), claims.get("jti")
        for name, value in (("sub", subject), ("jti", token_id)):
            if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME_CHARACTERS:
                raise Unauthenticated(f"{_NOT_OURS}: claim {name} must have 1 to {_MAX_NAME_CHARACTERS} characters")
        roles, scope = claims.get("roles", []), claims.get("scope", "")
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise Unauthenticated(f"{_NOT_OURS}: claim roles is not a list of names")
        if not isinstance(scope, str):
            raise Unauthenticated(f"{_NOT_OURS}: claim scope is not a text of names")
        return Principal(
            id=str(subject), roles=frozenset(roles), scopes=frozenset(scope.split()), token_id=str(token_id)
        )


def _is_time(value: object) -> bool:
    """A NumericDate (RFC 7519 section 2). The bound also refuses NaN, which would never expire, and infinity."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e12 < value < 1e12


def _peek_header(token: str) -> Mapping[str, Any]:
    head, dot, _ = token.partition(".")
    try:
        header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))) if dot else None
    except (binascii.Error, ValueError, RecursionError) as error:
        raise Unauthenticated(f"{_NOT_OURS}: it is not a JWT") from error
    if not isinstance(header, dict):
        raise Unauthenticated(f"{_NOT_OURS}: it is not a JWT")
    return header
