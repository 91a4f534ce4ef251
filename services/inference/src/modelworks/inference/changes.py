"""Waking whoever waits for a change: at once inside this process, by looking again where another process made it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

Seen = TypeVar("Seen")


class Changes:
    """Waiters by key."""

    def __init__(self, *, poll_seconds: float = 0.5, waiters_max: int = 4096) -> None:
        """`poll_seconds`: pause between looks when nobody tells. Above `waiters_max` nobody waits any more."""
        self._poll_seconds = poll_seconds
        self._waiters_max = waiters_max
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._count = 0

    def waiting(self) -> int:
        """How many wait."""
        return self._count

    def notify(self, key: str) -> None:
        """The key changed."""
        for event in self._waiting.get(key, ()):
            event.set()

    async def until(
        self,
        key: str,
        read: Callable[[], Awaitable[Seen]],
        done: Callable[[Seen], bool],
        *,
        timeout_seconds: float,
        poll_seconds: float | None = None,
    ) -> Seen:
        """The first reading that is done, or the last one when the time is over. Errors of `read` pass through."""
        poll = self._poll_seconds if poll_seconds is None else poll_seconds
        deadline = time.monotonic() + timeout_seconds
        event = asyncio.Event()
        self._waiting.setdefault(key, set()).add(event)
        self._count += 1
        try:
            while True:
                event.clear()
                value = await read()
                left = deadline - time.monotonic()
                if done(value) or left <= 0 or self._count > self._waiters_max:
                    return value
                try:
                    await asyncio.wait_for(event.wait(), min(left, poll))
                except TimeoutError:
                    continue
        finally:
            self._count -= 1
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]
