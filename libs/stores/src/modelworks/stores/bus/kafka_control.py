"""Short work on Kafka, through FastStream: in order a partition, by batches.

FastStream reads and calls; it does not acknowledge. Its `ack()` commits the
position of all partitions, which is ahead of what is finished while a batch is
handed over in slices, and a handler that raises would be passed over by the
next one. So nothing raises here, and the offsets that are finished are
committed by name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from faststream.kafka.message import FAKE_CONSUMER, KafkaAckableMessage
from faststream.kafka.schemas import Topic
from modelworks.kit.logging import get_logger
from modelworks.stores.bus.kafka_admin import Cluster
from modelworks.stores.bus.kafka_consumer import FAULTS_MAX, FETCH_RECORDS_MAX, STOP_SECONDS, WaitingConsumer, ended
from modelworks.stores.bus.kafka_group import Worker
from modelworks.stores.bus.kafka_records import delivery_of

_COMMIT_PAUSE_SECONDS = 0.01
_FAULT_PAUSE_SECONDS = 1.0
_REVOKE_WAIT_SECONDS = 5.0
_COMMIT_SECONDS = 5.0
_YIELD_SECONDS = 0.002
_POLL_MS = 100
"""FastStream's own wait; `WaitingConsumer` waits without it."""

log = get_logger("bus")


def make_broker(cluster: Cluster, *, graceful_seconds: float) -> KafkaBroker:
    """The process's one FastStream broker: it consumes only, and makes no topics."""
    return KafkaBroker(
        bootstrap_servers=cluster.settings.kafka_bootstrap,
        client_id="modelworks",
        request_timeout_ms=cluster.settings.timeout_ms,
        metadata_max_age_ms=60_000,
        consumer_only=True,
        allow_auto_create_topics=False,
        apply_types=False,
        graceful_timeout=graceful_seconds,
        logger=None,
    )


class ControlConsumer(ConsumerRebalanceListener):  # type: ignore[misc]
    """A member of a group whose work takes milliseconds."""

    def __init__(
        self,
        cluster: Cluster,
        broker: KafkaBroker,
        worker: Worker,
        *,
        topics: Sequence[str],
        options: dict[str, Any],
        drain_seconds: float,
    ) -> None:
        self._cluster = cluster
        self._broker = broker
        self._worker = worker
        self._group = worker.subscription.group
        self._batch_max = worker.subscription.batch_max
        self._drain_seconds = drain_seconds
        self._epoch = 0
        """Counts rebalances: what was read before one must not be committed after it."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._handling: asyncio.Task[Any] | None = None
        self._finished: dict[TopicPartition, int] = {}
        self._commit_wake = asyncio.Event()
        self._committing: asyncio.Task[None] | None = None
        self._supervising: asyncio.Task[None] | None = None
        self._fault: str | None = None
        self._subscriber = broker.subscriber(
            *(Topic(topic, declare=False) for topic in topics),
            group_id=self._group,
            batch=True,
            max_records=max(self._batch_max, FETCH_RECORDS_MAX),
            batch_timeout_ms=_POLL_MS,
            ack_policy=AckPolicy.MANUAL,
            listener=self,
            parser=_parse,
            decoder=_decode,
            no_reply=True,
            auto_offset_reset=options["auto_offset_reset"],
            partition_assignment_strategy=options["partition_assignment_strategy"],
            session_timeout_ms=options["session_timeout_ms"],
            heartbeat_interval_ms=options["heartbeat_interval_ms"],
            max_poll_interval_ms=options["max_poll_interval_ms"],
            rebalance_timeout_ms=options["rebalance_timeout_ms"],
            fetch_max_bytes=options["fetch_max_bytes"],
            fetch_max_wait_ms=options["fetch_max_wait_ms"],
        )
        self._subscriber(self._handle)

    @property
    def fault(self) -> str | None:
        """What keeps the member from reading or committing right now, or None."""
        return self._fault or getattr(self._subscriber.consumer, "fault", None)

    async def start(self) -> None:
        """Join the group.

        Raises:
            StoreUnavailable: the cluster does not answer.
        """
        async with self._cluster.mapped("start a consumer"):
            await self._broker.connect()
            config = self._broker.config.broker_config
            if not issubclass(config.builder.func, WaitingConsumer):
                config.builder = partial(WaitingConsumer, **config.builder.keywords)
            await self._subscriber.start()
        self._committing = asyncio.create_task(self._commit(), name=f"bus {self._group} commit")
        self._supervising = asyncio.create_task(self._supervise(), name=f"bus {self._group} supervise")

    async def stop(self) -> None:
        """Start nothing more, wait for what runs, commit, leave. The worker is stopping already."""
        for task in (self._supervising, self._committing):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        if not await self._until_idle(self._drain_seconds) and self._handling is not None:
            log.warning("bus.drain-cut-off", group=self._group, handlers=1)
            self._handling.cancel()
            await self._until_idle(_COMMIT_SECONDS)
        await self._commit_bounded()
        await ended(self._subscriber.stop(), 2 * STOP_SECONDS)

    # Rebalance.

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Called before every rebalance, with all that we have."""
        self._epoch += 1
        await self._until_idle(_REVOKE_WAIT_SECONDS)
        await self._commit_bounded()
        self._finished.clear()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Called after every rebalance, with all that we have now."""
        committed = await self._cluster.committed(self._group)
        fresh = [tp for tp in assigned if tp not in committed]
        # Committed at once, so that the group's lag is known before its first message is finished.
        for tp, beginning in (await self._cluster.beginnings(fresh)).items():
            self._finished.setdefault(tp, beginning)
        self._commit_wake.set()

    # Work.

    async def _handle(self, records: Sequence[Any]) -> None:
        self._idle.clear()
        # A task of its own: cancelling it must not end FastStream's loop.
        self._handling = asyncio.create_task(self._handle_all(records, self._epoch), name=f"bus {self._group} handler")
        try:
            await asyncio.wait([self._handling])
            if not self._handling.cancelled() and (error := self._handling.exception()) is not None:
                log.error("bus.consumer-fault", group=self._group, exc_info=error)
        finally:
            self._idle.set()

    async def _handle_all(self, records: Sequence[Any], epoch: int) -> None:
        yield_at = time.monotonic() + _YIELD_SECONDS
        for start in range(0, len(records), self._batch_max):
            batch = records[start : start + self._batch_max]
            finished = 0
            while finished < len(batch):
                if epoch != self._epoch or self._worker.stopping.is_set():
                    # The rest is not committed: it comes again, here or elsewhere.
                    return
                deliveries = [delivery_of(record) for record in batch[finished:]]
                try:
                    finished += await self._worker.work(deliveries)
                except Exception:
                    # A mistake of this adapter: going on would acknowledge past these messages.
                    log.exception("bus.consumer-fault", group=self._group)
                    await asyncio.sleep(_FAULT_PAUSE_SECONDS)
                if epoch == self._epoch:
                    last = {(record.topic, record.partition): record.offset for record in batch[:finished]}
                    self._finished.update({TopicPartition(*where): offset + 1 for where, offset in last.items()})
                    self._commit_wake.set()
            if time.monotonic() > yield_at:
                # A handler that never really waits must not keep the loop to itself.
                await asyncio.sleep(0)
                yield_at = time.monotonic() + _YIELD_SECONDS

    async def _until_idle(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
        return self._idle.is_set()

    # Commit.

    async def _commit(self) -> None:
        while True:
            await self._commit_wake.wait()
            self._commit_wake.clear()
            try:
                await self._commit_once()
                self._fault = None
                await asyncio.sleep(_COMMIT_PAUSE_SECONDS)
            except KafkaError as error:
                self._fault = str(error) or type(error).__name__
                await asyncio.sleep(_FAULT_PAUSE_SECONDS)
                self._commit_wake.set()

    async def _commit_once(self) -> None:
        consumer = self._subscriber.consumer
        finished, self._finished = self._finished, {}
        if not finished or consumer is None:
            return
        try:
            await consumer.commit(finished)
        except (CommitFailedError, IllegalStateError):
            # A rebalance is under way: what is not committed is read again after it.
            pass
        except BaseException:
            self._finished = {**finished, **self._finished}
            raise

    async def _commit_bounded(self) -> None:
        try:
            await asyncio.wait_for(self._commit_once(), _COMMIT_SECONDS)
        except (KafkaError, TimeoutError) as error:
            log.warning("bus.commit-cut-off", group=self._group, error=str(error) or type(error).__name__)

    # Supervision.

    async def _supervise(self) -> None:
        """Make the consumer anew when it does not recover: some errors end aiokafka's background tasks for good."""
        while True:
            await asyncio.sleep(_FAULT_PAUSE_SECONDS)
            consumer = self._subscriber.consumer
            if consumer is not None and consumer.faults < FAULTS_MAX:
                continue
            log.warning("bus.consumer-renewed", group=self._group, error=self.fault)
            self._epoch += 1
            self._finished.clear()
            await ended(self._subscriber.stop(), 2 * STOP_SECONDS)
            try:
                async with self._cluster.mapped("start a consumer"):
                    await self._subscriber.start()
                self._fault = None
            except Exception as error:
                self._fault = str(error)


async def _parse(records: Sequence[Any]) -> KafkaAckableMessage:
    """The batch as FastStream's message, its records untouched: FastStream would drop a batch it cannot decode."""
    return KafkaAckableMessage(
        body=b"",
        headers={},
        raw_message=records,
        message_id=f"{records[0].offset}",
        correlation_id="",
        consumer=FAKE_CONSUMER,
    )


async def _decode(message: KafkaAckableMessage) -> Sequence[Any]:
    records: Sequence[Any] = message.raw_message
    return records
