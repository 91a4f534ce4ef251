"""What auth announces, and the one refusal event that every service publishes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from modelworks.events.event import Event
from modelworks.events.values import Identifier
from pydantic import Field


class ClientCreated(Event):
    topic: ClassVar[str] = "auth.client-created.v1"
    key_field: ClassVar[str] = "client"

    client: Identifier
    roles: list[str]


class ClientDeleted(Event):
    topic: ClassVar[str] = "auth.client-deleted.v1"
    key_field: ClassVar[str] = "client"

    client: Identifier


class TokenIssued(Event):
    topic: ClassVar[str] = "auth.token-issued.v1"
    key_field: ClassVar[str] = "client"

    client: Identifier
    token_id: Identifier
    """The token's `jti`, never the token."""
    scope: str
    """Space-separated scopes that were granted (RFC 6749 section 3.3)."""
    audience: str
    expires_at: datetime


class TokenRefused(Event):
    topic: ClassVar[str] = "auth.token-refused.v1"
    key_field: ClassVar[str] = "client"

    client: Identifier
    """The client id as it was claimed; `unknown` when none was given."""
    error: Annotated[str, Field(max_length=64)]
    """OAuth error code (RFC 6749 section 5.2)."""


class AccessDenied(Event):
    """A request was refused for want of a valid token or of a permission. Published by the service that refused."""

    topic: ClassVar[str] = "auth.access-denied.v1"
    key_field: ClassVar[str] = "principal"

    principal: Identifier
    """`anonymous` when no valid token came."""
    service: Identifier
    action: Annotated[str, Field(max_length=200)]
    """The policy action, or method and path where no action was reached."""
    resource: Annotated[str, Field(max_length=1000)]
    reason: Literal["token-missing", "token-invalid", "scope-missing", "policy-denied", "rate-limited", "too-large"]
    detail: Annotated[str, Field(max_length=500)]
    policy: str | None = None
    """`<sha256 of the policy set>` that decided. Absent when no policy was asked."""
    suppressed: Annotated[int, Field(ge=0)] = 0
    """Refusals of the same principal and service that were counted but not announced since the last event."""


class KeyRotated(Event):
    topic: ClassVar[str] = "auth.key-rotated.v1"
    key_field: ClassVar[str] = "key_id"

    key_id: Identifier
    """The key that signs from now on."""
    retired: list[Identifier]
    """Keys that no longer verify."""
