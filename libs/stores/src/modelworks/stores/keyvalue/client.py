"""The port over any Redis client: what the embedded and the real adapter share, which is everything but the connection."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from modelworks.kit.errors import Conflict, InvalidInput, StoreUnavailable
from modelworks.stores.keyvalue.port import Lock

if TYPE_CHECKING:
    from redis.asyncio import Redis

T = TypeVar("T")

_KEY_CHARACTERS_MAX = 1024
_FENCE_EXPIRES = timedelta(days=30)
_PAUSE_SECONDS = (0.005, 0.05)
"""First and longest wait between two looks at a lock that is held."""


class RedisClientKeyValue:
    """Keys and values of one Redis, all keys under one prefix."""

    def __init__(self, connect: Callable[[], Awaitable[Redis]], *, where: str, prefix: str = "modelworks:") -> None:
        """`connect` is called once, on first use; `where` names the store in errors, without its password."""
        self._connect = connect
        self._where = where
        self._prefix = prefix
        self._client: Redis | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    async def set(self, key: str, value: bytes, *, expires: timedelta) -> None:
        name, expires_ms = self._name(key), _milliseconds(expires)
        await self._ask(lambda redis: redis.set(name, value, px=expires_ms))

    async def add(self, key: str, value: bytes, *, expires: timedelta) -> bool:
        name, expires_ms = self._name(key), _milliseconds(expires)
        return bool(await self._ask(lambda redis: redis.set(name, value, px=expires_ms, nx=True)))

    async def get(self, key: str) -> bytes | None:
        name = self._name(key)
        return cast("bytes | None", await self._ask(lambda redis: redis.get(name)))

    async def take(self, key: str) -> bytes | None:
        name = self._name(key)
        return cast("bytes | None", await self._ask(lambda redis: redis.getdel(name)))

    async def delete(self, key: str) -> None:
        name = self._name(key)
        await self._ask(lambda redis: redis.delete(name))

    async def increment(self, key: str, *, by: int = 1, expires: timedelta) -> int:
        name, expires_ms = self._name(key), _milliseconds(expires)

        async def count(redis: Redis) -> int:
            async with redis.pipeline(transaction=True) as steps:
                steps.set(name, 0, px=expires_ms, nx=True)
                steps.incrby(name, by)
                return int((await steps.execute())[1])

        return await self._ask(count)

    @asynccontextmanager
    async def lock(self, name: str, *, lease: timedelta, wait: timedelta) -> AsyncIterator[Lock]:
        key, lease_ms, token = self._name(f"lock:{name}"), _milliseconds(lease), secrets.token_hex(16).encode()
        deadline = time.monotonic() + wait.total_seconds()
        pause = _PAUSE_SECONDS[0]
        while (fence := await self._ask(lambda redis: self._seize(redis, key, token, lease_ms))) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Conflict(
                    f"lock {name!r} was held by somebody else for {wait.total_seconds():g} s: try again later"
                )
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 2, _PAUSE_SECONDS[1])
        try:
            yield Lock(name, fence)
        finally:
            # Also when the body was cancelled: the next holder need not wait for the lease to end.
            await asyncio.shield(self._release(key, token))

    async def check(self) -> None:
        await self._ask(lambda redis: redis.ping())

    async def close(self) -> None:
        self._closed = True
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _seize(self, redis: Redis, key: str, token: bytes, lease_ms: int) -> int | None:
        """Take the lock and the next fence in one transaction, or nothing when it is held.

        In one step, since a holder that pauses between two would come back with a fence above its successor's.
        """
        from redis.exceptions import WatchError

        fence = key + ":fence"
        async with redis.pipeline(transaction=True) as steps:
            try:
                await steps.watch(key)
                if await steps.exists(key):
                    return None
                steps.multi()  # type: ignore[no-untyped-call]
                steps.set(key, token, px=lease_ms, nx=True)
                # Counted from the time of day: fences grow on even when the store has lost the counter.
                steps.set(fence, time.time_ns() // 1_000_000, nx=True)
                steps.incr(fence)
                steps.pexpire(fence, int(_FENCE_EXPIRES.total_seconds() * 1000))
                results = await steps.execute()
            except WatchError:
                return None
        return int(results[2])

    async def _release(self, key: str, token: bytes) -> None:
        from redis.exceptions import WatchError

        async def release(redis: Redis) -> None:
            async with redis.pipeline(transaction=True) as steps:
                try:
                    await steps.watch(key)
                    if await steps.get(key) == token:
                        steps.multi()  # type: ignore[no-untyped-call]
                        steps.delete(key)
                        await steps.execute()
                except WatchError:
                    return  # the lease ended and somebody else holds it

        try:
            await self._ask(release)
        except StoreUnavailable:
            return  # the body's outcome counts; the lease ends by itself

    async def _ask(self, question: Callable[[Redis], Awaitable[T]]) -> T:
        """The answer of the store, with its errors in the port's words."""
        from redis.exceptions import RedisError, ResponseError

        try:
            return await question(await self._connected())
        except ResponseError as error:
            if "not an integer" in str(error) or "WRONGTYPE" in str(error) or "overflow" in str(error):
                raise InvalidInput(f"the key does not hold a counter: {error}") from error
            raise StoreUnavailable(f"key-value store {self._where} refused: {error}") from error
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(
                f"key-value store {self._where} did not answer ({type(error).__name__}): is it up?"
            ) from error

    async def _connected(self) -> Redis:
        if self._closed:
            raise StoreUnavailable(f"key-value store {self._where} was closed")
        if self._client is None:
            async with self._connecting:
                if self._client is None:
                    self._client = await self._connect()
        return self._client

    def _name(self, key: str) -> str:
        if not key or len(key) > _KEY_CHARACTERS_MAX:
            raise InvalidInput(f"key {key[:60]!r} has {len(key)} characters: give 1 to {_KEY_CHARACTERS_MAX}")
        return self._prefix + key


def _milliseconds(duration: timedelta) -> int:
    milliseconds = int(duration.total_seconds() * 1000)
    if milliseconds < 1:
        raise InvalidInput(f"expiry {duration} is over before it starts: give at least 1 ms")
    return milliseconds
