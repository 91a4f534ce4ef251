"""Work that may run at once: out of order across keys, in order within a key, and never more than a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Window(Generic[T]):
    """Items that were read ahead, some of them running."""

    def __init__(self, *, running_max: int) -> None:
        self.running_max = running_max
        self.size_max = 4 * running_max + 16
        """Items held, running or waiting: enough that a few busy keys do not starve free slots."""
        self.running = 0
        self._waiting = 0
        self._keys: dict[Hashable, deque[T]] = {}
        """What waits behind the item of the same key that is ready or running."""
        self._ready: deque[tuple[Hashable, T]] = deque()

    def __len__(self) -> int:
        return self.running + self._waiting

    @property
    def full(self) -> bool:
        """No more may be offered."""
        return len(self) >= self.size_max

    def offer(self, key: Hashable, item: T) -> None:
        """Hold an item; those of one key must come in order."""
        self._waiting += 1
        behind = self._keys.get(key)
        if behind is None:
            self._keys[key] = deque()
            self._ready.append((key, item))
        else:
            behind.append(item)

    def take(self) -> tuple[Hashable, T] | None:
        """An item to start now, or None: all slots are busy, or nothing is ready."""
        if self.running >= self.running_max or not self._ready:
            return None
        self.running += 1
        self._waiting -= 1
        return self._ready.popleft()

    def finish(self, key: Hashable) -> None:
        """An item that was taken is done: the next of its key is ready."""
        self.running -= 1
        self._promote(key)

    def clear(self) -> list[T]:
        """Forget the items that wait, and return them; what runs goes on."""
        forgotten = [item for _, item in self._ready]
        for behind in self._keys.values():
            forgotten.extend(behind)
            behind.clear()
        ready, self._ready = self._ready, deque()
        self._waiting = 0
        for key, _ in ready:
            del self._keys[key]
        return forgotten

    def _promote(self, key: Hashable) -> None:
        behind = self._keys[key]
        if behind:
            self._ready.append((key, behind.popleft()))
        else:
            del self._keys[key]
