"""Refusals reach the audit, in bounded numbers, and never change an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from modelworks.events import AccessDenied
from modelworks.kit.errors import StoreUnavailable
from modelworks.stores import Delivery, Message, Subscription
from modelworks.stores.bus.sqlite import SqliteBus
from modelworks.stores.outbox import envelope_of
from modelworks.stores.refusals import Refusals
from modelworks.stores.stores import Stores

Eventually = Callable[..., Awaitable[Any]]
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Reader:
    """Collects what was published, as the audit would."""

    def __init__(self) -> None:
        self.events: list[AccessDenied] = []
        self.actors: list[str] = []
        self.ids: list[str] = []

    async def __call__(self, batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            envelope = envelope_of(delivery.message)
            assert isinstance(envelope.event, AccessDenied)
            assert envelope.source == "/services/registry"
            assert envelope.time == NOW
            self.events.append(envelope.event)
            self.actors.append(envelope.actor)
            self.ids.append(envelope.id)


class Seconds:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def refusal(principal: str = "eve", reason: str = "policy-denied") -> AccessDenied:
    return AccessDenied.model_validate(
        {
            "principal": principal,
            "service": "registry",
            "action": "model:write",
            "resource": "a/b",
            "reason": reason,
            "detail": "no",
        }
    )


@pytest.fixture
async def reader(stores: Stores) -> Reader:
    reader = Reader()
    await stores.bus.subscribe(Subscription("audit", (AccessDenied.topic,), reader, batch_max=100))
    return reader


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def refusals(stores: Stores, seconds: Seconds) -> Refusals:
    return Refusals(stores.bus, service="registry", clock=lambda: NOW, per_minute_max=3, monotonic=seconds)


async def test_a_refusal_is_published_with_its_actor(
    refusals: Refusals, reader: Reader, eventually: Eventually
) -> None:
    await refusals(refusal(), "eve")

    await eventually(lambda: reader.events)
    assert reader.events == [refusal()]
    assert reader.actors == ["eve"]


async def test_refusals_beyond_the_bound_are_counted_in_the_next_event(
    refusals: Refusals, reader: Reader, seconds: Seconds, eventually: Eventually
) -> None:
    for _ in range(10):
        await refusals(refusal(), "eve")
    seconds.now = 60.0
    await refusals(refusal(), "eve")

    await eventually(lambda: len(reader.events) == 4)
    assert [event.suppressed for event in reader.events] == [0, 0, 0, 7]
    assert len(set(reader.ids)) == 4


async def test_each_principal_and_reason_has_its_own_bound(
    refusals: Refusals, reader: Reader, eventually: Eventually
) -> None:
    for _ in range(5):
        await refusals(refusal("eve"), "eve")
    await refusals(refusal("mallory"), "mallory")
    await refusals(refusal("eve", "scope-missing"), "eve")

    await eventually(lambda: len(reader.events) == 5)
    assert [event.principal for event in reader.events] == ["eve", "eve", "eve", "mallory", "eve"]


async def test_a_bus_that_is_down_changes_no_answer_and_loses_no_count(tmp_path: Path, eventually: Eventually) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    bus = SqliteBus(blocked / "bus.sqlite")
    refusals = Refusals(bus, service="registry", clock=lambda: NOW, per_minute_max=3)
    with pytest.raises(StoreUnavailable):
        await bus.publish([Message("t", "k", b"")])

    await refusals(refusal(), "eve")
    await refusals(refusal(), "eve")
    blocked.unlink()
    reader = Reader()
    await bus.subscribe(Subscription("audit", (AccessDenied.topic,), reader))
    await refusals(refusal(), "eve")

    await eventually(lambda: reader.events)
    assert [event.suppressed for event in reader.events] == [2]
    await bus.close()


async def test_memory_is_bounded_however_many_principals_there_are(stores: Stores) -> None:
    refusals = Refusals(stores.bus, service="registry", per_minute_max=0)

    for number in range(12_000):
        await refusals(refusal(f"p{number}"), "x")

    assert len(refusals._minutes) == 10_000
