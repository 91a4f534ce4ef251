"""The tree of errors, in one place.

Each class says its machine-readable code, its HTTP status, and whether trying
the same again later may help (`transient`). The message names the offending
value and the way out; the data a program wants is kept as attributes.

    ModelworksError
    +-- InvalidInput (400)
    +-- Unauthenticated (401)
    +-- Forbidden (403)
    +-- NotFound (404)
    +-- Conflict (409)
    +-- VersionConflict (412)
    +-- TooLarge (413)
    +-- RateLimited (429, transient)
    +-- DeadlineExceeded (504)
    +-- Unavailable (503, transient)
        +-- StoreUnavailable
"""

from __future__ import annotations

from typing import Any, ClassVar


class ModelworksError(Exception):
    """Root of all errors that this suite raises on purpose."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    transient: ClassVar[bool] = False

    def __init__(self, message: str, /, **data: Any) -> None:
        """`data` must be JSON serialisable and free of secrets: it is shown to the caller."""
        super().__init__(message)
        self.message = message
        self.data = data
        self.headers: dict[str, str] = {}
        """Extra HTTP headers for the answer, for example `Retry-After`."""


class InvalidInput(ModelworksError):
    """The request is malformed, or asks for something that cannot be."""

    code = "invalid-input"
    status = 400


class Unauthenticated(ModelworksError):
    """No token, or one that is not valid here."""

    code = "unauthenticated"
    status = 401

    def __init__(self, message: str, /, *, reason: str = "token-invalid", **data: Any) -> None:
        super().__init__(message, **data)
        self.reason = reason
        # RFC 6750 section 3: error codes only when a token was presented.
        error = "" if reason == "token-missing" else ', error="invalid_token"'
        self.headers["WWW-Authenticate"] = f'Bearer realm="modelworks"{error}'


class Forbidden(ModelworksError):
    """The caller is known and may not do this."""

    code = "forbidden"
    status = 403

    def __init__(
        self,
        message: str,
        /,
        *,
        action: str,
        resource: str,
        reason: str = "policy-denied",
        policy: str | None = None,
        **data: Any,
    ) -> None:
        super().__init__(message, action=action, resource=resource, **data)
        self.action = action
        self.resource = resource
        self.reason = reason
        self.policy = policy
        self.principal: str | None = None
        """Who was refused, where the one who raised it knows: for the audit, not shown."""
        if reason == "scope-missing":
            self.headers["WWW-Authenticate"] = 'Bearer realm="modelworks", error="insufficient_scope"'


class NotFound(ModelworksError):
    """No such thing, or none that the caller may see."""

    code = "not-found"
    status = 404


class Conflict(ModelworksError):
    """The thing exists already, or its state does not allow this."""

    code = "conflict"
    status = 409


class VersionConflict(ModelworksError):
    """Somebody else wrote since the caller read: read again, then try again."""

    code = "version-conflict"
    status = 412


class TooLarge(ModelworksError):
    """More bytes or items than the limit that the message names."""

    code = "too-large"
    status = 413


class RateLimited(ModelworksError):
    """Too many requests; `Retry-After` says when to come back."""

    code = "rate-limited"
    status = 429
    transient = True

    def __init__(self, message: str, /, *, retry_after_seconds: int, **data: Any) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds, **data)
        self.headers["Retry-After"] = str(retry_after_seconds)


class DeadlineExceeded(ModelworksError):
    """The time the caller gave is over."""

    code = "deadline-exceeded"
    status = 504


class Unavailable(ModelworksError):
    """Something this needs is not there now."""

    code = "unavailable"
    status = 503
    transient = True


class StoreUnavailable(Unavailable):
    """A store did not answer. Unless the port says otherwise, nothing was written."""

    code = "store-unavailable"
