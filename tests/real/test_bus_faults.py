"""What the bus on Kafka promises when things die: members, messages, and the broker itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from modelworks.kit.errors import StoreUnavailable, Unavailable, VersionConflict
from modelworks.stores import Bus, Delivery, Message, PermanentFailure, RetryPolicy, Schema, Subscription
from modelworks.stores.bus.kafka import KafkaBus
from modelworks.stores.documents.sqlite import SqliteDocuments
from modelworks.stores.settings import StoresSettings

from tests.stack.endpoints import KafkaEndpoint
from tests.stack.server import Server

pytestmark = pytest.mark.real

Eventually = Callable[..., Awaitable[Any]]
OpenBus = Callable[..., KafkaBus]
QUICK = RetryPolicy(delays=(timedelta(milliseconds=50),))


@pytest.fixture
def topic() -> str:
    return f"fault.happened-{uuid.uuid4().hex[:12]}.v1"


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def open_bus(kafka: Server[KafkaEndpoint]) -> AsyncIterator[OpenBus]:
    opened: list[KafkaBus] = []

    def open_bus(*, partitions: int = 4) -> KafkaBus:
        settings = StoresSettings(
            column="real",
            kafka_bootstrap=kafka.endpoint.bootstrap,
            kafka_partitions=partitions,
            timeout_ms=5000,
        )
        opened.append(KafkaBus(settings, session=timedelta(seconds=2)))
        return opened[-1]

    yield open_bus
    for bus in opened:
        await bus.close()


class Log:
    """Keeps the order in which a group handled what."""

    def __init__(self, *, pause_ms: float = 1) -> None:
        self.handled: list[tuple[str, int]] = []
        """(key, number), in the order in which their handling ended."""
        self._pause = pause_ms / 1000

    async def __call__(self, batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            await asyncio.sleep(self._pause)
            self.handled.append((delivery.message.key, int(delivery.message.value)))

    def missing(self, sent: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
        return set(sent) - set(self.handled)

    def first_times(self) -> dict[str, list[int]]:
        """For each key its numbers, in the order in which each was handled first."""
        found: dict[str, list[int]] = defaultdict(list)
        for key, number in dict.fromkeys(self.handled):
            found[key].append(number)
        return found


class Sender:
    """Publishes numbered messages on ten keys, and tries again while the bus is down, as an outbox does."""

    def __init__(self, bus: Bus, topic: str) -> None:
        self._bus = bus
        self._topic = topic
        self.sent: list[tuple[str, int]] = []
        self.refused = 0
        self.enough = asyncio.Event()

    async def __call__(self) -> None:
        number = 0
        while not self.enough.is_set():
            numbers = range(number, number + 20)
            messages = [Message(self._topic, f"k{n % 10}", str(n).encode()) for n in numbers]
            try:
                await self._bus.publish(messages)
            except StoreUnavailable:
                self.refused += 1
                await asyncio.sleep(0.2)
                continue
            self.sent.extend((f"k{n % 10}", n) for n in numbers)
            number += 20
            await asyncio.sleep(0.02)


class Member:
    """`tests.real.bus_member` as a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.effects: list[str] = []
        self.known: list[str] = []
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, kafka: Server[KafkaEndpoint], **order: Any) -> Member:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.real.bus_member", json.dumps(order),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **kafka.endpoint.environment(), "STORES_KAFKA_PARTITIONS": "4"},
        )  # fmt: skip
        return cls(process)

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        await self._reading

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            word, _, name = line.decode().strip().partition(" ")
            if word == "effect":
                self.effects.append(name)
            elif word == "known":
                self.known.append(name)


@pytest.mark.parametrize("work", ["control", "long"])
async def test_a_killed_member_loses_nothing_and_no_effect_happens_twice(
    kafka: Server[KafkaEndpoint],
    open_bus: OpenBus,
    topic: str,
    group: str,
    work: str,
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    """INVARIANT: at least once, and for an idempotent handler exactly one effect.

    Broken by: acknowledging before the handler is done, or past a message that is not.
    """
    bus = open_bus()
    names = [f"m{n}" for n in range(200)]
    await bus.publish([Message(topic, f"k{n}", name.encode()) for n, name in enumerate(names)])
    order = {"group": group, "topic": topic, "work": work, "folder": str(tmp_path), "pause_ms": 20}

    first = await Member.start(kafka, **order)
    await eventually(lambda: len(first.effects) >= 40, within=30)
    await first.kill()
    second = await Member.start(kafka, **{**order, "pause_ms": 1})
    await eventually(lambda: len(first.effects) + len(second.effects) >= len(names), within=30)
    await eventually(lambda: drained(bus, group), within=20)
    await second.kill()

    # An effect may have happened although its line did not come out: then the second member found it.
    told = first.effects + second.effects
    assert len(told) == len(set(told))
    assert set(told) | set(second.known) == set(names)
    # What was committed does not come again: only what was in flight or finished in the last moments.
    assert len(second.known) <= 20


async def test_poison_goes_to_the_dead_letters_and_the_partition_moves_on(
    kafka: Server[KafkaEndpoint], open_bus: OpenBus, topic: str, group: str, eventually: Eventually
) -> None:
    bus = open_bus(partitions=1)
    handled: list[str] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            name = delivery.message.value.decode()
            if name.startswith("poison"):
                raise PermanentFailure("breaks its schema") if name == "poison-0" else ValueError("divides by zero")
            handled.append(name)

    await bus.subscribe(Subscription(group, (topic,), handle, batch_max=20, retry=QUICK))
    names = [f"poison-{n // 50}" if n % 50 == 25 else f"m{n}" for n in range(200)]
    await bus.publish([Message(topic, "k", name.encode(), {"ce_id": name, "ce_type": topic}) for name in names])

    async def four() -> bool:
        return len(await bus.dead_letters(topic=topic)) == 4

    await eventually(four, within=20)
    await eventually(lambda: drained(bus, group), within=20)
    good = [name for name in names if not name.startswith("poison")]
    assert list(dict.fromkeys(handled)) == good
    letters = {letter.message.value.decode(): letter for letter in await bus.dead_letters(topic=topic)}
    assert letters["poison-0"].attempts == 1
    assert letters["poison-3"].attempts == 2
    headers = await _first_dead_letter_headers(kafka, topic)
    assert headers["ce_id"].startswith("poison-")
    assert headers["ce_type"] == topic
    assert headers["x-group"] == group
    assert headers["x-error"] in {"PermanentFailure: breaks its schema", "ValueError: divides by zero"}
    assert {"x-attempts", "x-failed-at", "x-topic", "x-partition", "x-offset"} <= set(headers)


@pytest.mark.parametrize("work", ["control", "long"])
async def test_members_that_come_and_go_under_load_lose_nothing_and_keep_the_order_of_a_key(
    open_bus: OpenBus, topic: str, group: str, work: Any, eventually: Eventually
) -> None:
    """INVARIANT: a rebalance loses nothing, and no message of a key overtakes an earlier one.

    Broken by: handling on after a partition was taken away, or committing what was read but not finished.
    """
    # Long work is under way at any moment, so at every rebalance too.
    bus, log = open_bus(), Log(pause_ms=1 if work == "control" else 15)
    subscription = Subscription(group, (topic,), log, work=work, batch_max=10, in_flight_max=10)
    stays = await bus.subscribe(subscription)
    send = Sender(bus, topic)
    sending = asyncio.create_task(send())
    await eventually(lambda: len(log.handled) > 100, within=20)

    for _ in range(2):
        other = open_bus()
        passing = await other.subscribe(subscription)
        seen = len(log.handled)
        await eventually(lambda seen=seen: len(log.handled) > seen + 200, within=20)
        await passing.stop()
        seen = len(log.handled)
        await eventually(lambda seen=seen: len(log.handled) > seen + 200, within=20)
    send.enough.set()
    await sending

    await eventually(lambda: not log.missing(send.sent), within=20)
    stays.check()
    for key, numbers in log.first_times().items():
        assert numbers == sorted(numbers), key
    repeated = len(log.handled) - len(set(log.handled))
    assert repeated <= len(send.sent) // 10


async def test_a_repeated_event_and_a_failure_after_the_effect_have_no_second_effect(
    open_bus: OpenBus, topic: str, group: str, tmp_path: Path, eventually: Eventually
) -> None:
    bus = open_bus()
    documents = SqliteDocuments(tmp_path / "effects.sqlite")
    await documents.ensure(Schema("effects", ()))
    deliveries: Counter[str] = Counter()
    effects: Counter[str] = Counter()

    async def handle(batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            id = delivery.message.headers["ce_id"]
            deliveries[id] += 1
            with suppress(VersionConflict):
                await documents.save("effects", id, {}, expected=None)
                effects[id] += 1
                if id.endswith("7"):
                    raise ValueError("after the effect, before the acknowledgement")

    await bus.subscribe(Subscription(group, (topic,), handle, batch_max=10, retry=QUICK))
    messages = [Message(topic, f"k{n}", b"", {"ce_id": f"e{n}"}) for n in range(50)]

    await bus.publish(messages)
    await bus.publish(messages)

    await eventually(lambda: len(effects) == 50)
    await eventually(lambda: drained(bus, group), within=20)
    await documents.close()
    assert set(effects.values()) == {1}
    assert all(count >= (3 if id.endswith("7") else 2) for id, count in deliveries.items())
    assert await bus.dead_letters(topic=topic) == []


async def test_a_killed_and_restarted_broker_loses_nothing(
    kafka: Server[KafkaEndpoint], open_bus: OpenBus, topic: str, group: str, eventually: Eventually
) -> None:
    """INVARIANT: what `publish` returned for is handled, whatever the broker went through."""
    bus = open_bus()
    control, long = Log(), Log()
    consumers = [
        await bus.subscribe(Subscription(f"{group}-c", (topic,), control, batch_max=20)),
        await bus.subscribe(Subscription(f"{group}-l", (topic,), long, work="long", in_flight_max=8)),
    ]
    send = Sender(bus, topic)
    sending = asyncio.create_task(send())
    await eventually(lambda: len(control.handled) > 200 and len(long.handled) > 200, within=20)

    await asyncio.to_thread(kafka.kill)
    with pytest.raises(StoreUnavailable):
        await bus.check()
    await eventually(lambda: send.refused > 0, within=20)
    await asyncio.to_thread(kafka.start)
    before = len(send.sent)
    await eventually(lambda: len(send.sent) > before + 400, within=40)
    send.enough.set()
    await sending

    await eventually(lambda: not control.missing(send.sent) and not long.missing(send.sent), within=40)
    await bus.check()
    for name in ("c", "l"):
        await eventually(lambda name=name: drained(bus, f"{group}-{name}"), within=20)
    for consumer in consumers:
        await eventually(lambda consumer=consumer: ready(consumer), within=10)


async def test_a_broker_that_does_not_answer_is_unavailable_within_the_timeout_and_comes_back(
    kafka: Server[KafkaEndpoint], open_bus: OpenBus, topic: str, group: str, eventually: Eventually
) -> None:
    bus, log = open_bus(), Log()
    await bus.subscribe(Subscription(group, (topic,), log))
    await bus.publish([Message(topic, "k", b"1")])
    await eventually(lambda: log.handled)

    await asyncio.to_thread(kafka.pause)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await bus.publish([Message(topic, "k", b"2")])
    assert time.monotonic() - started < 7
    await asyncio.to_thread(kafka.resume)

    async def published() -> bool:
        try:
            await bus.publish([Message(topic, "k", b"3")])
        except StoreUnavailable:
            return False
        return True

    await eventually(published, within=30)
    await eventually(lambda: ("k", 3) in log.handled, within=30)


async def test_closing_while_the_broker_is_down_is_bounded_and_loses_only_what_was_not_told_done(
    kafka: Server[KafkaEndpoint], open_bus: OpenBus, topic: str, group: str, eventually: Eventually
) -> None:
    bus, control, long = open_bus(), Log(), Log()
    await bus.subscribe(Subscription(f"{group}-c", (topic,), control))
    await bus.subscribe(Subscription(f"{group}-l", (topic,), long, work="long"))
    await bus.publish([Message(topic, "k", b"1")])
    await eventually(lambda: control.handled and long.handled)
    await eventually(lambda: drained(bus, f"{group}-c"))
    await eventually(lambda: drained(bus, f"{group}-l"))

    await asyncio.to_thread(kafka.kill)
    with pytest.raises(StoreUnavailable):
        await bus.publish([Message(topic, "k", b"2")])
    started = time.monotonic()
    await bus.close()
    assert time.monotonic() - started < 25

    await asyncio.to_thread(kafka.start)
    bus, control = open_bus(), Log()
    await bus.subscribe(Subscription(f"{group}-c", (topic,), control))
    await bus.publish([Message(topic, "k", b"3")])
    await eventually(lambda: ("k", 3) in control.handled, within=20)
    assert ("k", 1) not in control.handled


async def drained(bus: Bus, group: str) -> bool:
    return all(lag.messages == 0 for lag in await bus.lag(group))


def ready(consumer: Any) -> bool:
    try:
        consumer.check()
    except Unavailable:
        return False
    return True


async def _first_dead_letter_headers(kafka: Server[KafkaEndpoint], topic: str) -> dict[str, str]:
    consumer = AIOKafkaConsumer(
        f"{topic}.dead-letter", bootstrap_servers=kafka.endpoint.bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    record = await asyncio.wait_for(consumer.getone(), 10)
    await consumer.stop()
    return {name: value.decode() for name, value in record.headers}
