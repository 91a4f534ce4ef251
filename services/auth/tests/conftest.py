"""A running auth whose tokens are checked by the suite's own verifier, under a clock that the test moves."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from modelworks.auth.app import build
from modelworks.auth.settings import AuthSettings
from modelworks.events import (
    AccessDenied,
    ClientCreated,
    ClientDeleted,
    Envelope,
    Event,
    KeyRotated,
    TokenIssued,
    TokenRefused,
)
from modelworks.kit.errors import Unavailable
from modelworks.kit.platform import Platform
from modelworks.kit.policy import Policy
from modelworks.kit.service import Service
from modelworks.kit.telemetry import Telemetry
from modelworks.kit.tokens import TokenVerifier
from modelworks.stores import Delivery, Subscription
from modelworks.stores.outbox import envelope_of
from modelworks.stores.stores import Stores

ISSUER = "https://door.test"
ADMIN = ("admin", "administrator-secret-of-these-tests")


class Clock:
    """The time of a test."""

    def __init__(self) -> None:
        self.now = datetime.fromtimestamp(int(time.time()), UTC)

    def __call__(self) -> datetime:
        return self.now

    def seconds(self) -> float:
        return self.now.timestamp()

    def forward(self, **delta: float) -> None:
        self.now += timedelta(**delta)


class Auth:
    """One replica of auth and a client of it."""

    ADMIN = ADMIN
    ISSUER = ISSUER

    def __init__(self, stores: Stores, clock: Clock, settings: AuthSettings) -> None:
        self.stores = stores
        self.clock = clock
        verifier = TokenVerifier(issuer=ISSUER, audience="api", fetch_keys=self._read_keys, clock=clock.seconds)
        self.platform = Platform(verifier=verifier, policy=Policy(), telemetry=Telemetry(), clock=clock)
        self.service: Service = build(stores, settings, self.platform)
        self.http = self.client_from("192.0.2.1")

    def client_from(self, address: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.service.app, client=(address, 1234))
        return httpx.AsyncClient(transport=transport, base_url="http://auth")

    async def _read_keys(self) -> Mapping[str, Any]:
        answer = await self.http.get("/.well-known/jwks.json")
        if answer.status_code != 200:
            raise Unavailable("no keys")
        document: dict[str, Any] = answer.json()
        return document

    async def ask(self, credentials: tuple[str, str] | None = ADMIN, **parameters: str) -> httpx.Response:
        form = {"grant_type": "client_credentials", **parameters}
        if credentials is None:
            return await self.http.post("/oauth/token", data=form)
        return await self.http.post("/oauth/token", data=form, auth=credentials)

    async def token(self, credentials: tuple[str, str] = ADMIN, **parameters: str) -> str:
        answer = await self.ask(credentials, **parameters)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    async def bearer(self, credentials: tuple[str, str] = ADMIN, **parameters: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {await self.token(credentials, **parameters)}"}

    async def make_client(self, **body: Any) -> tuple[str, str]:
        answer = await self.http.post("/api/v1/clients", json=body, headers=await self.bearer())
        assert answer.status_code == 201, answer.text
        return answer.json()["client_id"], answer.json()["client_secret"]

    @staticmethod
    def part_of(token: str, number: int) -> dict[str, Any]:
        """Header (0) or claims (1) of a token."""
        text = token.split(".")[number]
        decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        return decoded


class Heard:
    """All that auth announced, in the order of each topic."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    async def hear(self, deliveries: Sequence[Delivery]) -> None:
        self.envelopes += [envelope_of(delivery.message) for delivery in deliveries]

    def of(self, kind: type[Event]) -> list[Any]:
        """Each event once: it may be published twice, under the same id."""
        once = {envelope.id: envelope for envelope in self.envelopes if isinstance(envelope.event, kind)}
        return list(once.values())


def make_settings(**changes: Any) -> AuthSettings:
    return AuthSettings(
        **{
            "master_key": "the master key of these tests, 32+",
            "admin_client_secret": ADMIN[1],
            "keys_reload_seconds": 0.05,
            **changes,
        }
    )


Start = Callable[..., AbstractAsyncContextManager[Auth]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def start(stores: Stores, clock: Clock) -> Start:
    """`async with start(setting=value) as auth`: a replica over the same stores."""

    @asynccontextmanager
    async def started(on: Stores | None = None, **changes: Any) -> AsyncIterator[Auth]:
        auth = Auth(on or stores, clock, make_settings(**changes))
        async with auth.service.run():
            yield auth
        await auth.http.aclose()

    return started


@pytest.fixture
async def auth(start: Start) -> AsyncIterator[Auth]:
    async with start() as running:
        yield running


@pytest.fixture
async def heard(stores: Stores) -> AsyncIterator[Heard]:
    """Listens to all topics of auth from the beginning."""
    ear = Heard()
    topics = tuple(
        kind.topic for kind in (TokenIssued, TokenRefused, ClientCreated, ClientDeleted, KeyRotated, AccessDenied)
    )
    consumer = await stores.bus.subscribe(Subscription("test-ear", topics, ear.hear, batch_max=100))
    yield ear
    await consumer.stop()
