"""A request to the token endpoint, read strictly: RFC 6749 sections 2.3.1, 3.2 and 5.2."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote_plus

from modelworks.auth.domain import SECRET_CHARACTERS_MAX
from modelworks.kit.errors import ModelworksError

AuthMethod = Literal["client_secret_basic", "client_secret_post"]
_FIELDS_MAX = 32
_CLIENT_ID_CHARACTERS_MAX = 200
WRONG_CREDENTIALS = "the client id or the secret is wrong"


class OAuthRefusal(ModelworksError):
    """A token request was refused, in the words of RFC 6749 section 5.2."""

    code = "token-refused"
    status = 400

    def __init__(self, error: str, description: str, *, client_id: str = "unknown") -> None:
        super().__init__(description)
        self.error = error
        self.client_id = client_id
        """As it was claimed; `unknown` when none was."""
        if error == "invalid_client":
            self.status = 401  # type: ignore[misc]
            # Also when the secret came in the body: RFC 9110 section 11.6.1 wants a challenge with every 401.
            self.headers["WWW-Authenticate"] = 'Basic realm="modelworks", charset="UTF-8"'


@dataclass(frozen=True, slots=True)
class RawRequest:
    """What came over HTTP."""

    authorization: Sequence[str]
    """Values of all `Authorization` headers."""
    content_type: str
    query: str
    body: bytes = field(repr=False)
    address: str
    """Of who sent it, as far as it can be trusted."""


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What is asked for, by whom."""

    client_id: str
    secret: str = field(repr=False)
    method: AuthMethod
    parameters: Mapping[str, str] = field(repr=False)
    """Without client_id and client_secret."""


def parse(raw: RawRequest) -> TokenRequest:
    """The request.

    Raises:
        OAuthRefusal: it is malformed or carries no credentials, or more than one kind.
    """
    basic = _basic(raw.authorization)
    claimed = basic[0] if basic else "unknown"
    if raw.query:
        raise OAuthRefusal("invalid_request", "parameters belong in the body, not in the URL", client_id=claimed)
    form = _form(raw, claimed)
    posted_id, posted_secret = form.pop("client_id", ""), form.pop("client_secret", "")
    client_id, secret = basic or (posted_id, posted_secret)
    claimed = client_id[:_CLIENT_ID_CHARACTERS_MAX] or "unknown"
    if basic and posted_secret:
        raise OAuthRefusal(
            "invalid_request", "credentials came twice: use the Authorization header or the body", client_id=claimed
        )
    if basic and posted_id not in ("", client_id):
        raise OAuthRefusal("invalid_request", "client_id differs from the Authorization header", client_id=claimed)
    if not form.get("grant_type"):
        raise OAuthRefusal("invalid_request", "grant_type is missing: send client_credentials", client_id=claimed)
    if not client_id or not secret:
        raise OAuthRefusal(
            "invalid_client", "no client credentials: send them by HTTP Basic, or client_id and client_secret",
            client_id=claimed,
        )  # fmt: skip
    if len(client_id) > _CLIENT_ID_CHARACTERS_MAX or len(secret) > SECRET_CHARACTERS_MAX:
        raise OAuthRefusal("invalid_client", WRONG_CREDENTIALS, client_id=claimed)
    method: AuthMethod = "client_secret_basic" if basic else "client_secret_post"
    return TokenRequest(client_id, secret, method, form)


def ascii_text(text: str) -> str:
    """A description in the characters that RFC 6749 section 5.2 allows."""
    return "".join(c if " " <= c <= "~" and c not in '"\\' else "?" for c in text)


def _basic(headers: Sequence[str]) -> tuple[str, str] | None:
    """Id and secret of HTTP Basic, both form-decoded (RFC 6749 section 2.3.1); None without the header."""
    if not headers:
        return None
    scheme, _, encoded = headers[0].strip().partition(" ")
    if len(headers) > 1:
        raise OAuthRefusal("invalid_request", "more than one Authorization header")
    if scheme.lower() != "basic":
        raise OAuthRefusal("invalid_client", "the token endpoint knows HTTP Basic and client_secret in the body")
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
        client_id, colon, secret = text.partition(":")
        if not colon:
            raise ValueError("no colon")
        return unquote_plus(client_id, errors="strict"), unquote_plus(secret, errors="strict")
    except (binascii.Error, ValueError) as error:
        raise OAuthRefusal("invalid_client", "the Authorization header is not well-formed HTTP Basic") from error


def _form(raw: RawRequest, claimed: str) -> dict[str, str]:
    media_type = raw.content_type.partition(";")[0].strip().lower()
    if media_type != "application/x-www-form-urlencoded":
        raise OAuthRefusal(
            "invalid_request", "the body must have content type application/x-www-form-urlencoded", client_id=claimed
        )
    try:
        pairs = parse_qsl(
            raw.body.decode("ascii"), keep_blank_values=True, strict_parsing=bool(raw.body), errors="strict",
            max_num_fields=_FIELDS_MAX,
        )  # fmt: skip
    except ValueError as error:
        raise OAuthRefusal("invalid_request", "the body is not a well-formed form", client_id=claimed) from error
    form: dict[str, str] = {}
    for name, value in pairs:
        if name in form:
            # RFC 8707 lets `resource` repeat; a token here has one audience, so it may not either.
            error_code = "invalid_target" if name == "resource" else "invalid_request"
            shown = name if name.isidentifier() and name.isascii() and len(name) <= 40 else "a parameter"
            raise OAuthRefusal(error_code, f"{shown} came more than once", client_id=claimed)
        form[name] = value
    # RFC 6749 section 3.2: a parameter without a value is treated as if it was not sent.
    return {name: value for name, value in form.items() if value}
