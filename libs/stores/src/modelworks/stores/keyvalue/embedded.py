"""The embedded adapter: a Redis that lives in this process's memory, and is empty after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from modelworks.stores.keyvalue.client import RedisClientKeyValue

if TYPE_CHECKING:
    from redis.asyncio import Redis

T = TypeVar("T")

_SWEEP_EVERY = 1000
"""Calls."""


class EmbeddedKeyValue(RedisClientKeyValue):
    """Key-value state of one process."""

    def __init__(self) -> None:
        super().__init__(_connect, where="of this process")
        self._asked = 0

    async def _ask(self, question: Callable[[Redis], Awaitable[T]]) -> T:
        # fakeredis drops what has expired only when somebody looks at all keys, as this does: keys that are set and
        # never read again would fill the memory.
        self._asked += 1
        if self._asked % _SWEEP_EVERY == 0:
            await super()._ask(lambda redis: redis.dbsize())
        return await super()._ask(question)


async def _connect() -> Redis:
    # Half a second of imports: on first use, and without holding the event loop up.
    fakeredis = await asyncio.to_thread(__import__, "fakeredis")
    client: Redis = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
    return client
