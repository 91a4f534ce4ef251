"""One scheduler a worker: every request, online or queued, waits here until a slot runs it in a batch.

The one idea: requests that may share a run (same model digest, same shape but
for the batch dimension) form a bucket; a free slot takes the bucket whose head
is due first and fills a batch in order of urgency. Urgency is the deadline, or
the patience of the lane when that is shorter, so waiting work of every lane
moves forward. All methods are called on the event loop; only sessions run in
threads.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

from modelworks.inference.engine.batch import Batch, Entry, Key, Ran, execute, halves, key_of
from modelworks.inference.engine.errors import Cancelled, RowsMixed
from modelworks.inference.engine.messages import LANES, Lane, Outcome, Work
from modelworks.inference.engine.models import LoadedModel
from modelworks.inference.engine.statistics import ServiceTime
from modelworks.kit.errors import DeadlineExceeded, InvalidInput, ModelworksError, RateLimited, Unavailable
from modelworks.kit.logging import get_logger
from opentelemetry.trace import Tracer

log = get_logger("engine")

PATIENCE_SECONDS: Mapping[Lane, float] = {"interactive": 0.05, "standard": 5.0, "bulk": 60.0}
"""A request counts as due this long after it came, so that a full lane cannot starve another for ever."""

_HEAP_SLACK = 64

_IDLE_FACTOR = 10
"""A bucket that had no batch for this many delays is idle: its next request need not wait for companions."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of one scheduler."""

    slots: int
    """Batches that run at once."""
    waiting_max: int
    """Requests that wait."""
    waiting_bytes_max: int
    """Input bytes of those that wait."""


@dataclass(slots=True)
class Waiting:
    """What waits in one lane."""

    requests: int = 0
    queued: int = 0
    """Of them, jobs."""
    bytes: int = 0
    work_seconds: float = 0.0
    """Expected service time of all of them."""


class Observer:
    """Told of what happens; the base class ignores it."""

    def batch_started(self, batch: Batch) -> None:
        """A slot begins to run a batch."""

    def batch_ended(self, batch: Batch, ran: Ran) -> None:
        """It ended, well or not."""

    def request_ended(self, mouth: str, outcome: str, seconds: float) -> None:
        """A request left: `outcome` is `succeeded` or the error's code."""


class Ticket:
    """A submitted request."""

    __slots__ = ("_entry", "_scheduler")

    def __init__(self, scheduler: Scheduler, entry: Entry) -> None:
        self._scheduler = scheduler
        self._entry = entry

    @property
    def future(self) -> asyncio.Future[Outcome]:
        """The outcome, or the error: Cancelled, DeadlineExceeded, InvalidInput, ModelFailed or Unavailable."""
        return self._entry.future

    @property
    def started(self) -> bool:
        """It has left the queue."""
        return self._entry.batch is not None

    def cancel(self) -> None:
        """Give the request up: a waiting one never runs; a running batch stops when all its members gave up."""
        self._scheduler.cancel(self._entry)

    async def outcome(self) -> Outcome:
        """Wait for it. When the waiting task is cancelled, so is the request."""
        try:
            return await self._entry.future
        except asyncio.CancelledError:
            self.cancel()
            raise


class _Bucket:
    """Requests that may run together, most urgent first."""

    __slots__ = ("heap", "key", "last_ended", "last_requests", "live", "model", "rows", "running", "service_time")

    def __init__(self, key: Key, model: LoadedModel) -> None:
        self.key = key
        self.model = model
        self.heap: list[tuple[float, int, Entry]] = []
        self.live = 0
        """Entries of the heap that still wait."""
        self.rows = 0
        """Of those."""
        self.running = 0
        self.last_requests = 0
        self.last_ended = -math.inf
        self.service_time = ServiceTime()


class Scheduler:
    """Queues and runs."""

    def __init__(self, bounds: Bounds, *, tracer: Tracer | None = None, observer: Observer | None = None) -> None:
        self._bounds = bounds
        self._tracer = tracer
        self._observer = observer or Observer()
        self._threads = ThreadPoolExecutor(bounds.slots, thread_name_prefix="session")
        self._buckets: dict[Key, _Bucket] = {}
        self._active: dict[Key, _Bucket] = {}
        """Buckets whose heap is not empty."""
        self._again: deque[Batch] = deque()
        """Halves of failed batches: they run before anything else."""
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self.running = 0
        """Slots in use."""
        self.waiting: dict[Lane, Waiting] = {lane: Waiting() for lane in LANES}

    @property
    def slots(self) -> int:
        """Batches that may run at once."""
        return self._bounds.slots

    # --- in -----------------------------------------------------------------------------------------------

    def submit(self, model: LoadedModel, work: Work) -> Ticket:
        """Queue a request.

        Raises:
            DeadlineExceeded: its deadline has passed.
            RateLimited: the queue is full, or it would wait beyond its deadline; `Retry-After` says when to come back.
            Unavailable: the worker is stopping.
        """
        if self._closed:
            raise Unavailable("this worker is stopping: try again, another will answer", retry_after_seconds=1)
        now = time.monotonic()
        self._admit(work, now)
        key = key_of(model, work)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._bucket(key, model)
        due = min(work.deadline or math.inf, now + PATIENCE_SECONDS[work.lane])
        entry = Entry(
            work=work, model=model, key=key, future=asyncio.get_running_loop().create_future(), enqueued=now,
            estimate=bucket.service_time.of(work.rows),
        )  # fmt: skip
        heapq.heappush(bucket.heap, (due, next(self._numbers), entry))
        self._active[key] = bucket
        bucket.live += 1
        bucket.rows += work.rows
        self._count(entry, 1)
        model.acquire()
        self._idle.clear()
        self._pump()
        if entry.batch is None and work.deadline is not None:
            entry.timer = asyncio.get_running_loop().call_later(work.deadline - now, self._time_over, entry)
        return Ticket(self, entry)

    def work_seconds(self) -> float:
        """Expected time until all that waits now would be done."""
        return sum(waiting.work_seconds for waiting in self.waiting.values()) / self._bounds.slots

    def _admit(self, work: Work, now: float) -> None:
        requests = sum(waiting.requests for waiting in self.waiting.values())
        held_bytes = sum(waiting.bytes for waiting in self.waiting.values())
        if work.deadline is not None and work.deadline <= now:
            raise DeadlineExceeded("the deadline passed before the request could be queued")
        wait = self.work_seconds()
        retry_after = max(1, min(60, math.ceil(wait)))
        full_bytes = requests > 0 and held_bytes + work.size_bytes > self._bounds.waiting_bytes_max
        if requests >= self._bounds.waiting_max or full_bytes:
            raise RateLimited(
                f"{requests} requests with {held_bytes} bytes are waiting, which is this worker's bound: "
                f"try again in {retry_after} s",
                retry_after_seconds=retry_after,
            )
        if work.deadline is not None and work.lane == "interactive" and wait > work.deadline - now:
            raise RateLimited(
                f"{wait:.2f} s of work are waiting, the deadline is in {work.deadline - now:.2f} s: "
                "allow more time, or try again later",
                retry_after_seconds=retry_after,
            )

    def _bucket(self, key: Key, model: LoadedModel) -> _Bucket:
        if len(self._buckets) > self._bounds.waiting_max:
            # Shape classes come from callers: what was learned of idle ones is let go.
            self._buckets = {k: bucket for k, bucket in self._buckets.items() if bucket.live or bucket.running}
        return self._buckets.setdefault(key, _Bucket(key, model))

    def retire(self, model: LoadedModel) -> None:
        """Let a model go that is no longer served: closed once its last request has left."""
        model.retire()
        self._forget(model)

    def _forget(self, model: LoadedModel) -> None:
        if model.retired and not model.outstanding:
            self._buckets = {key: bucket for key, bucket in self._buckets.items() if bucket.model is not model}
            self._active = {key: bucket for key, bucket in self._active.items() if bucket.model is not model}

    def cancel(self, entry: Entry) -> None:
        """See Ticket.cancel."""
        if entry.left:
            return
        self._resolve(entry, Cancelled("the request was cancelled"))
        if entry.batch is None:
            self._leave_queue(entry)
            self._compact(entry.key)
        if entry.batch is not None and all(member.left for member in entry.batch.members):
            entry.batch.token.cancel()

    def _time_over(self, entry: Entry) -> None:
        """The timer of a waiting request: it must hear of its end even while all slots are busy."""
        self._expire(entry)
        self._compact(entry.key)

    def _expire(self, entry: Entry) -> None:
        if not entry.left and entry.batch is None:
            self._leave_queue(entry)
            self._resolve(entry, DeadlineExceeded("the deadline passed while the request waited"))

    def _compact(self, key: Key) -> None:
        """Requests that were given up deep in a heap must not pile up behind a slow head."""
        bucket = self._buckets.get(key)
        if bucket is not None and len(bucket.heap) > 2 * bucket.live + _HEAP_SLACK:
            bucket.heap = [item for item in bucket.heap if not item[2].left]
            heapq.heapify(bucket.heap)

    # --- through ------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Start batches while slots are free."""
        while self.running < self._bounds.slots:
            batch = self._next()
            if batch is None:
                return
            self._start(batch)

    def _next(self) -> Batch | None:
        while self._again:
            batch = self._again.popleft()
            batch.members = [member for member in batch.members if not member.left]
            if batch.members:
                return batch
        now = time.monotonic()
        wake_at = math.inf
        for bucket in sorted(self._ready(now), key=lambda bucket: bucket.heap[0][:2]):
            fire_at = self._fire_at(bucket, now)
            if fire_at <= now:
                return self._form(bucket, now)
            wake_at = min(wake_at, fire_at)
        if wake_at < self._timer_at:
            self._wake(wake_at)
        return None

    def _ready(self, now: float) -> list[_Bucket]:
        """Buckets with a live head; expired and cancelled heads are taken out."""
        ready = []
        for key, bucket in list(self._active.items()):
            while bucket.heap:
                entry = bucket.heap[0][2]
                if not entry.left and entry.expired(now):
                    self._expire(entry)
                if not entry.left:
                    ready.append(bucket)
                    break
                heapq.heappop(bucket.heap)
            else:
                self._active.pop(key, None)
        return ready

    def _fire_at(self, bucket: _Bucket, now: float) -> float:
        """When the bucket's batch should start: at once when it is full, or nobody else is likely to come."""
        delay = bucket.model.max_delay_seconds
        head = bucket.heap[0][2]
        if not bucket.model.batched or delay <= 0 or bucket.rows >= bucket.model.max_batch:
            return now
        busy = bucket.running > 0 or (
            bucket.last_requests > 1
            and bucket.live < bucket.last_requests
            and now - bucket.last_ended < _IDLE_FACTOR * delay
        )
        if not busy:
            return now
        return min(head.enqueued + delay, head.work.deadline or math.inf)

    def _wake(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer_at = at
        self._timer = loop.call_later(max(0.0, at - time.monotonic()), self._woken)

    def _woken(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        self._pump()

    def _form(self, bucket: _Bucket, now: float) -> Batch:
        """Take the most urgent requests that fit one batch; the head is live, so there is at least one."""
        members: list[Entry] = []
        rows = 0
        while bucket.heap:
            entry = bucket.heap[0][2]
            if entry.left or entry.expired(now):
                heapq.heappop(bucket.heap)
                self._expire(entry)
                continue
            if members and (not bucket.model.batched or rows + entry.work.rows > bucket.model.max_batch):
                break
            heapq.heappop(bucket.heap)
            self._leave_queue(entry)
            members.append(entry)
            rows += entry.work.rows
        return Batch(bucket.key, bucket.model, members)

    def _start(self, batch: Batch) -> None:
        batch.begin(self._tracer)
        batch.model.acquire()
        self.running += 1
        bucket = self._buckets.get(batch.key)
        if bucket is not None:
            bucket.running += 1
        self._observer.batch_started(batch)
        loop = asyncio.get_running_loop()

        def run() -> None:
            ran = execute(batch)
            loop.call_soon_threadsafe(self._ended, batch, ran)

        self._threads.submit(run)

    # --- out ----------------------------------------------------------------------------------------------

    def _ended(self, batch: Batch, ran: Ran) -> None:
        self.running -= 1
        bucket = self._buckets.get(batch.key)
        if bucket is not None:
            bucket.running -= 1
            bucket.last_ended = time.monotonic()
            bucket.last_requests = len(batch.members)
            if ran.error is None:
                bucket.service_time.learn(batch.rows, ran.infer_seconds)
        batch.end(ran)
        self._observer.batch_ended(batch, ran)
        if ran.error is None:
            self._deliver(batch, ran)
        elif len(batch.members) > 1 and not isinstance(ran.error, Cancelled):
            if isinstance(ran.error, RowsMixed):
                batch.model.max_batch = 1
            # One of them may be the poison: each half gets its own chance.
            self._again.extend(halves(batch))
        else:
            self._fail(batch, ran.error)
        batch.model.release()
        self._forget(batch.model)
        self._pump()
        self._check_idle()

    def _deliver(self, batch: Batch, ran: Ran) -> None:
        stats = batch.model.statistics
        stats.ran(
            batch.rows, prepare_seconds=ran.prepare_seconds, infer_seconds=ran.infer_seconds,
            split_seconds=ran.split_seconds,
        )  # fmt: skip
        now = time.monotonic()
        for member, outputs in zip(batch.members, ran.outputs, strict=True):
            if member.left:
                continue
            stats.queue.add(batch.started - member.enqueued)
            stats.success.add(now - member.enqueued)
            member.left = True
            self._observer.request_ended(member.work.mouth, "succeeded", now - member.enqueued)
            if not member.future.done():
                member.future.set_result(
                    Outcome(outputs, batch.rows, batch.started - member.enqueued, ran.infer_seconds)
                )
            member.model.release()

    def _fail(self, batch: Batch, error: ModelworksError) -> None:
        for member in batch.members:
            if member.left:
                continue
            if not isinstance(error, (Cancelled, InvalidInput)):
                log.warning("engine.run-failed", model=batch.model.name, request=member.work.id, error=str(error))
            batch.model.statistics.fail.add(time.monotonic() - member.enqueued)
            self._resolve(member, error)

    def _resolve(self, entry: Entry, error: ModelworksError) -> None:
        entry.left = True
        self._observer.request_ended(entry.work.mouth, error.code, time.monotonic() - entry.enqueued)
        if not entry.future.done():
            entry.future.set_exception(error)
            # Whoever waited may be gone: asyncio must not complain of an error that nobody fetched.
            entry.future.exception()
        entry.model.release()
        self._check_idle()

    def _leave_queue(self, entry: Entry) -> None:
        bucket = self._buckets.get(entry.key)
        if bucket is not None:
            bucket.rows -= entry.work.rows
            bucket.live -= 1
        if entry.timer is not None:
            entry.timer.cancel()
        self._count(entry, -1)

    def _count(self, entry: Entry, sign: int) -> None:
        waiting = self.waiting[entry.work.lane]
        waiting.requests += sign
        waiting.queued += sign if entry.work.mouth == "queued" else 0
        waiting.bytes += sign * entry.work.size_bytes
        # Rounding must not leave a rest when the lane is empty.
        waiting.work_seconds = (
            max(0.0, waiting.work_seconds + sign * entry.estimate) if waiting.requests else 0.0
        )  # fmt: skip

    def _check_idle(self) -> None:
        if not self.running and not self._again and not any(w.requests for w in self.waiting.values()):
            self._idle.set()

    # --- the end ------------------------------------------------------------------------------------------

    async def close(self, *, grace_seconds: float) -> None:
        """Take nothing new, finish what waits and runs within the grace, cancel the rest."""
        self._closed = True
        try:
            await asyncio.wait_for(self._idle.wait(), grace_seconds)
        except TimeoutError:
            self._give_up()
        if self._timer is not None:
            self._timer.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _give_up(self) -> None:
        error = Unavailable("this worker stopped before the request was done: try again", retry_after_seconds=1)
        for bucket in self._buckets.values():
            for _, _, entry in list(bucket.heap):
                if not entry.left:
                    self._leave_queue(entry)
                    self._resolve(entry, error)
        for batch in self._again:
            for member in batch.members:
                if not member.left:
                    self._resolve(member, error)
        self._again.clear()
