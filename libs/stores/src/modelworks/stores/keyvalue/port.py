"""Short-lived state: everything expires, nothing here may be the only copy of anything."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that is held."""

    name: str
    fence: int
    """Grows with each holder: a store that remembers the highest fence refuses a holder whose time is over."""


class KeyValue(Protocol):
    """Strings to bytes, with expiry. Every method raises StoreUnavailable when the store does not answer."""

    async def set(self, key: str, value: bytes, *, expires: timedelta) -> None:
        """Set, replacing what was there."""

    async def add(self, key: str, value: bytes, *, expires: timedelta) -> bool:
        """Set only if the key is free; says whether it was. Atomic."""

    async def get(self, key: str) -> bytes | None:
        """The value, or None when there is none or it has expired."""

    async def take(self, key: str) -> bytes | None:
        """Get and delete in one step: of many callers exactly one gets the value."""

    async def delete(self, key: str) -> None:
        """Remove; nothing happens when there is none."""

    async def increment(self, key: str, *, by: int = 1, expires: timedelta) -> int:
        """Add to a counter and return it; the expiry is set when the counter is made, and not renewed."""

    def lock(self, name: str, *, lease: timedelta, wait: timedelta) -> AbstractAsyncContextManager[Lock]:
        """Hold a lock for the body, at most for `lease`.

        Raises:
            Conflict: it was not free within `wait`.
        """

    async def check(self) -> None:
        """Readiness.

        Raises:
            StoreUnavailable: the store cannot be reached.
        """

    async def close(self) -> None:
        """Let go of connections."""
