"""Workers that are alive, as keys that expire."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import timedelta

from modelworks.stores.keyvalue.port import KeyValue


class KeyValuePresence:
    """`inference:worker:<name>`."""

    def __init__(self, keyvalue: KeyValue, *, expires: timedelta) -> None:
        self._keyvalue = keyvalue
        self._expires = expires

    async def beat(self, worker: str) -> None:
        """See Presence."""
        await self._keyvalue.set(_key(worker), b"1", expires=self._expires)

    async def leave(self, worker: str) -> None:
        """See Presence."""
        await self._keyvalue.delete(_key(worker))

    async def alive(self, workers: Collection[str]) -> frozenset[str]:
        """See Presence."""
        names = list(workers)
        found = await asyncio.gather(*(self._keyvalue.get(_key(name)) for name in names))
        return frozenset(name for name, value in zip(names, found, strict=True) if value is not None)


def _key(worker: str) -> str:
    return f"inference:worker:{worker}"
