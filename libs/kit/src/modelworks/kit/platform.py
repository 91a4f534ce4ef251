"""What a process hands to each service it runs: one verifier, one policy, one telemetry, one clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelworks.kit.clock import Clock, utc_now
from modelworks.kit.errors import Unauthenticated
from modelworks.kit.policy import SUITE, Policy, Resource
from modelworks.kit.principal import Principal
from modelworks.kit.settings import PlatformSettings
from modelworks.kit.telemetry import Telemetry, make_telemetry
from modelworks.kit.tokens import TokenVerifier, fetch_over_http


@dataclass(frozen=True)
class Platform:
    """The shared ground of the services in one process."""

    verifier: TokenVerifier
    policy: Policy
    telemetry: Telemetry
    clock: Clock = utc_now

    async def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """The principal of a request's bearer token.

        Raises:
            Unauthenticated: no token, or one that is not valid here.
        """
        scheme, _, rest = headers.get("authorization", "").partition(" ")
        token = rest.strip()
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated(
                "no access token: send 'Authorization: Bearer <token>', with a token from /oauth/token",
                reason="token-missing",
            )
        return await self.verifier.verify(token)

    async def authorize(self, headers: Mapping[str, str], action: str, resource: Resource = SUITE) -> Principal:
        """Authenticate, then require `action` on `resource`.

        Raises:
            Unauthenticated, Forbidden: as the names say.
        """
        principal = await self.authenticate(headers)
        self.policy.require(principal, action, resource)
        return principal


def make_platform(settings: PlatformSettings, *, process: str) -> Platform:
    """The platform of a real process, from its settings.

    Raises:
        ValueError: no issuer is set.
    """
    if not settings.issuer:
        raise ValueError(
            "MODELWORKS_ISSUER is not set: give the URL of the public door, for example http://127.0.0.1:8080"
        )
    jwks_url = settings.jwks_url or settings.issuer.rstrip("/") + "/.well-known/jwks.json"
    return Platform(
        verifier=TokenVerifier(
            issuer=settings.issuer, audience=settings.audience, fetch_keys=fetch_over_http(jwks_url)
        ),
        policy=Policy(),
        telemetry=make_telemetry(process=process, otlp_endpoint=settings.otlp_endpoint, trace_file=settings.trace_file),
    )
