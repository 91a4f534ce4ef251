"""Clients: who they are, what they may ask for, and how their secret is known without being kept.

A client is never removed from the store: a deleted one leaves a stone with its
id, so that its events keep an order and deleting twice changes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from modelworks.events import ClientCreated, ClientDeleted, Event
from modelworks.kit.errors import Conflict, InvalidInput

CLIENT_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}[a-z0-9]\Z")
_RESERVED = frozenset({"anonymous", "system", "unknown"})
"""Names that events use for nobody in particular."""
_NAME_CHARACTERS_MAX = 200
SECRET_CHARACTERS_MIN = 32
"""Secrets that an operator chooses. Ours have 43 characters of 6 bits."""
SECRET_CHARACTERS_MAX = 256


@dataclass(frozen=True, slots=True)
class SecretHash:
    """HMAC-SHA-256 of a secret under a salt of its own.

    Not a slow password hash: secrets are random with 128 bits and more, so guessing them is hopeless at any speed,
    while a slow hash would let a flood of wrong secrets starve the token endpoint.
    """

    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: str, *, salt: bytes) -> SecretHash:
        """`salt`: 16 random bytes."""
        return cls(salt, hmac.digest(salt, secret.encode(), hashlib.sha256))

    def matches(self, secret: str) -> bool:
        """Whether this is the hash of `secret`; takes as long when it is not."""
        return hmac.compare_digest(self.digest, hmac.digest(self.salt, secret.encode(), hashlib.sha256))


NO_SECRET = SecretHash(b"\0" * 16, b"\0" * 32)
"""Matches no secret (nobody knows one with this digest); compared with where there is no client, for the time it takes."""


@dataclass(frozen=True, slots=True)
class Client:
    """A party that asks for tokens in its own name."""

    id: str
    roles: tuple[str, ...]
    """Sorted."""
    scopes: tuple[str, ...] | None
    """Sorted scopes it may ask for; None: all that its roles can make use of."""
    secret: SecretHash
    name: str
    """For people; may be empty."""
    created_at: datetime
    created_by: str
    """Principal id; `system` when the settings made it."""
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Grants:
    """What there is to be granted: the roles, and the scopes that each role can make use of."""

    by_role: Mapping[str, frozenset[str]]

    @property
    def scopes(self) -> frozenset[str]:
        """All scopes."""
        return frozenset().union(*self.by_role.values())

    def of(self, client: Client) -> frozenset[str]:
        """The scopes a client may ask for."""
        useful = frozenset().union(*(self.by_role.get(role, frozenset()) for role in client.roles))
        return useful if client.scopes is None else useful & frozenset(client.scopes)


@dataclass(frozen=True, slots=True)
class NewClient:
    """What is asked for."""

    id: str
    roles: Sequence[str]
    scopes: Sequence[str] | None
    name: str


def create(
    asked: NewClient, *, grants: Grants, secret: SecretHash, previous: Client | None, actor: str, now: datetime
) -> tuple[Client, list[Event]]:
    """The client.

    Raises:
        InvalidInput: id, name, roles or scopes are not well-formed or not known.
        Conflict: there is a client with this id.
    """
    if not CLIENT_ID.match(asked.id) or asked.id in _RESERVED:
        raise InvalidInput(
            f"client_id {asked.id[:80]!r}: use 2 to 64 of a-z, 0-9, '.', '_', '-', with a letter or digit at both ends"
            f" (not {', '.join(sorted(_RESERVED))})"
        )
    if len(asked.name) > _NAME_CHARACTERS_MAX:
        raise InvalidInput(f"name has {len(asked.name)} characters: at most {_NAME_CHARACTERS_MAX} are allowed")
    if not asked.roles:
        raise InvalidInput(f"roles: give at least one of {', '.join(sorted(grants.by_role))}")
    _refuse_unknown("role", asked.roles, grants.by_role)
    _refuse_unknown("scope", asked.scopes or (), grants.scopes)
    if previous is not None and previous.deleted_at is None:
        raise Conflict(f"client {asked.id!r} exists: choose another client_id, or delete it first", client_id=asked.id)
    client = Client(
        id=asked.id, roles=tuple(sorted(set(asked.roles))), secret=secret, name=asked.name, created_at=now,
        scopes=None if asked.scopes is None else tuple(sorted(set(asked.scopes))), created_by=actor,
    )  # fmt: skip
    return client, [ClientCreated(client=client.id, roles=list(client.roles))]


def delete(client: Client, *, now: datetime) -> tuple[Client, list[Event]]:
    """The client's stone; unchanged and without events when it was deleted before."""
    if client.deleted_at is not None:
        return client, []
    return replace(client, deleted_at=now, secret=NO_SECRET), [ClientDeleted(client=client.id)]


def _refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InvalidInput(f"{what} {unknown[0][:80]!r} does not exist: choose from {', '.join(sorted(known))}")
