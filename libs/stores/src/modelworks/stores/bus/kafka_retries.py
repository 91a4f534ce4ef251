"""A group's retries on Kafka: their topics, and the one member that reads them in this process.

Most groups never fail. So their retry topics are made, and a member reads them,
only once there is something: when this process parks its first message, or when
a look every few seconds finds that another one did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka import TopicPartition
from modelworks.kit.errors import StoreUnavailable
from modelworks.kit.logging import get_logger
from modelworks.stores.bus.kafka_admin import Cluster, now_ms
from modelworks.stores.bus.kafka_consumer import group_options
from modelworks.stores.bus.kafka_group import Worker
from modelworks.stores.bus.kafka_producer import Producer
from modelworks.stores.bus.kafka_pump import Item, Pump
from modelworks.stores.bus.kafka_records import parked_of, retry_group, retry_record, retry_topic
from modelworks.stores.bus.port import Delivery

LOOK_EVERY_SECONDS = 5.0
_RUNNING_MAX = 64
_STRANGER_DELAY_MS = 10_000
"""A retry of a topic that this process does not handle goes back for so long."""

log = get_logger("bus")


class Retries:
    """Reads a group's retries for all its subscriptions in this process."""

    def __init__(
        self, cluster: Cluster, producer: Producer, group: str, *, session_ms: int, drain_seconds: float
    ) -> None:
        self._cluster = cluster
        self._producer = producer
        self._group = group
        self._session_ms = session_ms
        self._drain_seconds = drain_seconds
        self._workers: dict[str, list[Worker]] = {}
        self._delays_max = 0
        self._pump: Pump | None = None
        self._pump_delays = 0
        self._prepared = -1
        self._preparing = asyncio.Lock()
        self._changing = asyncio.Lock()
        self._starting: set[asyncio.Task[None]] = set()

    @property
    def fault(self) -> str | None:
        """What keeps retries from being read right now, or None."""
        return self._pump.fault if self._pump else None

    async def join(self, worker: Worker, topics: Sequence[str]) -> None:
        """Hand retries of these topics to the worker.

        Raises:
            StoreUnavailable: the cluster does not answer.
        """
        self._delays_max = max(self._delays_max, len(worker.subscription.retry.delays))
        for topic in topics:
            self._workers.setdefault(topic, []).append(worker)
        await self.look()

    async def leave(self, worker: Worker) -> None:
        """The worker takes no more."""
        for workers in self._workers.values():
            if worker in workers:
                workers.remove(worker)
        async with self._changing:
            if not self._busy and self._pump is not None:
                pump, self._pump = self._pump, None
                await pump.stop()

    async def look(self) -> None:
        """Read retries from now on, if there are topics of them."""
        if self._wanting and await self._cluster.exist(self._topics):
            await self._read()

    async def prepare(self) -> None:
        """Make the topics, before something is published to them."""
        async with self._preparing:
            if self._prepared < self._delays_max:
                await self._cluster.ensure(self._topics)
                # So that what waits in them counts as the group's lag before anybody has read it.
                await self._cluster.introduce(retry_group(self._group), self._topics)
                self._prepared = self._delays_max

    def soon(self) -> None:
        """Something was published to the topics."""
        if self._wanting and not self._starting:
            task = asyncio.create_task(self._read_or_log(), name=f"bus {self._group} retries")
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    @property
    def _busy(self) -> bool:
        return any(self._workers.values())

    @property
    def _wanting(self) -> bool:
        """Somebody here handles retries, and not all of them are read."""
        return self._busy and (self._pump is None or self._pump_delays < self._delays_max)

    @property
    def _topics(self) -> list[str]:
        return [retry_topic(self._group, number) for number in range(self._delays_max + 1)]

    async def _read_or_log(self) -> None:
        try:
            await self._read()
        except StoreUnavailable as error:
            # The next look tries again.
            log.warning("bus.retries-held-up", group=self._group, error=str(error))

    async def _read(self) -> None:
        await self.prepare()
        async with self._changing:
            subscriptions = [worker.subscription for workers in self._workers.values() for worker in workers]
            if not subscriptions or (self._pump is not None and self._pump_delays >= self._delays_max):
                return
            if self._pump is not None:
                await self._pump.stop()
                self._pump = None
            patient = max(subscriptions, key=lambda one: one.retry.unavailable_max)
            pump = Pump(
                self._cluster,
                group=retry_group(self._group),
                topics=self._topics,
                options={**group_options(patient, self._session_ms), "fetch_max_wait_ms": 500},
                running_max=_RUNNING_MAX,
                decode=self._decode,
                work=self._work,
                drain_seconds=self._drain_seconds,
            )
            self._pump_delays = self._delays_max
            await pump.start()
            self._pump = pump

    def _decode(self, record: Any) -> Item | None:
        try:
            parked = parked_of(record)
        except (ValueError, KeyError) as error:
            log.error("bus.retry-unreadable", topic=record.topic, offset=record.offset, error=str(error))
            return None
        message = parked.delivery.message
        return Item(
            TopicPartition(record.topic, record.partition),
            record.offset,
            (message.topic, message.key),
            parked.delivery,
            parked.not_before_ms,
        )

    async def _work(self, delivery: Delivery) -> bool:
        for worker in list(self._workers.get(delivery.message.topic, ())):
            if await worker.work([delivery]) == 1:
                return True
        if not self._busy:
            return False
        # Only another process of this group handles the topic, and this one was given its retry: back with it.
        record = retry_record(
            self._group,
            delivery,
            number=min(delivery.attempt - 1, self._pump_delays),
            attempt=delivery.attempt,
            not_before_ms=now_ms() + _STRANGER_DELAY_MS,
        )
        await self._producer.publish([record])
        return True
