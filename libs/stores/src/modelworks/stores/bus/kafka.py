"""The bus on Kafka.

Publishing goes through one producer; `control` subscriptions through FastStream
(`kafka_control`), `long` ones and all retries through our own pump
(`kafka_pump`). A failed message is published to `<group>.retry.<n>`, later to
`<topic>.dead-letter`, and only then acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol

from aiokafka import TopicPartition
from faststream.kafka import KafkaBroker
from modelworks.kit.errors import InvalidInput, StoreUnavailable, Unavailable
from modelworks.kit.logging import get_logger
from modelworks.stores.bus import kafka_reader
from modelworks.stores.bus.handling import check_topic, checked, measured
from modelworks.stores.bus.kafka_admin import Cluster, now_ms
from modelworks.stores.bus.kafka_consumer import group_options
from modelworks.stores.bus.kafka_control import ControlConsumer, make_broker
from modelworks.stores.bus.kafka_group import Worker
from modelworks.stores.bus.kafka_producer import Producer
from modelworks.stores.bus.kafka_pump import Item, Pump
from modelworks.stores.bus.kafka_records import (
    delivery_of,
    replayed_record,
    retry_group,
    retry_record,
)
from modelworks.stores.bus.kafka_retries import LOOK_EVERY_SECONDS, Retries
from modelworks.stores.bus.port import Consumer, DeadLetter, Delivery, Lag, Message, Subscription
from modelworks.stores.settings import StoresSettings

_LIMIT_MAX = 1000

log = get_logger("bus")


class _Reading(Protocol):
    """What reads a subscription's topics: a ControlConsumer or a Pump."""

    @property
    def fault(self) -> str | None: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class KafkaBus:
    """The bus on a Kafka cluster."""

    def __init__(
        self,
        settings: StoresSettings,
        *,
        drain: timedelta = timedelta(seconds=20),
        session: timedelta = timedelta(seconds=10),
    ) -> None:
        """Connects on first use.

        Args:
            drain: how long a stop waits for handlers that run.
            session: how long a member may be silent before its partitions go to others; at least the broker's
                `group.min.session.timeout.ms`.
        """
        self._settings = settings
        self._drain_seconds = drain.total_seconds()
        self._session_ms = round(session.total_seconds() * 1000)
        self._cluster: Cluster | None = None
        self._producer: Producer | None = None
        self._broker: KafkaBroker | None = None
        self._retries: dict[str, Retries] = {}
        self._looking: asyncio.Task[None] | None = None
        self._consumers: list[_Consumer] = []
        self._closing = False

    async def publish(self, messages: Sequence[Message]) -> None:
        """See `Bus.publish`."""
        for message in messages:
            measured(message)
        if messages:
            _, producer = self._connected()
            await producer.publish(messages)

    async def subscribe(self, subscription: Subscription) -> Consumer:
        """See `Bus.subscribe`."""
        if self._closing:
            raise StoreUnavailable("the bus is closed")
        topics = checked(subscription)
        cluster, producer = self._connected()
        await cluster.ensure(topics)
        await cluster.introduce(subscription.group, topics)
        retries = self._retries_of(subscription.group)
        worker = Worker(subscription, producer, retries)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="bus retries")
        options = group_options(subscription, self._session_ms)
        reading: _Reading
        if subscription.work == "long":
            reading = self._pump(cluster, worker, topics, options)
        else:
            if self._broker is None:
                self._broker = make_broker(cluster, graceful_seconds=self._drain_seconds)
            reading = ControlConsumer(
                cluster, self._broker, worker, topics=topics, options=options, drain_seconds=self._drain_seconds
            )
        try:
            await retries.join(worker, topics)
            await reading.start()
        except BaseException:
            worker.stopping.set()
            await retries.leave(worker)
            raise
        consumer = _Consumer(worker, reading, retries, self._consumers)
        self._consumers.append(consumer)
        return consumer

    async def tail(self, topics: Sequence[str], *, after: Mapping[str, str] | None = None) -> AsyncIterator[Delivery]:
        """See `Bus.tail`."""
        for topic in topics:
            check_topic(topic)
        cluster, _ = self._connected()
        reading = kafka_reader.tail(cluster, topics, after or {}, closing=lambda: self._closing)
        try:
            async for delivery in reading:
                yield delivery
        except StoreUnavailable:
            if not self._closing:
                raise
        finally:
            await reading.aclose()  # type: ignore[attr-defined]

    async def lag(self, group: str) -> Sequence[Lag]:
        """See `Bus.lag`."""
        cluster, _ = self._connected()
        return await cluster.lag(group, retry_group(group))

    async def dead_letters(self, *, topic: str | None = None, limit: int = 100) -> Sequence[DeadLetter]:
        """See `Bus.dead_letters`."""
        if not 1 <= limit <= _LIMIT_MAX:
            raise InvalidInput(f"limit {limit} is out of bounds: give 1 to {_LIMIT_MAX}")
        if topic is not None:
            check_topic(topic)
        cluster, _ = self._connected()
        return await kafka_reader.letters(cluster, topic=topic, limit=limit)

    async def replay(self, dead_letter_id: str) -> DeadLetter:
        """See `Bus.replay`."""
        cluster, producer = self._connected()
        letter, delivery = await kafka_reader.letter(cluster, dead_letter_id)
        # The note second: after a crash between the two, a replay is asked for again.
        retries = self._retries_of(letter.group)
        await retries.prepare()
        await producer.publish([retry_record(letter.group, delivery, number=0, attempt=1, not_before_ms=now_ms())])
        retries.soon()
        await producer.publish([replayed_record(letter)])
        return DeadLetter(
            id=letter.id,
            message=letter.message,
            group=letter.group,
            error=letter.error,
            attempts=letter.attempts,
            failed_at=letter.failed_at,
            replayed=True,
        )

    async def check(self) -> None:
        """See `Bus.check`."""
        cluster, _ = self._connected()
        await cluster.check()

    async def close(self) -> None:
        """See `Bus.close`."""
        self._closing = True
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking
        await asyncio.gather(*(consumer.stop() for consumer in list(self._consumers)))
        if self._broker is not None:
            await self._broker.stop()
        if self._producer is not None:
            await self._producer.close()
        if self._cluster is None:
            self._cluster = Cluster(self._settings)
        await self._cluster.close()

    def _connected(self) -> tuple[Cluster, Producer]:
        # Made late: the clients belong to the event loop that runs then.
        if self._cluster is None:
            self._cluster = Cluster(self._settings)
        if self._producer is None:
            self._producer = Producer(self._cluster)
        return self._cluster, self._producer

    def _retries_of(self, group: str) -> Retries:
        cluster, producer = self._connected()
        found = self._retries.get(group)
        if found is None:
            found = self._retries[group] = Retries(
                cluster, producer, group, session_ms=self._session_ms, drain_seconds=self._drain_seconds
            )
        return found

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            for retries in list(self._retries.values()):
                try:
                    await retries.look()
                except StoreUnavailable as error:
                    log.warning("bus.retries-held-up", error=str(error))

    def _pump(self, cluster: Cluster, worker: Worker, topics: Sequence[str], options: dict[str, Any]) -> Pump:
        def decode(record: Any) -> Item:
            delivery = delivery_of(record)
            key = (record.topic, delivery.message.key)
            return Item(TopicPartition(record.topic, record.partition), record.offset, key, delivery)

        async def work(delivery: Delivery) -> bool:
            return await worker.work([delivery]) == 1

        subscription = worker.subscription
        return Pump(
            cluster,
            group=subscription.group,
            topics=topics,
            options=options,
            running_max=subscription.in_flight_max,
            decode=decode,
            work=work,
            drain_seconds=self._drain_seconds,
        )


class _Consumer:
    """A running subscription on Kafka."""

    def __init__(self, worker: Worker, reading: _Reading, retries: Retries, siblings: list[_Consumer]) -> None:
        self._worker = worker
        self._reading = reading
        self._retries = retries
        self._siblings = siblings
        self._stopped: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        """See `Consumer.stop`. Stopping twice is harmless."""
        if self._stopped is None:
            self._stopped = asyncio.create_task(self._stop(), name="bus stop")
        await asyncio.shield(self._stopped)

    async def _stop(self) -> None:
        self._worker.stopping.set()
        await asyncio.gather(self._reading.stop(), self._retries.leave(self._worker))
        if self in self._siblings:
            self._siblings.remove(self)

    def check(self) -> None:
        """See `Consumer.check`."""
        group = self._worker.subscription.group
        if self._worker.stopping.is_set():
            raise Unavailable(f"the consumer of group {group!r} is stopped")
        trouble = self._worker.held or self._reading.fault or self._retries.fault
        if trouble:
            raise Unavailable(f"group {group!r} is held up: {trouble}")
