"""Members of groups on the embedded bus.

A lane is one group's reading of one topic. Of the members that share it the
oldest is active; when it stops, the next takes over where the lane was
committed.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from modelworks.kit.errors import StoreUnavailable, Unavailable
from modelworks.kit.logging import get_logger
from modelworks.stores.bus.handling import Failure, Handling
from modelworks.stores.bus.port import Delivery, Subscription
from modelworks.stores.bus.sqlite_log import Parked, Position, SqliteLog, micros
from modelworks.stores.bus.watermark import Watermark
from modelworks.stores.bus.window import Window

_READ_MAX = 500
"""Messages that a lane reads at once."""
_COMMIT_PAUSE_SECONDS = 0.01
"""Between two writes of a `control` group's position: a crash repeats at most what was done in it."""
_FAULT_PAUSE_SECONDS = 1.0

log = get_logger("bus")


class Lane:
    """A group's place in a topic, shared by its members."""

    def __init__(self, group: str, topic: str) -> None:
        self.group = group
        self.topic = topic
        self.members: list[Member] = []
        """Oldest first; the first one is active."""
        self.loaded_by: Member | None = None
        self.mark = Watermark(0)
        self.next_read = 0
        self.buffer: deque[Delivery] = deque()
        self.retries: list[tuple[int, int]] = []
        """Heap of (due in microseconds, id)."""

    def load(self, member: Member, position: Position, retries: Sequence[tuple[int, int]]) -> None:
        """Begin where the group stands."""
        self.loaded_by = member
        self.mark = Watermark(position.position, position.done)
        self.next_read = position.position
        self.buffer.clear()
        self.retries = list(retries)
        heapq.heapify(self.retries)

    def expect(self, due: int, retry: int) -> None:
        """A retry was parked for later."""
        # While no member has loaded the lane, loading will find it in the file.
        if self.loaded_by is not None:
            heapq.heappush(self.retries, (due, retry))
            self.loaded_by.wake.set()

    def position(self) -> Position:
        """What to commit."""
        return Position(self.group, self.topic, self.mark.position, self.mark.metadata)


@dataclass(frozen=True, slots=True)
class Job:
    """A delivery, and where it came from."""

    lane: Lane
    delivery: Delivery
    retry: int | None = None
    """Id of the retry; None when it came from the topic."""


class Member:
    """A running subscription of the embedded bus."""

    def __init__(
        self,
        subscription: Subscription,
        lanes: Sequence[Lane],
        *,
        log: SqliteLog,
        ends: Mapping[str, int],
        drain: timedelta,
        left: Callable[[Member], None],
    ) -> None:
        self.group = subscription.group
        self.lanes = lanes
        self.wake = asyncio.Event()
        self._subscription = subscription
        self._log = log
        self._ends = ends
        self._drain = drain
        self._left = left
        self._stopping = asyncio.Event()
        self._handling = Handling(subscription, self._stopping)
        self._window: Window[Job] = Window(running_max=subscription.in_flight_max)
        self._running: set[asyncio.Task[None]] = set()
        self._dirty: set[Lane] = set()
        self._finished: list[int] = []
        self._flushing: asyncio.Task[None] | None = None
        self._fault: str | None = None
        self._commit_fault: str | None = None
        self._retried_last = False
        self._task: asyncio.Task[None] | None = None
        self._stopped: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take part."""
        for lane in self.lanes:
            lane.members.append(self)
        try:
            await self._load()
        except BaseException:
            self._left(self)
            raise
        self._task = asyncio.create_task(self._run(), name=f"bus {self.group}")

    async def stop(self) -> None:
        """See `Consumer.stop`. Stopping twice is harmless."""
        if self._stopped is None:
            self._stopped = asyncio.create_task(self._stop(), name=f"bus stop {self.group}")
        await asyncio.shield(self._stopped)

    def check(self) -> None:
        """See `Consumer.check`."""
        if self._stopping.is_set():
            raise Unavailable(f"the consumer of group {self.group!r} is stopped")
        trouble = self._fault or self._commit_fault or self._handling.held
        if trouble:
            raise Unavailable(f"group {self.group!r} is held up: {trouble}")

    async def flush(self) -> None:
        """Write the positions of what is finished."""
        while self._dirty or self._finished or self._flushing is not None:
            if self._flushing is None:
                self._flushing = asyncio.create_task(self._flush(0.0), name=f"bus commit {self.group}")
            task = self._flushing
            await asyncio.wait([task], timeout=_FAULT_PAUSE_SECONDS)
            if task.done():
                task.result()
            elif self._commit_fault:
                return

    # Life.

    async def _run(self) -> None:
        step = self._step_long if self._subscription.work == "long" else self._step_control
        while not self._stopping.is_set():
            self.wake.clear()
            try:
                await self._load()
                idle = await step()
                self._fault = None
            except StoreUnavailable as error:
                await self._recover(str(error))
            except Exception as error:
                # A mistake of this adapter must not end the group silently: say it, and go on from what is committed.
                log.exception("bus.consumer-fault", group=self.group)
                await self._recover(f"{type(error).__name__}: {error}")
            else:
                if idle and not self._stopping.is_set():
                    await self._sleep()
                else:
                    # A handler that never really waits must not keep the loop to itself.
                    await asyncio.sleep(0)

    async def _stop(self) -> None:
        self._stopping.set()
        self.wake.set()
        running = {*self._running, *([self._task] if self._task else [])}
        if running:
            await asyncio.wait(running, timeout=self._drain.total_seconds())
            late = {task for task in {*running, *self._running} if not task.done()}
            for task in late:
                task.cancel()
            if late:
                log.warning("bus.drain-cut-off", group=self.group, handlers=len(late))
                await asyncio.wait(late)
        with suppress(StoreUnavailable):
            await self.flush()
        self._left(self)

    async def _recover(self, fault: str) -> None:
        if self._fault is None:
            log.warning("bus.consumer-held-up", group=self.group, error=fault)
        self._fault = fault
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), _FAULT_PAUSE_SECONDS)

    async def _sleep(self) -> None:
        dues = [lane.retries[0][0] for lane in self._active() if lane.retries]
        timeout = max(0.0, (min(dues) - micros()) / 1e6) if dues else None
        with suppress(TimeoutError):
            await asyncio.wait_for(self.wake.wait(), timeout)

    def _active(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.loaded_by is self]

    async def _load(self) -> None:
        for lane in self.lanes:
            if lane.members[0] is self and lane.loaded_by is not self:
                position, retries = await self._log.run(
                    lambda c, lane=lane: self._log.join(c, lane.group, lane.topic)  # type: ignore[misc]
                )
                lane.load(self, position, retries)

    # Control: in order, by batches.

    async def _step_control(self) -> bool:
        """Handle one batch; True when there was none."""
        # Retries and new messages take turns, so that neither starves.
        batch = [] if self._retried_last else await self._due(1)
        self._retried_last = bool(batch)
        batch = batch or await self._batch() or await self._due(1)
        if not batch:
            return True
        await self._handle(batch)
        return False

    async def _batch(self) -> list[Job]:
        batch: list[Job] = []
        for lane in self._active():
            while len(batch) < self._subscription.batch_max and (delivery := await self._next(lane)) is not None:
                batch.append(Job(lane, delivery))
        return batch

    # Long: several at once, in order within a key.

    async def _step_long(self) -> bool:
        """Fill the window and start what may start."""
        while not self._window.full and (job := await self._next_job()) is not None:
            self._window.offer((job.lane.topic, job.delivery.message.key), job)
        while not self._stopping.is_set() and (taken := self._window.take()) is not None:
            task = asyncio.create_task(self._work(*taken), name=f"bus {self.group} handler")
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return True

    async def _next_job(self) -> Job | None:
        if due := await self._due(1):
            return due[0]
        for lane in self._active():
            if lane.mark.room(lane.buffer[0].offset if lane.buffer else lane.next_read):
                delivery = await self._next(lane)
                if delivery is not None:
                    return Job(lane, delivery)
        return None

    async def _work(self, key: Hashable, job: Job) -> None:
        try:
            await self._handle([job])
        except StoreUnavailable as error:
            # Parking failed although it was tried until the stop: the message is not acknowledged, so nothing is lost.
            log.warning("bus.unsettled", group=self.group, error=str(error))
        finally:
            self._window.finish(key)
            self.wake.set()

    # Both.

    async def _next(self, lane: Lane) -> Delivery | None:
        """The lane's next message that is not finished, or None when all are read."""
        while True:
            if not lane.buffer:
                if lane.next_read >= self._ends[lane.topic]:
                    return None
                deliveries = await self._log.run(lambda c: self._log.read(c, lane.topic, lane.next_read, _READ_MAX))
                if not deliveries:
                    return None
                lane.next_read = deliveries[-1].offset + 1
                lane.buffer.extend(deliveries)
            delivery = lane.buffer.popleft()
            if lane.mark.begin(delivery.offset):
                return delivery

    async def _due(self, limit: int) -> list[Job]:
        """Retries whose time has come."""
        now = micros()
        jobs: list[Job] = []
        for lane in self._active():
            while lane.retries and lane.retries[0][0] <= now and len(jobs) < limit:
                _, id = lane.retries[0]
                delivery = await self._log.run(lambda c, id=id: self._log.retry(c, id))  # type: ignore[misc]
                heapq.heappop(lane.retries)
                if delivery is not None:
                    jobs.append(Job(lane, delivery, id))
        return jobs

    async def _handle(self, batch: Sequence[Job]) -> None:
        handled = await self._handling.run([job.delivery for job in batch])
        settled = batch[: handled.count]
        if handled.failures:
            await self._park(settled, [self._parked(failure) for failure in handled.failures])
        else:
            self._mark(settled)
            self._finished.extend(job.retry for job in settled if job.retry is not None)
            self._commit_soon()

    def _mark(self, settled: Sequence[Job]) -> None:
        for job in settled:
            if job.retry is None:
                job.lane.mark.finish(job.delivery.offset)
            self._dirty.add(job.lane)

    def _parked(self, failure: Failure) -> Parked:
        delivery = failure.delivery
        if failure.delay is None:
            return Parked(self.group, delivery, delivery.attempt, failure.error)
        due = micros() + int(failure.delay.total_seconds() * 1e6)
        return Parked(self.group, delivery, delivery.attempt + 1, failure.error, due)

    async def _park(self, settled: Sequence[Job], parked: Sequence[Parked]) -> None:
        """Make failures durable; only then are their messages finished."""
        finished = [job.retry for job in settled if job.retry is not None]
        lanes = {job.lane.topic: job.lane for job in settled}
        while True:
            try:
                ids = await self._log.run(
                    lambda c: self._log.settle(c, positions=(), finished=finished, parked=parked), durable=True
                )
                break
            except StoreUnavailable as error:
                if self._stopping.is_set():
                    raise
                await self._recover(str(error))
        self._fault = None
        self._mark(settled)
        for one, id in zip(parked, ids, strict=True):
            if one.due is not None:
                lanes[one.delivery.message.topic].expect(one.due, id)
        self._commit_soon()

    def _commit_soon(self) -> None:
        if self._flushing is None and (self._dirty or self._finished):
            pause = 0.0 if self._subscription.work == "long" else _COMMIT_PAUSE_SECONDS
            self._flushing = asyncio.create_task(self._flush(pause), name=f"bus commit {self.group}")

    async def _flush(self, pause: float) -> None:
        try:
            while self._dirty or self._finished:
                if pause and not self._stopping.is_set():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._stopping.wait(), pause)
                lanes, finished = list(self._dirty), self._finished
                self._dirty, self._finished = set(), []
                positions = [lane.position() for lane in lanes]
                try:
                    await self._log.run(
                        lambda c, p=positions, f=finished: self._log.settle(c, positions=p, finished=f)  # type: ignore[misc]
                    )
                    self._commit_fault = None
                except StoreUnavailable as error:
                    self._dirty.update(lanes)
                    self._finished.extend(finished)
                    if self._stopping.is_set():
                        raise
                    self._commit_fault = str(error)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._stopping.wait(), _FAULT_PAUSE_SECONDS)
        finally:
            self._flushing = None
