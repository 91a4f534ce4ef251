"""The key-value contract on Redis, and what only a server can do: be away, and come back empty."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import pytest
from modelworks.kit.errors import InvalidInput, StoreUnavailable
from modelworks.stores import KeyValue
from modelworks.stores.keyvalue.redis import RedisKeyValue
from modelworks.stores.settings import StoresSettings

pytest.register_assert_rewrite("libs.stores.tests.contract_keyvalue")

from libs.stores.tests.contract_keyvalue import MINUTE, SOON, KeyValueContract, OpenKeyValue  # noqa: E402
from tests.stack.endpoints import RedisEndpoint  # noqa: E402
from tests.stack.server import Server  # noqa: E402

pytestmark = pytest.mark.real


@pytest.fixture
def key() -> str:
    return f"test:{uuid.uuid4().hex}"


@pytest.fixture
def settings(redis_server: Server[RedisEndpoint]) -> StoresSettings:
    return StoresSettings(column="real", redis_url=redis_server.endpoint.url, timeout_ms=5_000)


@pytest.fixture
async def open_keyvalue(settings: StoresSettings) -> AsyncIterator[OpenKeyValue]:
    opened: list[RedisKeyValue] = []

    def open_keyvalue() -> RedisKeyValue:
        opened.append(RedisKeyValue(settings))
        return opened[-1]

    yield open_keyvalue
    for keyvalue in opened:
        await keyvalue.close()


@pytest.fixture
def keyvalue(open_keyvalue: OpenKeyValue) -> KeyValue:
    return open_keyvalue()


class TestRedisKeyValue(KeyValueContract):
    async def test_two_processes_share_keys_counters_and_locks(self, open_keyvalue: OpenKeyValue, key: str) -> None:
        first, second = open_keyvalue(), open_keyvalue()
        await first.set(key, b"x", expires=MINUTE)

        taken = await asyncio.gather(first.take(key), second.take(key))
        counts = await asyncio.gather(*(store.increment(key, expires=MINUTE) for store in [first, second] * 20))
        async with first.lock(key + "-lock", lease=MINUTE, wait=SOON) as held:
            contended = second.lock(key + "-lock", lease=MINUTE, wait=MINUTE)
            waiting = asyncio.create_task(contended.__aenter__())
            await asyncio.sleep(0.02)
            assert not waiting.done()
        later = await waiting
        await contended.__aexit__(None, None, None)

        assert (taken.count(b"x"), taken.count(None)) == (1, 1)
        assert sorted(counts) == list(range(1, 41))
        assert later.fence > held.fence


async def test_a_fence_grows_on_when_redis_forgot_everything(
    redis_server: Server[RedisEndpoint], keyvalue: KeyValue, key: str
) -> None:
    """INVARIANT: a store that remembers a fence must not refuse all later holders; would break with counts from 1."""
    async with keyvalue.lock(key, lease=MINUTE, wait=SOON) as before:
        pass
    import redis

    with redis.Redis.from_url(redis_server.endpoint.url) as client:
        client.delete(f"modelworks:lock:{key}:fence")

    async with keyvalue.lock(key, lease=MINUTE, wait=SOON) as after:
        pass

    assert after.fence > before.fence


async def test_everything_expires(redis_server: Server[RedisEndpoint], keyvalue: KeyValue, key: str) -> None:
    await keyvalue.set(key, b"x", expires=MINUTE)
    await keyvalue.add(key + "-add", b"x", expires=MINUTE)
    await keyvalue.increment(key + "-count", expires=MINUTE)
    async with keyvalue.lock(key, lease=MINUTE, wait=SOON):
        import redis

        with redis.Redis.from_url(redis_server.endpoint.url) as client:
            names = list(client.scan_iter(f"*{key}*"))
            remaining = {name: client.ttl(name) for name in names}

    assert len(remaining) == 5
    assert all(seconds > 0 for seconds in remaining.values())


async def test_a_server_that_is_down_at_the_start_is_told_and_used_when_it_comes(
    redis_server: Server[RedisEndpoint], keyvalue: KeyValue, key: str
) -> None:
    redis_server.kill()
    for attempt in (keyvalue.check(), keyvalue.set(key, b"x", expires=MINUTE), keyvalue.get(key), keyvalue.take(key)):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="is it up") as refused:
            await attempt
        assert time.monotonic() - began < 3
        assert redis_server.endpoint.url.split("@")[0].split(":")[-1] not in str(refused.value)
    with pytest.raises(StoreUnavailable):
        async with keyvalue.lock(key, lease=MINUTE, wait=MINUTE):
            pass

    await asyncio.to_thread(redis_server.restart)

    await keyvalue.check()
    await keyvalue.set(key, b"x", expires=MINUTE)
    assert await keyvalue.get(key) == b"x"


async def test_connections_that_a_restart_cut_are_made_again(
    redis_server: Server[RedisEndpoint], keyvalue: KeyValue, key: str
) -> None:
    await asyncio.gather(*(keyvalue.increment(key, expires=MINUTE) for _ in range(30)))
    await asyncio.to_thread(redis_server.restart)
    failures = 0
    for _ in range(40):
        try:
            await keyvalue.get(key)
        except StoreUnavailable:
            failures += 1

    # Each connection of the pool may have to fail once, since a command is never sent twice.
    assert failures <= 30
    await keyvalue.check()


async def test_a_lock_body_ends_well_when_redis_goes_away(
    redis_server: Server[RedisEndpoint], keyvalue: KeyValue, key: str
) -> None:
    async with keyvalue.lock(key, lease=MINUTE, wait=SOON):
        await asyncio.to_thread(redis_server.kill)

    await asyncio.to_thread(redis_server.restart)


async def test_a_server_that_does_not_answer_is_given_up_in_time(
    redis_server: Server[RedisEndpoint], settings: StoresSettings, key: str
) -> None:
    keyvalue = RedisKeyValue(settings.model_copy(update={"timeout_ms": 300}))
    await keyvalue.check()
    redis_server.pause()

    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="did not answer"):
        await keyvalue.get(key)
    waited = time.monotonic() - began
    redis_server.resume()

    assert waited < 2
    await keyvalue.check()
    await keyvalue.close()


@pytest.mark.parametrize("url", ["", "http://x", "127.0.0.1:6379", "redis"])
def test_what_is_no_redis_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="STORES_REDIS_URL"):
        RedisKeyValue(StoresSettings(redis_url=url))


async def test_a_wrong_password_is_told_without_it(redis_server: Server[RedisEndpoint]) -> None:
    address = redis_server.endpoint.url.split("@")[1]
    keyvalue = RedisKeyValue(StoresSettings(redis_url=f"redis://:hunter2@{address}"))

    with pytest.raises(StoreUnavailable) as refused:
        await keyvalue.check()

    assert "hunter2" not in str(refused.value)
    await keyvalue.close()
