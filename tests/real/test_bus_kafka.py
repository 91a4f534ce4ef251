"""The bus contract on Kafka, and what only this adapter promises."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from modelworks.kit.errors import StoreUnavailable
from modelworks.stores import Message, PermanentFailure, Subscription
from modelworks.stores.bus.kafka import KafkaBus
from modelworks.stores.settings import StoresSettings

from tests.stack.endpoints import KafkaEndpoint
from tests.stack.server import Server

pytest.register_assert_rewrite("libs.stores.tests.contract_bus")

from libs.stores.tests.contract_bus import BusContract  # noqa: E402
from libs.stores.tests.contract_bus_parts import (  # noqa: E402
    SOON,
    Eventually,
    OpenBus,
    Recorder,
    drained,
    failing,
    message,
    tail,
)

pytestmark = pytest.mark.real


@pytest.fixture
def settings(kafka: Server[KafkaEndpoint]) -> StoresSettings:
    return StoresSettings(column="real", kafka_bootstrap=kafka.endpoint.bootstrap, kafka_partitions=4)


@pytest.fixture
async def open_bus(settings: StoresSettings) -> AsyncIterator[OpenBus]:
    opened: list[KafkaBus] = []

    def open_bus(*, drain: timedelta = timedelta(seconds=10)) -> KafkaBus:
        opened.append(KafkaBus(settings, drain=drain, session=timedelta(seconds=3)))
        return opened[-1]

    yield open_bus
    for bus in opened:
        await bus.close()


@pytest.fixture
def topic() -> str:
    return f"test.happened-{uuid.uuid4().hex[:12]}.v1"


@pytest.fixture
def group() -> str:
    return f"group-{uuid.uuid4().hex[:12]}"


class TestKafkaBus(BusContract):
    """The contract."""


async def test_a_server_that_is_down_at_start_is_named_within_the_timeout(group: str) -> None:
    settings = StoresSettings(column="real", kafka_bootstrap="127.0.0.1:1", timeout_ms=2000)
    bus = KafkaBus(settings)

    for attempt in (
        bus.check,
        lambda: bus.publish([message("t", "x")]),
        lambda: bus.subscribe(Subscription(group, ("t",), Recorder())),
        lambda: bus.lag(group),
        lambda: bus.dead_letters(),
        lambda: bus.replay("t.dead-letter:0:0"),
        lambda: anext(bus.tail(["t"])),
    ):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1.*STORES_KAFKA_BOOTSTRAP"):
            await attempt()
        assert time.monotonic() - started < 4
    await bus.close()


async def test_topics_are_made_with_the_partitions_of_the_settings(
    settings: StoresSettings, open_bus: OpenBus, topic: str, group: str, eventually: Eventually
) -> None:
    bus, handler = open_bus(), Recorder(failing("bad", error=ValueError("no")))
    await bus.subscribe(Subscription(group, (topic,), handler, retry=SOON))
    await bus.publish([message(topic, "bad")])
    await eventually(lambda: bus.dead_letters(topic=topic))

    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    names = [topic, f"{topic}.dead-letter", f"{group}.retry.0", f"{group}.retry.2"]
    described = {one["topic"]: len(one["partitions"]) for one in await admin.describe_topics(names)}
    await admin.close()

    assert described == dict(zip(names, (4, 1, 1, 1), strict=True))


async def test_records_of_foreign_producers_arrive_whatever_they_hold(
    settings: StoresSettings, open_bus: OpenBus, topic: str, group: str, eventually: Eventually
) -> None:
    handler = Recorder()
    await open_bus().subscribe(Subscription(group, (topic,), handler, batch_max=10))

    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap)
    await producer.start()
    await producer.send_and_wait(topic, None, b"tombstone", partition=0)
    await producer.send_and_wait(topic, b"no key", None, partition=0)
    await producer.send_and_wait(topic, b"bytes", b"\xff", partition=0, headers=[("h", b"\xfe"), ("none", None)])
    await producer.stop()

    await eventually(lambda: len(handler.deliveries) == 3)
    assert [one.message for one in handler.deliveries] == [
        Message(topic, "tombstone", b""),
        Message(topic, "", b"no key"),
        Message(topic, "\\xff", b"bytes", {"h": "\\xfe", "none": ""}),
    ]


async def test_a_record_in_a_retry_topic_that_is_none_of_ours_is_passed_over(
    settings: StoresSettings, open_bus: OpenBus, topic: str, group: str, eventually: Eventually
) -> None:
    bus, handler = open_bus(), Recorder(failing("first", "flaky", error=ValueError("no")))
    await bus.subscribe(Subscription(group, (topic,), handler, retry=SOON))
    await bus.publish([message(topic, "first")])
    await eventually(lambda: bus.dead_letters(topic=topic))
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap)
    await producer.start()
    await producer.send_and_wait(f"{group}.retry.1", b"foreign", b"k")
    await producer.stop()

    await bus.publish([message(topic, "flaky")])

    async def both() -> bool:
        return len(await bus.dead_letters(topic=topic)) == 2

    await eventually(both)
    assert handler.seen == ["first"] * 3 + ["flaky"] * 3
    await eventually(lambda: drained(bus, group))


async def test_a_group_that_never_fails_has_no_retry_topics(
    settings: StoresSettings, open_bus: OpenBus, topic: str, group: str, eventually: Eventually
) -> None:
    bus, handler = open_bus(), Recorder()
    await bus.subscribe(Subscription(group, (topic,), handler))
    await bus.publish([message(topic, "good")])
    await eventually(lambda: drained(bus, group))

    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap)
    await admin.start()
    names = await admin.list_topics()
    await admin.close()

    assert not [name for name in names if name.startswith(group)]


async def test_retries_that_another_process_parked_are_found(
    open_bus: OpenBus, topic: str, group: str, eventually: Eventually
) -> None:
    other, bus = open_bus(), open_bus()
    broken = Recorder(failing("x", error=PermanentFailure("no")))
    gone = await other.subscribe(Subscription(group, (topic,), broken, retry=SOON))
    await other.publish([message(topic, "x")])
    [letter] = await eventually(lambda: other.dead_letters(topic=topic))
    await gone.stop()
    handler = Recorder()
    await bus.subscribe(Subscription(group, (topic,), handler, retry=SOON))

    await other.replay(letter.id)

    await eventually(lambda: handler.seen == ["x"], within=20)


async def test_a_key_goes_where_other_producers_put_it(
    settings: StoresSettings, open_bus: OpenBus, topic: str, group: str, eventually: Eventually
) -> None:
    bus, handler = open_bus(), Recorder()
    await bus.subscribe(Subscription(group, (topic,), handler, batch_max=100))
    keys = [f"namespace/model-{n}" for n in range(40)]

    await bus.publish([message(topic, "ours", key=key) for key in keys])
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap)
    await producer.start()
    for key in keys:
        await producer.send_and_wait(topic, b"theirs", key.encode())
    await producer.stop()

    await eventually(lambda: len(handler.deliveries) == 80)
    places = {(one.message.key, one.partition) for one in handler.deliveries}
    assert len(places) == 40
    assert {partition for _, partition in places} == {0, 1, 2, 3}


async def test_an_idle_member_costs_little(open_bus: OpenBus, topic: str, group: str) -> None:
    bus = open_bus()
    await bus.subscribe(Subscription(group, (topic,), Recorder()))
    await asyncio.sleep(1)

    before = time.process_time()
    await asyncio.sleep(2)

    assert time.process_time() - before < 0.2


async def test_a_tail_goes_on_in_every_partition_that_has_a_cursor(open_bus: OpenBus, topic: str) -> None:
    bus = open_bus()
    first = asyncio.ensure_future(anext(following := tail(bus, [topic])))
    await asyncio.sleep(1)
    await bus.publish([message(topic, f"{n}", key=f"{n}") for n in range(40)])
    seen = [await first, *[await anext(following) for _ in range(19)]]
    await following.aclose()
    last = {one.partition: one.offset for one in seen}
    await bus.publish([message(topic, "new", key=f"{n}") for n in range(40)])

    again = tail(bus, [topic], after={topic: ",".join(f"{partition}:{offset}" for partition, offset in last.items())})
    rest = [await asyncio.wait_for(anext(again), 10) for _ in range(len(last))]
    await again.aclose()

    for one in rest:
        assert one.offset == last[one.partition] + 1
        last[one.partition] = one.offset


async def test_lag_tells_since_when_the_oldest_message_waits(
    open_bus: OpenBus, topic: str, eventually: Eventually
) -> None:
    bus, gate = open_bus(), asyncio.Event()

    async def wait(_: object) -> None:
        await gate.wait()

    before = datetime.now(UTC)
    consumer = await bus.subscribe(Subscription("patient-" + topic, (topic,), wait))
    await bus.publish([message(topic, str(number), key=f"k{number}") for number in range(20)])
    after = datetime.now(UTC)
    [lag] = await bus.lag("patient-" + topic)
    gate.set()
    await consumer.stop()

    assert lag.messages == 20
    assert lag.oldest is not None
    # Kafka keeps milliseconds.
    assert before - timedelta(milliseconds=1) <= lag.oldest <= after
