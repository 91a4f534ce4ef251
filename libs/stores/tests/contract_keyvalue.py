"""What every key-value store does. Each adapter's test module subclasses `KeyValueContract` and gives `open_keyvalue`."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Protocol

import pytest
from modelworks.kit.errors import Conflict, InvalidInput
from modelworks.stores import KeyValue

MINUTE = timedelta(minutes=1)
SOON = timedelta(milliseconds=80)
Eventually = Callable[..., Awaitable[Any]]


class OpenKeyValue(Protocol):
    """Opens a store on the same data each time, where there can be two; all are closed after the test."""

    def __call__(self) -> KeyValue: ...


class KeyValueContract:
    @pytest.fixture
    def key(self) -> str:
        """A key that no other test uses: a real server is shared."""
        return f"test:{uuid.uuid4().hex}"

    @pytest.fixture
    def keyvalue(self, open_keyvalue: OpenKeyValue) -> KeyValue:
        return open_keyvalue()

    async def test_what_was_set_is_read_back_until_it_is_deleted(self, keyvalue: KeyValue, key: str) -> None:
        await keyvalue.set(key, b"one", expires=MINUTE)
        await keyvalue.set(key, b"\x00\xff two", expires=MINUTE)

        assert await keyvalue.get(key) == b"\x00\xff two"
        await keyvalue.delete(key)
        await keyvalue.delete(key)
        assert await keyvalue.get(key) is None

    async def test_an_empty_value_is_a_value(self, keyvalue: KeyValue, key: str) -> None:
        await keyvalue.set(key, b"", expires=MINUTE)

        assert await keyvalue.get(key) == b""
        assert await keyvalue.take(key) == b""

    @pytest.mark.parametrize("name", ["ü 漢字 \n", "a" * 900, "with:colons*and?patterns[x]"])
    async def test_any_text_is_a_key(self, keyvalue: KeyValue, key: str, name: str) -> None:
        await keyvalue.set(key + name, b"x", expires=MINUTE)

        assert await keyvalue.get(key + name) == b"x"
        assert await keyvalue.get(key + name + "y") is None

    async def test_a_value_expires(self, keyvalue: KeyValue, key: str, eventually: Eventually) -> None:
        await keyvalue.set(key, b"x", expires=SOON)

        async def gone() -> bool:
            return await keyvalue.get(key) is None

        assert not await gone()
        await eventually(gone, within=2)
        assert await keyvalue.take(key) is None

    async def test_add_is_for_a_free_key_only(self, keyvalue: KeyValue, key: str, eventually: Eventually) -> None:
        assert await keyvalue.add(key, b"one", expires=SOON)
        assert not await keyvalue.add(key, b"two", expires=MINUTE)
        assert await keyvalue.get(key) == b"one"

        async def free_again() -> bool:
            return await keyvalue.add(key, b"three", expires=MINUTE)

        await eventually(free_again, within=2)
        assert await keyvalue.get(key) == b"three"

    async def test_of_many_who_add_exactly_one_does(self, keyvalue: KeyValue, key: str) -> None:
        added = await asyncio.gather(*(keyvalue.add(key, b"x", expires=MINUTE) for _ in range(20)))

        assert sorted(added) == [False] * 19 + [True]

    async def test_of_many_who_take_exactly_one_gets_it(self, keyvalue: KeyValue, key: str) -> None:
        for _ in range(5):
            await keyvalue.set(key, b"once", expires=MINUTE)

            taken = await asyncio.gather(*(keyvalue.take(key) for _ in range(20)))

            assert (taken.count(b"once"), taken.count(None)) == (1, 19)

    async def test_a_counter_counts_every_call(self, keyvalue: KeyValue, key: str) -> None:
        counts = await asyncio.gather(*(keyvalue.increment(key, expires=MINUTE) for _ in range(50)))

        assert sorted(counts) == list(range(1, 51))
        assert await keyvalue.increment(key, by=10, expires=MINUTE) == 60
        assert await keyvalue.increment(key, by=-60, expires=MINUTE) == 0

    async def test_counting_does_not_renew_the_expiry(
        self, keyvalue: KeyValue, key: str, eventually: Eventually
    ) -> None:
        began = time.monotonic()
        await keyvalue.increment(key, expires=timedelta(milliseconds=300))

        async def starts_again() -> bool:
            return await keyvalue.increment(key, expires=timedelta(milliseconds=300)) == 1

        # Each of these calls would push the expiry on, if calls did.
        await eventually(starts_again, within=5)
        assert time.monotonic() - began >= 0.25

    async def test_what_is_no_counter_is_refused(self, keyvalue: KeyValue, key: str) -> None:
        await keyvalue.set(key, b"text", expires=MINUTE)

        with pytest.raises(InvalidInput, match="counter"):
            await keyvalue.increment(key, expires=MINUTE)
        assert await keyvalue.get(key) == b"text"

    @pytest.mark.parametrize("expires", [timedelta(0), timedelta(seconds=-1), timedelta(microseconds=900)])
    async def test_an_expiry_that_is_over_is_refused(self, keyvalue: KeyValue, key: str, expires: timedelta) -> None:
        with pytest.raises(InvalidInput, match="expiry"):
            await keyvalue.set(key, b"x", expires=expires)
        with pytest.raises(InvalidInput, match="expiry"):
            await keyvalue.add(key, b"x", expires=expires)
        with pytest.raises(InvalidInput, match="expiry"):
            await keyvalue.increment(key, expires=expires)
        with pytest.raises(InvalidInput, match="expiry"):
            async with keyvalue.lock(key, lease=expires, wait=MINUTE):
                pass

    @pytest.mark.parametrize("name", ["", "k" * 1025])
    async def test_a_key_out_of_bounds_is_refused(self, keyvalue: KeyValue, name: str) -> None:
        with pytest.raises(InvalidInput, match="characters"):
            await keyvalue.set(name, b"x", expires=MINUTE)
        with pytest.raises(InvalidInput, match="characters"):
            await keyvalue.get(name)

    # Locks

    async def test_only_one_holds_a_lock(self, keyvalue: KeyValue, key: str) -> None:
        holders = most = 0
        fences = []

        async def work() -> None:
            nonlocal holders, most
            async with keyvalue.lock(key, lease=MINUTE, wait=MINUTE) as lock:
                holders += 1
                most = max(most, holders)
                fences.append(lock.fence)
                await asyncio.sleep(0.002)
                holders -= 1

        await asyncio.gather(*(work() for _ in range(15)))

        assert most == 1
        assert fences == sorted(set(fences))
        assert len(fences) == 15

    async def test_a_lock_that_stays_held_is_a_conflict(self, keyvalue: KeyValue, key: str) -> None:
        async with keyvalue.lock(key, lease=MINUTE, wait=MINUTE):
            with pytest.raises(Conflict, match=key):
                async with keyvalue.lock(key, lease=MINUTE, wait=SOON):
                    pass
            with pytest.raises(Conflict):
                async with keyvalue.lock(key, lease=MINUTE, wait=timedelta(0)):
                    pass
            async with keyvalue.lock(key + "-other", lease=MINUTE, wait=SOON):
                pass

        async with keyvalue.lock(key, lease=MINUTE, wait=SOON) as lock:
            assert lock.name == key

    async def test_a_lock_is_freed_when_its_body_fails_or_is_cancelled(self, keyvalue: KeyValue, key: str) -> None:
        with pytest.raises(ZeroDivisionError):
            async with keyvalue.lock(key, lease=MINUTE, wait=SOON):
                raise ZeroDivisionError
        entered = asyncio.Event()

        async def hold() -> None:
            async with keyvalue.lock(key, lease=MINUTE, wait=SOON):
                entered.set()
                await asyncio.Event().wait()

        holder = asyncio.create_task(hold())
        await entered.wait()
        holder.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holder

        async with keyvalue.lock(key, lease=MINUTE, wait=SOON):
            pass

    async def test_a_holder_beyond_its_lease_has_a_lower_fence_and_frees_nothing(
        self, keyvalue: KeyValue, key: str
    ) -> None:
        async with keyvalue.lock(key, lease=SOON, wait=MINUTE) as late:
            second = keyvalue.lock(key, lease=MINUTE, wait=timedelta(seconds=5))
            successor = await second.__aenter__()
        # The first holder has left by now, and must not have freed what is the second's.
        assert successor.fence > late.fence
        with pytest.raises(Conflict):
            async with keyvalue.lock(key, lease=MINUTE, wait=SOON):
                pass
        await second.__aexit__(None, None, None)

    async def test_check_passes(self, keyvalue: KeyValue) -> None:
        await keyvalue.check()
