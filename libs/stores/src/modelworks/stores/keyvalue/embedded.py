"""The embedded adapter: a Redis that lives in this process's memory, and is empty after a restart."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from modelworks.stores.keyvalue.client import RedisClientKeyValue

if TYPE_CHECKING:
    from redis.asyncio import Redis


class EmbeddedKeyValue(RedisClientKeyValue):
    """Key-value state of one process."""

    def __init__(self) -> None:
        super().__init__(_connect, where="of this process")


async def _connect() -> Redis:
    # Half a second of imports: on first use, and without holding the event loop up.
    fakeredis = await asyncio.to_thread(__import__, "fakeredis")
    client: Redis = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
    return client
