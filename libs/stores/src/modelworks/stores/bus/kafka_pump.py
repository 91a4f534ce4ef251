"""Long work on Kafka: read ahead, run out of order, commit what is finished.

The pump polls all the time, so that the group never thinks it dead, and holds a
bounded number of records; partitions with enough of them are paused. Finished
offsets above the contiguous watermark are committed as metadata beside it, so
that whoever takes a partition over skips them. The same pump reads a group's
retries, which wait here until they are due.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError, KafkaError
from modelworks.kit.errors import StoreUnavailable
from modelworks.kit.logging import get_logger
from modelworks.stores.bus.kafka_admin import Cluster, now_ms
from modelworks.stores.bus.kafka_consumer import FAULTS_MAX, FETCH_RECORDS_MAX, WaitingConsumer
from modelworks.stores.bus.port import Delivery
from modelworks.stores.bus.watermark import Watermark
from modelworks.stores.bus.window import Window

_WAITING_HIGH = 1000
"""Records of one partition held before it is paused; one fetch may add as many as `FETCH_RECORDS_MAX`."""
_WAITING_LOW = 500
"""Resumed that early, because aiokafka has one fetch at a time to a broker: while it waits for an empty partition
(`fetch_max_wait_ms`), a resumed one gets nothing."""
_COMMIT_PAUSE_SECONDS = 0.02
_FAULT_PAUSE_SECONDS = 1.0
_REVOKE_WAIT_SECONDS = 5.0
"""How long a rebalance waits for running work. The whole group stands still meanwhile; what takes longer goes on
running, and is taken up again if the partition comes back."""
_COMMIT_SECONDS = 5.0

log = get_logger("bus")


@dataclass(frozen=True, slots=True)
class Item:
    """A record to work on."""

    partition: TopicPartition
    offset: int
    key: Hashable
    delivery: Delivery
    not_before_ms: int = 0


Decode = Callable[[Any], Item | None]
"""A record as an item; None when it cannot be read, and is passed over."""
Work = Callable[[Delivery], Awaitable[bool]]
"""Handles a delivery; True when it may be acknowledged."""


@dataclass(slots=True)
class _Partition:
    """A partition that is assigned to us."""

    mark: Watermark
    waiting: deque[Item] = field(default_factory=deque)
    paused: bool = False


class Pump(ConsumerRebalanceListener):  # type: ignore[misc]
    """A member of a group whose work may take hours."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        group: str,
        topics: Sequence[str],
        options: dict[str, Any],
        running_max: int,
        decode: Decode,
        work: Work,
        drain_seconds: float,
    ) -> None:
        self._cluster = cluster
        self._group = group
        self._topics = topics
        self._options = options
        self._decode = decode
        self._work = work
        self._drain_seconds = drain_seconds
        self._consumer: WaitingConsumer | None = None
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._window: Window[Item] = Window(running_max=running_max)
        self._held: set[tuple[TopicPartition, int]] = set()
        """What is in the window, waiting or running: it may arrive again after a rebalance."""
        self._running: dict[tuple[TopicPartition, int], asyncio.Task[None]] = {}
        self._dirty: set[TopicPartition] = set()
        self._wake = asyncio.Event()
        self._commit_wake = asyncio.Event()
        self._revoking = False
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._fault: str | None = None

    @property
    def fault(self) -> str | None:
        """What keeps the member from reading or committing right now, or None."""
        return self._fault or (self._consumer.fault if self._consumer else None)

    async def start(self) -> None:
        """Join the group.

        Raises:
            StoreUnavailable: the cluster does not answer.
        """
        async with self._cluster.mapped("start a consumer"):
            await self._connect()
        steps = (self._poll, self._dispatch, self._commit)
        self._tasks = [asyncio.create_task(step(), name=f"bus {self._group} {step.__name__}") for step in steps]

    async def stop(self) -> None:
        """Start nothing more, wait for what runs, commit, leave."""
        self._stopping.set()
        self._wake.set()
        await self._finish_running(self._drain_seconds)
        late = list(self._running.values())
        for task in late:
            task.cancel()
        if late:
            log.warning("bus.drain-cut-off", group=self._group, handlers=len(late))
            await asyncio.wait(late)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await asyncio.wait_for(self._commit_once(), _COMMIT_SECONDS)
        except (KafkaError, TimeoutError) as error:
            log.warning("bus.commit-cut-off", group=self._group, error=str(error) or type(error).__name__)
        await self._disconnect()

    # Rebalance.

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Called before every rebalance, with all that we have."""
        self._revoking = True
        self._forget_waiting()
        await self._finish_running(_REVOKE_WAIT_SECONDS)
        try:
            await asyncio.wait_for(self._commit_once(), _COMMIT_SECONDS)
        except (KafkaError, TimeoutError) as error:
            log.warning("bus.commit-cut-off", group=self._group, error=str(error) or type(error).__name__)
        self._partitions.clear()
        self._dirty.clear()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Called after every rebalance, with all that we have now."""
        # The poll may have opened some of them already, so what there is stays.
        for (tp, _), task in list(self._running.items()):
            if tp not in assigned:
                # Somebody else has the partition, and will do this work again.
                task.cancel()
        self._revoking = False
        with suppress(StoreUnavailable):
            await self._open(assigned)
        self._wake.set()

    async def _open(self, tps: Collection[TopicPartition]) -> None:
        """Take partitions up where the group has committed."""
        committed = await self._cluster.committed(self._group)
        beginnings = await self._cluster.beginnings([tp for tp in tps if tp not in committed])
        for tp in tps:
            if tp in self._partitions or self._consumer is None or tp not in self._consumer.assignment():
                continue
            if tp in committed:
                self._partitions[tp] = _Partition(Watermark(*committed[tp]))
            else:
                # Committed at once, so that the group's lag is known before its first message is finished.
                self._partitions[tp] = _Partition(Watermark(beginnings[tp]))
                self._dirty.add(tp)
                self._commit_wake.set()

    # Read.

    async def _poll(self) -> None:
        while True:
            try:
                await self._poll_once()
            except ConsumerStoppedError:
                return
            except (KafkaError, StoreUnavailable, OSError, TimeoutError) as error:
                await self._recover(error)
            except Exception as error:
                # A mistake of this adapter must not end the group silently.
                log.exception("bus.consumer-fault", group=self._group)
                await self._recover(error)

    async def _poll_once(self) -> None:
        consumer = self._consumer
        if consumer is None:
            await self._connect()
            return
        fetched = await consumer.getmany(max_records=FETCH_RECORDS_MAX)
        try:
            await self._take(consumer, fetched)
        except BaseException:
            # What was fetched and not taken must be fetched again.
            for tp, records in fetched.items():
                if tp not in self._partitions:
                    with suppress(IllegalStateError):
                        consumer.seek(tp, records[0].offset)
            raise
        self._fault = None
        self._wake.set()

    async def _take(self, consumer: WaitingConsumer, fetched: dict[TopicPartition, list[Any]]) -> None:
        unknown = [tp for tp in fetched if tp not in self._partitions]
        if unknown:
            await self._open(unknown)
        for tp, records in fetched.items():
            partition = self._partitions.get(tp)
            if partition is None or self._revoking:
                # Lost meanwhile: whoever has it reads these again.
                continue
            for record in records:
                item = self._decode(record)
                if item is not None:
                    partition.waiting.append(item)
                elif partition.mark.begin(record.offset):
                    self._finish(tp, record.offset)
            if len(partition.waiting) >= _WAITING_HIGH and not partition.paused:
                partition.paused = True
                consumer.pause(tp)

    async def _recover(self, error: Exception) -> None:
        if self._fault is None:
            log.warning("bus.consumer-held-up", group=self._group, error=str(error) or type(error).__name__)
        self._fault = str(error) or type(error).__name__
        consumer = self._consumer
        if consumer is not None and consumer.faults >= FAULTS_MAX:
            # Some errors end aiokafka's background tasks for good.
            log.warning("bus.consumer-renewed", group=self._group, error=self._fault)
            self._partitions.clear()
            self._forget_waiting()
            await self._disconnect()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), _FAULT_PAUSE_SECONDS)

    async def _connect(self) -> None:
        consumer = WaitingConsumer(**self._cluster.common, group_id=self._group, **self._options)
        consumer.subscribe(list(self._topics), listener=self)
        self._consumer = consumer
        try:
            await self._cluster.started(consumer)
        except BaseException:
            self._consumer = None
            raise

    async def _disconnect(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    # Work.

    async def _dispatch(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            due_ms = None if self._revoking else self._fill()
            if not self._revoking:
                self._start_ready()
            timeout = None if due_ms is None else max(0.0, (due_ms - now_ms()) / 1000)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), timeout)

    def _fill(self) -> int | None:
        """Move what may run into the window; when the next retry is due, or None."""
        now = now_ms()
        dues = []
        for tp, partition in list(self._partitions.items()):
            while partition.waiting and not self._window.full:
                item = partition.waiting[0]
                if item.not_before_ms > now:
                    dues.append(item.not_before_ms)
                    break
                if not partition.mark.room(item.offset):
                    break
                partition.waiting.popleft()
                if not partition.mark.begin(item.offset):
                    self._dirty.add(tp)
                    self._commit_wake.set()
                elif (tp, item.offset) not in self._held:
                    self._hold(item)
            if partition.paused and len(partition.waiting) <= _WAITING_LOW and self._consumer is not None:
                partition.paused = False
                with suppress(IllegalStateError):
                    self._consumer.resume(tp)
        return min(dues, default=None)

    def _start_ready(self) -> None:
        while (taken := self._window.take()) is not None:
            key, item = taken
            task = asyncio.create_task(self._run(key, item), name=f"bus {self._group} handler")
            self._running[item.partition, item.offset] = task

    async def _run(self, key: Hashable, item: Item) -> None:
        done = False
        try:
            done = await self._work(item.delivery)
        except Exception:
            log.exception("bus.consumer-fault", group=self._group)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _FAULT_PAUSE_SECONDS)
        finally:
            del self._running[item.partition, item.offset]
            self._held.discard((item.partition, item.offset))
            self._window.finish(key)
            if done:
                self._finish(item.partition, item.offset)
            elif item.partition in self._partitions and not self._stopping.is_set():
                # Given up when the partition was lost, and it is back already.
                self._hold(item)
            self._wake.set()

    def _hold(self, item: Item) -> None:
        self._held.add((item.partition, item.offset))
        self._window.offer(item.key, item)

    def _forget_waiting(self) -> None:
        for item in self._window.clear():
            self._held.discard((item.partition, item.offset))

    async def _finish_running(self, seconds: float) -> None:
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=seconds)

    # Commit.

    def _finish(self, tp: TopicPartition, offset: int) -> None:
        partition = self._partitions.get(tp)
        # Lost meanwhile: whoever has it does this again, which every handler must bear.
        if partition is not None:
            partition.mark.finish(offset)
            self._dirty.add(tp)
            self._commit_wake.set()

    async def _commit(self) -> None:
        while True:
            await self._commit_wake.wait()
            self._commit_wake.clear()
            started = time.monotonic()
            try:
                await self._commit_once()
            except (KafkaError, StoreUnavailable) as error:
                self._fault = str(error) or type(error).__name__
                await asyncio.sleep(_FAULT_PAUSE_SECONDS)
                self._commit_wake.set()
            else:
                await asyncio.sleep(max(0.0, _COMMIT_PAUSE_SECONDS - (time.monotonic() - started)))

    async def _commit_once(self) -> None:
        dirty = {tp for tp in self._dirty if tp in self._partitions}
        self._dirty -= dirty
        if not dirty or self._consumer is None:
            return
        marks = {tp: self._partitions[tp].mark for tp in dirty}
        try:
            await self._consumer.commit({tp: (mark.position, mark.metadata) for tp, mark in marks.items()})
        except (CommitFailedError, IllegalStateError):
            # A rebalance is under way: what is not committed is read again after it.
            pass
        except BaseException:
            self._dirty |= dirty
            raise
