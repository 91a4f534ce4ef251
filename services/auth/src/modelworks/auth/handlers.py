"""Load, decide, save: one small class for clients, keys and tokens each."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from modelworks.auth.domain import CLIENT_ID, Client, Grants, NewClient, SecretHash, create, delete
from modelworks.auth.keyring import KeyRing, Schedule, SigningKey, begin, due, rotate, tidy
from modelworks.auth.metrics import TokenMetrics
from modelworks.auth.ports import Attempts, ClientPage, Clients, Issued, Journal, KeyRings, StoredClient, TokenEngine
from modelworks.auth.token_request import OAuthRefusal, RawRequest, TokenRequest, parse
from modelworks.events import TokenIssued, TokenRefused
from modelworks.kit.clock import Clock
from modelworks.kit.errors import ModelworksError, NotFound, RateLimited, Unavailable, VersionConflict
from modelworks.kit.logging import get_logger

_SECRET_PREFIX = "mws_"  # noqa: S105 - so that secret scanners know ours
_SAVE_ATTEMPTS = 5
_MINUTE_SECONDS = 60.0
_COUNTED_MAX = 10_000

log = get_logger("auth")


class ManageClients:
    """Makes, lists and deletes clients."""

    def __init__(self, clients: Clients, grants: Grants, clock: Clock) -> None:
        self._clients = clients
        self.grants = grants
        self._clock = clock

    async def create(
        self, *, client_id: str | None, roles: list[str], scopes: list[str] | None, name: str, actor: str
    ) -> tuple[Client, str]:
        """The client and its secret, which nobody can read again.

        Raises:
            InvalidInput, Conflict: as `domain.create`.
        """
        asked = NewClient(client_id or f"client-{secrets.token_hex(8)}", roles, scopes, name)
        secret = _SECRET_PREFIX + secrets.token_urlsafe(32)
        try:
            return await self._store(asked, secret, await self._find(asked.id), actor=actor), secret
        except VersionConflict:
            # Somebody made the same client at this moment: the second look says so.
            return await self._store(asked, secret, await self._find(asked.id), actor=actor), secret

    async def ensure(self, asked: NewClient, secret: str) -> None:
        """Make the client, or bring it to this secret, these roles and scopes. For what the settings name."""
        for _ in range(_SAVE_ATTEMPTS):
            stored = await self._find(asked.id)
            client = stored.client if stored else None
            if client and client.deleted_at is None and client.secret.matches(secret):
                scopes = None if asked.scopes is None else tuple(sorted(set(asked.scopes)))
                if (client.roles, client.scopes) == (tuple(sorted(set(asked.roles))), scopes):
                    return
            try:
                await self._store(asked, secret, stored, actor="system", replace=True)
            except VersionConflict:
                continue  # another replica starts too: look at what it wrote
            log.info("client.ensured", client=asked.id, roles=list(asked.roles))
            return
        raise Unavailable(f"client {asked.id!r} is being changed by others all the time: start again")

    async def get(self, client_id: str) -> Client:
        """The client.

        Raises:
            NotFound: there is none, or it was deleted.
        """
        stored = await self._find(client_id)
        if stored is None or stored.client.deleted_at is not None:
            raise NotFound(f"there is no client {client_id[:80]!r}")
        return stored.client

    async def page(self, *, limit: int, cursor: str | None) -> ClientPage:
        """As `Clients.page`."""
        return await self._clients.page(limit=limit, cursor=cursor)

    async def delete(self, client_id: str, *, actor: str) -> None:
        """Delete the client; its tokens stay valid until they expire. Again changes nothing.

        Raises:
            NotFound: there never was such a client.
            VersionConflict: it is being changed by others all the time.
        """
        for attempt in range(_SAVE_ATTEMPTS):
            stored = await self._find(client_id)
            if stored is None:
                raise NotFound(f"there is no client {client_id[:80]!r}")
            stone, events = delete(stored.client, now=self._clock())
            if not events:
                return
            try:
                await self._clients.save(stone, events, expected=stored.version, actor=actor)
            except VersionConflict:
                if attempt + 1 == _SAVE_ATTEMPTS:
                    raise
                continue
            return

    async def _find(self, client_id: str) -> StoredClient | None:
        return await self._clients.get(client_id) if CLIENT_ID.match(client_id) else None

    async def _store(
        self, asked: NewClient, secret: str, stored: StoredClient | None, *, actor: str, replace: bool = False
    ) -> Client:
        previous = stored.client if stored and not replace else None
        client, events = create(
            asked, grants=self.grants, secret=SecretHash.of(secret, salt=secrets.token_bytes(16)), previous=previous,
            actor=actor, now=self._clock(),
        )  # fmt: skip
        await self._clients.save(client, events, expected=stored.version if stored else None, actor=actor)
        return client


class Keys:
    """The ring as this replica last read it, and its changes."""

    def __init__(
        self, rings: KeyRings, schedule: Schedule, clock: Clock, *, generate: Callable[..., SigningKey]
    ) -> None:
        """`generate`: called with the time, gives a new key."""
        self._rings = rings
        self._schedule = schedule
        self._clock = clock
        self._generate = generate
        self._ring: KeyRing | None = None
        self._trouble = "the service is starting"
        # One change at a time: a slow reader must not put back what a faster one replaced.
        self._changing = asyncio.Lock()

    @property
    def ring(self) -> KeyRing:
        """The ring.

        Raises:
            Unavailable: none could be read yet.
        """
        if self._ring is None:
            raise Unavailable(f"no signing key is loaded: {self._trouble}")
        return self._ring

    async def check(self) -> None:
        """Readiness: raises Unavailable with the reason."""
        _ = self.ring

    async def tend(self) -> None:
        """Read the ring again, begin one when there is none, and change keys when it is time.

        Raises:
            StoreUnavailable, InvalidInput: as `KeyRings.load`; what was read before stays in use.
        """
        try:
            async with self._changing:
                await self._tend()
        except ModelworksError as error:
            self._trouble = error.message
            raise

    async def rotate(self, *, emergency: bool, actor: str) -> KeyRing:
        """The ring after the successor took over.

        Raises:
            Conflict: the successor is too young, for example since somebody else rotated a moment ago.
        """
        async with self._changing:
            return await self._rotate(emergency=emergency, actor=actor)

    async def _rotate(self, *, emergency: bool, actor: str) -> KeyRing:
        for _ in range(_SAVE_ATTEMPTS):
            loaded = await self._rings.load()
            if loaded is None:
                await self._tend()
                continue
            ring, version = loaded
            now = self._clock()
            ring, events = rotate(ring, self._generate(now), self._schedule, now=now, emergency=emergency)
            try:
                await self._rings.save(ring, events, expected=version, actor=actor)
            except VersionConflict:
                continue
            self._adopt(ring)
            return ring
        raise Unavailable("the keys are being changed by others all the time: try again")

    async def _tend(self) -> None:
        for _ in range(_SAVE_ATTEMPTS):
            loaded, now = await self._rings.load(), self._clock()
            if loaded is None:
                ring, events = begin(self._generate(now), self._generate(now), now=now)
                version = None
            else:
                ring, version = loaded
                if due(ring, self._schedule, now=now):
                    ring, events = rotate(ring, self._generate(now), self._schedule, now=now)
                else:
                    ring, events = tidy(ring, self._schedule, now=now)
            try:
                if events:
                    await self._rings.save(ring, events, expected=version, actor="system")
            except VersionConflict:
                continue  # another replica did it: take its ring
            self._adopt(ring)
            return
        raise Unavailable("the keys are being changed by others all the time")

    def _adopt(self, ring: KeyRing) -> None:
        if self._ring is None or ring.current.id != self._ring.current.id:
            log.info("key.signs", key=ring.current.id, published=len(ring.published))
        self._ring = ring


@dataclass(slots=True)
class _Minute:
    began: float
    told: int = 0


class IssueTokens:
    """Answers token requests. Each token's event is durable before the token leaves: no audit, no token."""

    def __init__(
        self,
        *,
        clients: Clients,
        keys: Keys,
        attempts: Attempts,
        journal: Journal,
        engine: TokenEngine,
        executor: Executor,
        metrics: TokenMetrics,
        waiting_max: int,
        refusals_per_minute_max: int,
    ) -> None:
        """`executor` runs the engine; at most `waiting_max` requests are under way."""
        self._clients = clients
        self._keys = keys
        self._attempts = attempts
        self._journal = journal
        self._engine = engine
        self._executor = executor
        self._metrics = metrics
        self._waiting_max = waiting_max
        self._refusals_max = refusals_per_minute_max
        self._under_way = 0
        self._minutes: OrderedDict[str, _Minute] = OrderedDict()
        self._all = _Minute(time.monotonic())

    async def answer(self, raw: RawRequest) -> Mapping[str, object]:
        """The body of the answer (RFC 6749 section 5.1).

        Raises:
            OAuthRefusal: the request is wrong, or the client may not have what it asks for.
            RateLimited: too many failed logins.
            Unavailable: keys, documents or the bus are away, or too many requests wait.
        """
        if self._under_way >= self._waiting_max:
            busy = Unavailable(f"{self._waiting_max} token requests are under way: try again in a moment")
            busy.headers["Retry-After"] = "1"
            raise busy
        self._under_way += 1
        started = time.perf_counter()
        try:
            issued = await self._issue(raw)
        finally:
            self._under_way -= 1
            self._metrics.seconds.observe(time.perf_counter() - started)
        self._metrics.issued.labels(issued.audience).inc()
        return issued.answer

    async def _issue(self, raw: RawRequest) -> Issued:
        try:
            request = parse(raw)
        except OAuthRefusal as refusal:
            await self._tell(refusal.error, refusal.client_id)
            raise
        try:
            await self._attempts.admit(request.client_id, raw.address)
            issued = await self._decide(request)
        except OAuthRefusal as refusal:
            if refusal.error == "invalid_client":
                await self._attempts.failed(request.client_id, raw.address)
            await self._tell(refusal.error, request.client_id)
            raise
        except RateLimited:
            await self._tell("temporarily_unavailable", request.client_id)
            raise
        event = TokenIssued(
            client=request.client_id, token_id=issued.token_id, scope=issued.scope, audience=issued.audience,
            expires_at=issued.expires_at,
        )  # fmt: skip
        await self._journal.record(event, actor=request.client_id, id=issued.token_id)
        await self._attempts.succeeded(request.client_id, raw.address)
        return issued

    async def _decide(self, request: TokenRequest) -> Issued:
        key = self._keys.ring.current
        # An id that no client can have is looked up under one that no client has: the same work, the same time.
        known = request.client_id if CLIENT_ID.match(request.client_id) else "unknown"
        stored = await self._clients.get(known)
        client = stored.client if stored and stored.client.deleted_at is None else None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(self._engine.decide, request, client, key))

    async def _tell(self, error: str, client_id: str) -> None:
        """Tell the audit of a refusal. It stands whether or not that works: it gives nothing away."""
        self._metrics.refused.labels(error).inc()
        if not self._may_tell(client_id):
            return
        event = TokenRefused(client=client_id, error=error)
        try:
            await self._journal.record(event, actor="anonymous", id=uuid.uuid4().hex)
        except ModelworksError as failure:
            log.error("refusal.not-recorded", client=client_id, oauth_error=error, error=failure.message)

    def _may_tell(self, client_id: str) -> bool:
        """Bounded a minute and client id, and over all claimed ids together (an attacker may invent them)."""
        now = time.monotonic()
        mine = self._minutes.setdefault(client_id, _Minute(now))
        self._minutes.move_to_end(client_id)
        while len(self._minutes) > _COUNTED_MAX:
            self._minutes.popitem(last=False)
        for minute in (mine, self._all):
            if now - minute.began >= _MINUTE_SECONDS:
                minute.began, minute.told = now, 0
        if mine.told >= self._refusals_max or self._all.told >= 10 * self._refusals_max:
            return False
        mine.told += 1
        self._all.told += 1
        return True
