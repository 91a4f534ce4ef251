"""The key-value contract in this process's memory."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from modelworks.kit.errors import StoreUnavailable
from modelworks.stores.keyvalue.embedded import EmbeddedKeyValue

pytest.register_assert_rewrite("libs.stores.tests.contract_keyvalue")

from libs.stores.tests.contract_keyvalue import MINUTE, KeyValueContract, OpenKeyValue  # noqa: E402


class TestEmbeddedKeyValue(KeyValueContract):
    @pytest.fixture
    async def open_keyvalue(self) -> AsyncIterator[OpenKeyValue]:
        opened: list[EmbeddedKeyValue] = []

        def open_keyvalue() -> EmbeddedKeyValue:
            opened.append(EmbeddedKeyValue())
            return opened[-1]

        yield open_keyvalue
        for keyvalue in opened:
            await keyvalue.close()


async def test_two_stores_share_nothing() -> None:
    first, second = EmbeddedKeyValue(), EmbeddedKeyValue()
    await first.set("a", b"x", expires=MINUTE)

    assert await second.get("a") is None
    await first.close()
    await second.close()


async def test_what_expired_and_is_never_read_again_does_not_fill_the_memory() -> None:
    keyvalue = EmbeddedKeyValue()
    await keyvalue.check()
    tracemalloc.start()
    for round_number in range(3):
        for n in range(1000):
            await keyvalue.set(f"{round_number} {n}", bytes(10_000), expires=timedelta(milliseconds=1))
    await asyncio.sleep(0.01)
    for _ in range(1000):
        await keyvalue.get("another")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert held < 5_000_000
    await keyvalue.close()


async def test_a_closed_store_says_so() -> None:
    keyvalue = EmbeddedKeyValue()
    await keyvalue.set("a", b"x", expires=timedelta(seconds=1))
    await keyvalue.close()
    await keyvalue.close()

    with pytest.raises(StoreUnavailable, match="closed"):
        await keyvalue.get("a")


def test_opening_it_imports_neither_fakeredis_nor_redis() -> None:
    """INVARIANT: the start of the suite does not wait for half a second of imports."""
    script = (
        "import sys; from modelworks.stores.keyvalue.embedded import EmbeddedKeyValue; EmbeddedKeyValue(); "
        "print(sorted({'redis', 'fakeredis'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
