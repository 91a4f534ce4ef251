"""From the bus into the log: batches, poison, duplicates, and who sequences."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from modelworks.audit.adapters.lease_keyvalue import KeyValueLease
from modelworks.audit.domain import TOPICS, Fenced, LogDamaged
from modelworks.audit.metrics import Metrics
from modelworks.audit.stream import GROUP, Intake, Turn
from modelworks.events import BY_TOPIC, ClientDeleted
from modelworks.kit.errors import Unavailable
from modelworks.kit.telemetry import Telemetry, span
from modelworks.stores.bus.port import Delivery, Message, PermanentFailure
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def deliveries(messages: list[Message]) -> list[Delivery]:
    return [Delivery(each, 0, n, 1, datetime(2026, 1, 31, tzinfo=UTC)) for n, each in enumerate(messages)]


def intake(bench: Any, telemetry: Telemetry | None = None) -> Intake:
    telemetry = telemetry or Telemetry()
    return Intake(bench.sequencer(), tracer=telemetry.tracer("audit"), metrics=Metrics(telemetry.metrics))


def turn(bench: Any, handler: Intake | None = None, *, lease_ms: int = 300) -> Turn:
    handler = handler or intake(bench)
    lease = timedelta(milliseconds=lease_ms)
    return Turn(
        bus=bench.stores.bus, index=bench.index, lease=KeyValueLease(bench.stores.keyvalue, expires=lease),
        sequencer=handler._sequencer, intake=handler, batch_max=100, every=lease / 10,
    )  # fmt: skip


async def size(bench: Any) -> int:
    note = await bench.log.note()
    return int(note.split("\n")[1]) if note else -1


def test_group_reads_exactly_the_audited_topics(bench: Any):
    subscription = turn(bench)._subscription

    assert (subscription.group, set(subscription.topics)) == (GROUP, set(TOPICS))
    assert subscription.work == "control"


@pytest.mark.parametrize("topic", TOPICS)
async def test_valid_event_of_every_audited_topic_gets_into_the_log(bench: Any, topic: str):
    from pathlib import Path

    body = (Path(__file__).parents[3] / "contracts" / "events" / topic / "valid" / "full.json").read_bytes()
    headers = {"ce_specversion": "1.0", "ce_id": "e", "ce_source": "/x", "ce_type": topic, "ce_actor": "alice"}

    await intake(bench)(deliveries([Message(topic, "k", body, headers)]))

    assert await size(bench) == 1
    assert BY_TOPIC[topic].audited.value in ("full", "digest")


async def test_poison_among_good_messages_keeps_none_of_them_out(bench: Any, message: Any):
    handler = intake(bench)
    poison = Message("auth.client-deleted.v1", "k", b"{", message(7).headers)
    batch = deliveries([message(1), poison, message(2)])

    with pytest.raises(PermanentFailure, match=r"auth\.client-deleted\.v1"):
        await handler(batch)

    assert await size(bench) == 2
    # The bus hands each over again alone.
    await handler(batch[:1])
    with pytest.raises(PermanentFailure):
        await handler(batch[1:2])
    await handler(batch[2:])
    assert await size(bench) == 2


async def test_poison_goes_to_the_dead_letters_and_the_rest_into_the_log(bench: Any, message: Any, eventually: Any):
    poison = Message("auth.client-deleted.v1", "k", json.dumps({"client": 7}).encode(), message(7).headers)
    await bench.stores.bus.publish([message(1), poison, message(2)])

    async with turn(bench).running():
        dead = await eventually(lambda: bench.stores.bus.dead_letters())
        await eventually(lambda: _reached(bench, 2))

    assert [each.group for each in dead] == [GROUP]
    assert "client" in dead[0].error


async def _reached(bench: Any, wanted: int) -> bool:
    return await size(bench) == wanted


async def test_event_published_twice_has_one_leaf(bench: Any, message: Any, eventually: Any):
    await bench.stores.bus.publish([message(1), message(1), message(2)])
    async with turn(bench).running():
        await eventually(lambda: _reached(bench, 2))
        await bench.stores.bus.publish([message(2), message(3)])
        await eventually(lambda: _reached(bench, 3))


async def test_trace_goes_on_from_the_event_into_the_log(bench: Any, message: Any):
    spans = InMemorySpanExporter()
    telemetry = Telemetry()
    telemetry.provider.add_span_processor(SimpleSpanProcessor(spans))
    traced = message(1)
    with span(telemetry.tracer("caller"), "call") as outer:
        from modelworks.kit.telemetry import inject

        traced = Message(traced.topic, traced.key, traced.value, {**traced.headers, **inject()})
        other = Message(traced.topic, "k", message(2).value, {**message(2).headers, **inject()})
    spans.clear()

    await intake(bench, telemetry)(deliveries([traced, other]))

    found = {each.name: each for each in spans.get_finished_spans()}["process auth.client-deleted.v1"]
    assert found.context.trace_id == outer.get_span_context().trace_id
    assert len(found.links) == 1
    leaf = await bench.prover.entry(0, await bench.prover.head())
    assert format(outer.get_span_context().trace_id, "032x").encode() in leaf


@pytest.mark.parametrize("error", [Fenced("another"), LogDamaged("broken")])
async def test_log_that_cannot_be_extended_holds_events_up_and_never_gives_them_away(
    bench: Any, message: Any, error: Exception
):
    handler = intake(bench)

    class Refusing:
        async def append(self, _: Any) -> int:
            raise error

    handler._sequencer = Refusing()  # type: ignore[assignment]

    with pytest.raises(Unavailable) as held:
        await handler(deliveries([message(1)]))

    assert held.value.transient
    assert handler.fenced.is_set() == isinstance(error, Fenced)
    assert turn(bench)._subscription.retry.unavailable_max > timedelta(days=30)


async def test_of_two_processes_exactly_one_sequences_and_the_other_takes_over(
    bench: Any, message: Any, eventually: Any
):
    first, second = turn(bench), turn(bench)
    async with AsyncExitStack() as running:
        leader = await running.enter_async_context(AsyncExitStack())
        await leader.enter_async_context(first.running())
        await eventually(lambda: first.leading)
        await running.enter_async_context(second.running())
        await bench.stores.bus.publish([message(n) for n in range(5)])
        await eventually(lambda: _reached(bench, 5))
        standby = second.leading
        await eventually(lambda: _ready(second))

        await leader.aclose()
        await bench.stores.bus.publish([message(n) for n in range(5, 9)])
        await eventually(lambda: _reached(bench, 9))

        assert standby is False
        assert (first.leading, second.leading) == (False, True)


def _ready(each: Turn) -> bool:
    try:
        each.check()
    except Unavailable:
        return False
    return True


async def test_process_that_finds_another_at_work_steps_down_and_loses_nothing(
    bench: Any, candidates: Callable[..., list[Any]], message: Any, eventually: Any
):
    handler = intake(bench)
    mine = turn(bench, handler)
    async with mine.running():
        await eventually(lambda: mine.leading)
        await bench.sequencer().append(candidates(50, 60))  # somebody who does not respect the lease
        await bench.stores.bus.publish([message(n) for n in range(5)])
        await eventually(lambda: _reached(bench, 15))

    assert handler.fenced.is_set() or handler._sequencer.size == 15


async def test_damaged_log_is_told_by_readiness_and_mended_without_a_restart(
    bench: Any, candidates: Callable[..., list[Any]], eventually: Any
):
    await bench.sequencer().append(candidates(0, 5))
    good = await bench.stores.objects.read("audit/tile/0/000.p/5")
    await bench.stores.objects.put("audit/tile/0/000.p/5", good[:-1] + b"\x00")
    mine = turn(bench)

    async with mine.running():
        await eventually(lambda: "root" in str(_trouble(mine)))
        await bench.stores.objects.put("audit/tile/0/000.p/5", good)
        await eventually(lambda: mine.leading and _ready(mine))


def _trouble(each: Turn) -> str:
    try:
        each.check()
    except Unavailable as error:
        return error.message
    return ""


@pytest.fixture
async def leases(bench: Any) -> tuple[KeyValueLease, KeyValueLease]:
    long = timedelta(seconds=30)
    return KeyValueLease(bench.stores.keyvalue, expires=long), KeyValueLease(bench.stores.keyvalue, expires=long)


async def test_lease_has_one_holder(leases: tuple[KeyValueLease, KeyValueLease]):
    mine, theirs = leases

    assert await mine.acquire()
    assert not await theirs.acquire()
    assert not await theirs.renew()
    await theirs.release()
    assert await mine.renew()
    await mine.release()
    assert await theirs.acquire()
    assert ClientDeleted.topic in TOPICS
