"""What auth needs from outside. Each docstring is a contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from modelworks.auth.domain import Client
from modelworks.auth.keyring import KeyRing, SigningKey
from modelworks.auth.token_request import TokenRequest
from modelworks.events import Event


@dataclass(frozen=True, slots=True)
class StoredClient:
    """A client as it was read or saved."""

    client: Client
    version: str
    """Give it back as `expected`."""


@dataclass(frozen=True, slots=True)
class ClientPage:
    """Clients that are not deleted, by id."""

    clients: Sequence[Client]
    total: int
    cursor: str | None


class Clients(Protocol):
    """Clients by id, the deleted ones' stones included."""

    async def get(self, id: str) -> StoredClient | None:
        """The client or its stone.

        Raises:
            StoreUnavailable: the store did not answer.
        """

    async def save(self, client: Client, events: Sequence[Event], *, expected: str | None, actor: str) -> None:
        """Store the client and announce the events, in one write.

        Raises:
            VersionConflict: somebody else saved it since; `expected=None` says that it did not exist.
            StoreUnavailable: the store did not answer; it may have written.
        """

    async def page(self, *, limit: int, cursor: str | None) -> ClientPage:
        """Clients that are not deleted. A moment behind what was saved.

        Raises:
            InvalidInput: the limit is not 1 to 1000, or the cursor is not of an earlier page.
            StoreUnavailable: the store did not answer.
        """


class KeyRings(Protocol):
    """The one ring of keys that all replicas share; private keys are encrypted at rest."""

    async def load(self) -> tuple[KeyRing, str] | None:
        """The ring and its version, or None when there is none yet.

        Raises:
            InvalidInput: it was encrypted under another master key, or altered.
            StoreUnavailable: the store did not answer.
        """

    async def save(self, ring: KeyRing, events: Sequence[Event], *, expected: str | None, actor: str) -> str:
        """Store the ring and announce the events, in one write; returns the new version.

        Raises:
            VersionConflict: another replica saved since: load and decide again.
            StoreUnavailable: the store did not answer; it may have written.
        """


class Attempts(Protocol):
    """Remembers failed logins for a minute. When its store is away it refuses nobody: secrets are still checked."""

    async def admit(self, client_id: str, address: str) -> None:
        """Return when there were not too many failures.

        Raises:
            RateLimited: there were of this client from this address; or of this client or from this address, and the
                client has not logged in from there lately (so that others can lock nobody out who was in before).
        """

    async def failed(self, client_id: str, address: str) -> None:
        """Count a failure."""

    async def succeeded(self, client_id: str, address: str) -> None:
        """Remember that the client logs in from here."""


class Journal(Protocol):
    """Events without a state of their own."""

    async def record(self, event: Event, *, actor: str, id: str) -> None:
        """Publish; returns when the event is durable. `id`: the same for the same event.

        Raises:
            Unavailable: the bus did not answer, or too many events wait for it.
        """


@dataclass(frozen=True, slots=True)
class Issued:
    """A token that was signed, and what the audit will know of it."""

    token_id: str
    scope: str
    audience: str
    expires_at: datetime
    answer: Mapping[str, object]
    """The body of the answer (RFC 6749 section 5.1); holds the token."""


class TokenEngine(Protocol):
    """Decides a token request by OAuth's rules and signs. Pure computation, called in a thread."""

    def decide(self, request: TokenRequest, client: Client | None, key: SigningKey) -> Issued:
        """The token.

        Raises:
            OAuthRefusal: the client is unknown (None), its secret is wrong, or it asks for what it may not have.
                The first two cannot be told apart, by text or by time.
        """
