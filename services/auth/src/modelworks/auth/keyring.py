"""The keys that sign tokens, and when each comes and goes: publish, sign, retire.

There is always a successor, published long before it signs: when it takes over,
every verifier has it. A key that signs no more stays published until the last
token it signed has expired and verifiers have read the keys again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from modelworks.events import Event, KeyRotated
from modelworks.kit.errors import Conflict


@dataclass(frozen=True, slots=True)
class Schedule:
    """When keys change."""

    rotate_every: timedelta
    """How long a key signs."""
    lead: timedelta
    """How long a key is published before it signs: what verifiers and replicas may lag behind."""
    keep: timedelta
    """How long a key stays published after it signed: lifetime of a token, and what verifiers may lag behind."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One ES256 key."""

    id: str
    """`kid`: the key's RFC 7638 thumbprint."""
    private: Mapping[str, str] = field(repr=False)
    """JWK, private part included."""
    created_at: datetime
    """Since when it is published."""
    signs_from: datetime | None = None
    """None: it is the successor."""
    stopped_at: datetime | None = None
    """None: it signs, or will."""

    def public(self) -> dict[str, str]:
        """The JWK that anybody may have."""
        parts = {name: self.private[name] for name in ("kty", "crv", "x", "y")}
        return {**parts, "kid": self.id, "use": "sig", "alg": "ES256"}


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The current key, its successor and those that still verify."""

    current: SigningKey
    successor: SigningKey
    previous: tuple[SigningKey, ...] = ()
    together: bool = False
    """The current key and its successor were published at once: who has read the one has read the other."""

    @property
    def published(self) -> tuple[SigningKey, ...]:
        """All keys that verify, the current one first."""
        return (self.current, self.successor, *self.previous)


def begin(first: SigningKey, second: SigningKey, *, now: datetime) -> tuple[KeyRing, list[Event]]:
    """The first ring: nobody knows any key yet, so the first one signs at once."""
    ring = KeyRing(replace(first, signs_from=now), second, together=True)
    return ring, [KeyRotated(key_id=ring.current.id, retired=[])]


def due(ring: KeyRing, schedule: Schedule, *, now: datetime) -> bool:
    """Whether the current key has signed long enough and its successor is known everywhere."""
    signs_from = ring.current.signs_from
    assert signs_from is not None
    return now >= signs_from + schedule.rotate_every and now >= _ready_at(ring, schedule)


def rotate(
    ring: KeyRing, fresh: SigningKey, schedule: Schedule, *, now: datetime, emergency: bool = False
) -> tuple[KeyRing, list[Event]]:
    """The successor signs from now on, and `fresh` is published to succeed it.

    Args:
        emergency: a private key is known to somebody else. The successor signs even when verifiers may not know it
            yet, and all earlier keys are withdrawn: their tokens are refused as soon as verifiers read the keys again.

    Raises:
        Conflict: the successor was published too short a while ago.
    """
    ready_at = _ready_at(ring, schedule)
    if now < ready_at and not emergency:
        seconds = int((ready_at - now).total_seconds()) + 1
        raise Conflict(
            f"the next key was published a moment ago and verifiers may not know it: rotate in {seconds} s,"
            " or at once with emergency=true, which also withdraws all earlier keys",
            retry_after_seconds=seconds,
        )
    stopped = replace(ring.current, stopped_at=now)
    kept, retired = ((), (stopped, *ring.previous)) if emergency else _split((stopped, *ring.previous), schedule, now)
    rotated = KeyRing(replace(ring.successor, signs_from=now), fresh, kept)
    return rotated, [KeyRotated(key_id=rotated.current.id, retired=[key.id for key in retired])]


def tidy(ring: KeyRing, schedule: Schedule, *, now: datetime) -> tuple[KeyRing, list[Event]]:
    """The ring without keys whose tokens have all expired; the same ring and no event when there are none."""
    kept, retired = _split(ring.previous, schedule, now)
    if not retired:
        return ring, []
    return replace(ring, previous=kept), [KeyRotated(key_id=ring.current.id, retired=[key.id for key in retired])]


def _ready_at(ring: KeyRing, schedule: Schedule) -> datetime:
    """When the successor is known everywhere."""
    return ring.successor.created_at if ring.together else ring.successor.created_at + schedule.lead


def _split(
    keys: tuple[SigningKey, ...], schedule: Schedule, now: datetime
) -> tuple[tuple[SigningKey, ...], tuple[SigningKey, ...]]:
    """Keys that must stay published, and those that need not."""
    kept = tuple(key for key in keys if key.stopped_at is None or now < key.stopped_at + schedule.keep)
    return kept, tuple(key for key in keys if key not in kept)
