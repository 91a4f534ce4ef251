"""The token endpoint's rules by Authlib: the client credentials grant of RFC 6749, tokens of RFC 9068, targets of RFC 8707.

Authlib is synchronous and reads everything from the request object; ours is
filled before the call (`OfferedRequest`), so nothing in here waits. What is
overridden, and why, stands at each method.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, timedelta
from typing import Any, ClassVar

from authlib.oauth2 import AuthorizationServer, OAuth2Error, OAuth2Request
from authlib.oauth2.rfc6749 import ClientMixin, InvalidClientError, InvalidScopeError
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from joserfc import jwt
from joserfc.jwk import ECKey
from modelworks.auth.domain import NO_SECRET, Client, Grants
from modelworks.auth.keyring import SigningKey
from modelworks.auth.ports import Issued
from modelworks.auth.token_request import WRONG_CREDENTIALS, OAuthRefusal, TokenRequest, ascii_text
from modelworks.kit.clock import Clock

AUTH_METHODS = ("client_secret_basic", "client_secret_post")
GRANT_TYPE = "client_credentials"

# At `debug` Authlib writes whole tokens to the log.
logging.getLogger("authlib").setLevel(logging.WARNING)


class InvalidTarget(OAuth2Error):  # type: ignore[misc]
    """RFC 8707 section 2."""

    error = "invalid_target"


class OfferedClient(ClientMixin):  # type: ignore[misc]
    """The client of one request, or nobody: looks the same to Authlib until the secret is compared."""

    def __init__(self, client: Client | None, method: str, allowed: frozenset[str]) -> None:
        self.client = client
        self._method = method
        self._allowed = allowed

    def get_client_id(self) -> str:
        assert self.client is not None
        return self.client.id

    def check_client_secret(self, client_secret: str) -> bool:
        # For nobody the same work is done on a hash that nothing matches.
        known = (self.client.secret if self.client else NO_SECRET).matches(client_secret)
        return known and self.client is not None

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == self._method

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == GRANT_TYPE

    def get_allowed_scope(self, scope: str | None) -> str:
        """What is asked for; all that is allowed when nothing is (RFC 6749 section 3.3)."""
        asked = frozenset((scope or "").split())
        too_wide = sorted(asked - self._allowed)
        if too_wide:
            raise InvalidScopeError(
                ascii_text(
                    f"scope {too_wide[0][:80]} may not be asked for by this client:"
                    f" choose from {' '.join(sorted(self._allowed)) or 'nothing, its roles allow none'}"
                )
            )
        return " ".join(sorted(asked or self._allowed))


class OfferedRequest(OAuth2Request):  # type: ignore[misc]
    """A token request with everything that Authlib may ask for."""

    def __init__(self, request: TokenRequest, client: OfferedClient, key: SigningKey) -> None:
        # Authlib refuses http here; whether the transport is safe was decided where TLS ends, at the edge.
        super().__init__("POST", "https://edge/oauth/token")
        self.payload = BasicOAuth2Payload(dict(request.parameters))
        self.offer = request
        self.offered_client = client
        self.key = key
        self.audience = ""
        self.issued: Issued | None = None


class ClientCredentials(ClientCredentialsGrant):  # type: ignore[misc]
    """The grant, with a checked audience."""

    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar = list(AUTH_METHODS)

    def validate_token_request(self) -> None:
        super().validate_token_request()
        audiences: Sequence[str] = self.server.audiences
        asked = self.request.payload.data.get("resource") or audiences[0]
        if asked not in audiences:
            raise InvalidTarget(
                ascii_text(f"resource {asked[:80]} is not served here: choose from {' '.join(audiences)}")
            )
        self.request.audience = asked


class AuthlibEngine(AuthorizationServer):  # type: ignore[misc]
    """See `ports.TokenEngine`. Holds nothing of a request: threads share it."""

    def __init__(
        self, *, issuer: str, lifetime: timedelta, audiences: Sequence[str], grants: Grants, clock: Clock
    ) -> None:
        """`audiences`: the first is the default."""
        super().__init__()
        self._issuer = issuer
        self._lifetime = lifetime
        self.audiences = tuple(audiences)
        self._grants = grants
        self._clock = clock
        self._imported: tuple[str, ECKey] | None = None
        self.register_grant(ClientCredentials)
        for method in AUTH_METHODS:
            self.register_client_auth_method(method, _authenticate)

    def decide(self, request: TokenRequest, client: Client | None, key: SigningKey) -> Issued:
        allowed = self._grants.of(client) if client else frozenset()
        offered = OfferedRequest(request, OfferedClient(client, request.method, allowed), key)
        self.create_token_response(offered)
        assert offered.issued is not None
        return offered.issued

    # --- what AuthorizationServer wants from its framework

    def query_client(self, client_id: str) -> None:
        """Never asked: the request brings its client."""
        raise AssertionError("the client comes with the request")

    def create_oauth2_request(self, request: OfferedRequest) -> OfferedRequest:
        return request

    def authenticate_client(
        self, request: OfferedRequest, methods: list[str], endpoint: str = "token"
    ) -> OfferedClient:
        """As Authlib, but one text whatever is wrong: its own says whether the client exists."""
        try:
            return super().authenticate_client(request, methods, endpoint)  # type: ignore[no-any-return]
        except InvalidClientError as error:
            raise InvalidClientError(WRONG_CREDENTIALS) from error

    def generate_token(
        self, grant_type: str, client: OfferedClient, user: object = None, scope: str | None = None, **_: Any
    ) -> dict[str, Any]:
        """The allowed scope; the token itself is signed in `save_token`, which is given the request."""
        return {"scope": BearerTokenGenerator.get_allowed_scope(client, scope)}

    def save_token(self, token: dict[str, Any], request: OfferedRequest) -> None:
        """Sign by RFC 9068 section 2.

        Authlib's own generator takes the system's clock, one audience for all and no `kid`.
        """
        now = self._clock()
        issued_at = int(now.timestamp())
        expires_at = now.replace(microsecond=0) + self._lifetime
        client = request.offered_client.client
        assert client is not None
        claims = {
            "iss": self._issuer, "sub": client.id, "client_id": client.id, "aud": request.audience, "iat": issued_at,
            "exp": issued_at + int(self._lifetime.total_seconds()), "jti": secrets.token_hex(16),
            "scope": token["scope"], "roles": list(client.roles),
        }  # fmt: skip
        header = {"alg": "ES256", "typ": "at+jwt", "kid": request.key.id}
        token |= {
            "access_token": jwt.encode(header, claims, self._key(request.key), algorithms=["ES256"]),
            "token_type": "Bearer",
            "expires_in": int(self._lifetime.total_seconds()),
        }
        request.issued = Issued(
            token_id=str(claims["jti"]), scope=token["scope"], audience=request.audience,
            expires_at=expires_at.astimezone(UTC), answer=token,
        )  # fmt: skip

    def _key(self, key: SigningKey) -> ECKey:
        """The key in joserfc's form; importing takes as long as signing, so the last one is kept."""
        imported = self._imported
        if imported is None or imported[0] != key.id:
            self._imported = imported = (key.id, ECKey.import_key(dict(key.private)))
        return imported[1]

    def send_signal(self, name: str, *args: object, **kwargs: object) -> None:
        """Nobody listens."""

    def handle_response(self, status: int, body: Mapping[str, Any], headers: object) -> None:
        """An error leaves as our own kind: the shell renders all of them in one way."""
        if "error" in body:
            raise OAuthRefusal(str(body["error"]), str(body.get("error_description", body["error"])))


def _authenticate(_: object, request: OfferedRequest) -> OfferedClient | None:
    client = request.offered_client
    return client if client.check_client_secret(request.offer.secret) else None
