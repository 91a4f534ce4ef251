"""What the bus's contract is written with: messages, recording handlers, and the fixtures of its suites."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol, cast

import pytest
from modelworks.stores import Bus, Delivery, Message, RetryPolicy

SOON = RetryPolicy(delays=(timedelta(milliseconds=50), timedelta(milliseconds=100)))
AT_ONCE_DEAD = RetryPolicy(delays=())
Eventually = Callable[..., Awaitable[Any]]


class OpenBus(Protocol):
    """Opens a bus on the same data each time; all are closed after the test."""

    def __call__(self, *, drain: timedelta = timedelta(seconds=10)) -> Bus: ...


class Recorder:
    """A handler that keeps what it was given, and does what `react` says."""

    def __init__(self, react: Callable[[Delivery], Awaitable[None]] | None = None) -> None:
        self.batches: list[list[Delivery]] = []
        self.finished: list[str] = []
        self._react = react

    async def __call__(self, batch: Sequence[Delivery]) -> None:
        self.batches.append(list(batch))
        for delivery in batch:
            if self._react:
                await self._react(delivery)
        self.finished.extend(text(delivery) for delivery in batch)

    @property
    def deliveries(self) -> list[Delivery]:
        return [delivery for batch in self.batches for delivery in batch]

    @property
    def seen(self) -> list[str]:
        return [text(delivery) for delivery in self.deliveries]


def text(delivery: Delivery) -> str:
    return delivery.message.value.decode()


def message(topic: str, value: str, *, key: str = "k", **headers: str) -> Message:
    return Message(topic, key, value.encode(), headers)


def failing(*bad: str, error: Exception) -> Callable[[Delivery], Awaitable[None]]:
    async def react(delivery: Delivery) -> None:
        if text(delivery) in bad:
            raise error

    return react


async def drained(bus: Bus, group: str) -> bool:
    return all(lag.messages == 0 for lag in await bus.lag(group))


def tail(bus: Bus, topics: Sequence[str], after: Mapping[str, str] | None = None) -> AsyncGenerator[Delivery, None]:
    """The port promises an iterator; both adapters give a generator, so that a test can end it."""
    return cast(AsyncGenerator[Delivery, None], bus.tail(topics, after=after))


async def in_place(bus: Bus, topics: Sequence[str]) -> tuple[AsyncGenerator[Delivery, None], list[str]]:
    """A tail that is known to be reading, and what it has seen until then; nothing of it is left to be read."""
    following = tail(bus, topics)
    first = asyncio.ensure_future(anext(following))
    while not first.done():
        await bus.publish([message(topics[0], "probe")])
        await asyncio.wait([first], timeout=0.1)
    seen = [text(first.result())]
    last = f"probe-{uuid.uuid4().hex}"
    await bus.publish([message(topics[0], last)])
    while seen[-1] != last:
        seen.append(text(await asyncio.wait_for(anext(following), 10)))
    return following, seen


class BusSuite:
    """`topic` and `group` are fresh names for each test; adapters give `open_bus`."""

    @pytest.fixture
    def topic(self) -> str:
        return f"test.happened-{uuid.uuid4().hex[:12]}.v1"

    @pytest.fixture
    def group(self) -> str:
        return f"group-{uuid.uuid4().hex[:12]}"

    @pytest.fixture
    async def bus(self, open_bus: OpenBus) -> Bus:
        return open_bus()
