"""Fixtures of the whole tree: an embedded column in a temporary folder, and an issuer that signs test tokens."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from joserfc import jwt
from joserfc.jwk import ECKey
from modelworks.kit.platform import Platform
from modelworks.kit.policy import SCOPES, Policy
from modelworks.kit.telemetry import Telemetry
from modelworks.kit.tokens import TokenVerifier
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import Stores, open_stores

pytest_plugins = ["tests.stack.plugin"]

ISSUER = "http://issuer.test"


class Issuer:
    """Signs tokens as auth does, and any malformed token that a test asks for."""

    def __init__(self) -> None:
        self.key = ECKey.generate_key("P-256", {"kid": "test-1", "use": "sig", "alg": "ES256"})

    async def fetch(self) -> Mapping[str, Any]:
        return {"keys": [self.key.as_dict(private=False)]}

    def token(
        self,
        subject: str = "tester",
        *roles: str,
        scopes: tuple[str, ...] = tuple(SCOPES),
        claims: Mapping[str, Any] | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> str:
        now = int(time.time())
        body = {
            "iss": ISSUER, "sub": subject, "client_id": subject, "aud": "api", "iat": now, "exp": now + 300,
            "jti": uuid.uuid4().hex, "roles": list(roles or ("administrator",)), "scope": " ".join(scopes),
            **(claims or {}),
        }  # fmt: skip
        head = {"alg": "ES256", "typ": "at+jwt", "kid": self.key.kid, **(header or {})}
        return jwt.encode(head, {k: v for k, v in body.items() if v is not None}, self.key)

    def headers(self, subject: str = "tester", *roles: str, **more: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(subject, *roles, **more)}"}


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def platform(issuer: Issuer) -> Platform:
    verifier = TokenVerifier(issuer=ISSUER, audience="api", fetch_keys=issuer.fetch)
    return Platform(verifier=verifier, policy=Policy(), telemetry=Telemetry())


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    """An embedded column, empty."""
    column = open_stores(StoresSettings(column="embedded", data=tmp_path / "data"), environment="development")
    yield column
    await column.close()


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """`await eventually(condition)`: waits for an async condition to be truthy, at most `within` seconds."""
    import asyncio

    async def wait(condition: Callable[[], Any], *, within: float = 10.0, every: float = 0.02) -> Any:
        deadline = time.monotonic() + within
        while True:
            value = condition()
            if hasattr(value, "__await__"):
                value = await value
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(f"{condition} did not come true within {within} s")
            await asyncio.sleep(every)

    return wait


@pytest.fixture(autouse=True)
def _plain_logs() -> None:
    """Log lines of tests are plain: the pretty tracebacks of structlog's default take seconds each."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=False,
    )
