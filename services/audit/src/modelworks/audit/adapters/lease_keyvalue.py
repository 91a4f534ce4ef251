"""The lease in the key-value store: a name that expires unless its holder keeps it."""

from __future__ import annotations

import uuid
from datetime import timedelta

from modelworks.stores import KeyValue

_NAME = "audit/sequencer"


class KeyValueLease:
    """`Lease` over `KeyValue`.

    Renewing reads and then writes, so two processes may both believe for a
    moment that they hold it; the log's plans stop the second one.
    """

    def __init__(self, keyvalue: KeyValue, *, expires: timedelta) -> None:
        self._keyvalue = keyvalue
        self._expires = expires
        self._mine = uuid.uuid4().hex.encode()

    async def acquire(self) -> bool:
        return await self._keyvalue.add(_NAME, self._mine, expires=self._expires) or await self.renew()

    async def renew(self) -> bool:
        holder = await self._keyvalue.get(_NAME)
        if holder not in (None, self._mine):
            return False
        await self._keyvalue.set(_NAME, self._mine, expires=self._expires)
        return True

    async def release(self) -> None:
        if await self._keyvalue.get(_NAME) == self._mine:
            await self._keyvalue.delete(_NAME)
