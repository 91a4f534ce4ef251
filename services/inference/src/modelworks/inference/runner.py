"""Does queued jobs: takes one up, runs it in the scheduler, writes its end exactly once.

A delivery may come twice, to two workers, or after a crash. What decides is the
job's document: the end is a compare-and-set, and whoever comes second finds it
ended and drops what it has.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from modelworks.inference.changes import Changes
from modelworks.inference.domain import Change, Job, Payload, expire, fail, failure, start, succeed
from modelworks.inference.engine.errors import Cancelled, ModelNotReady
from modelworks.inference.engine.messages import Outcome, Work
from modelworks.inference.engine.models import LoadedModel, Models
from modelworks.inference.engine.scheduler import Scheduler, Ticket
from modelworks.inference.engine.tensors import has_json
from modelworks.inference.engine.v2 import InferBody, Limits, classify, decode, encode
from modelworks.inference.ports import Cancellations, Jobs, Payloads, Versioned
from modelworks.inference.queueing import remaining_seconds
from modelworks.kit.clock import Clock
from modelworks.kit.errors import Conflict, DeadlineExceeded, ModelworksError, NotFound, VersionConflict
from modelworks.kit.logging import get_logger
from modelworks.kit.tasks import end
from opentelemetry.trace import get_current_span

log = get_logger("jobs")

_SAVE_ATTEMPTS = 10
_OFFLOAD_BYTES = 128 * 1024
_LOAD_PATIENCE_SECONDS = 2.0


class ModelAwaited(NotFound):
    """The job's model is not deployed yet: the delivery is tried again after a pause."""


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    """How jobs are done."""

    attempts_max: int
    model_wait: timedelta
    cancel_poll: timedelta
    rows_max: int
    codec: Limits


class Runner:
    """Performs jobs."""

    def __init__(
        self,
        worker: str,
        *,
        jobs: Jobs,
        payloads: Payloads,
        models: Models,
        scheduler: Scheduler,
        cancellations: Cancellations,
        changes: Changes,
        limits: RunnerLimits,
        clock: Clock,
    ) -> None:
        self._worker = worker
        self._jobs = jobs
        self._payloads = payloads
        self._models = models
        self._scheduler = scheduler
        self._cancellations = cancellations
        self._changes = changes
        self._limits = limits
        self._clock = clock
        self._mine: set[str] = set()
        """Jobs that this process has started: taking one up again after a store was away is not another attempt."""

    async def perform(self, id: str, *, waited: timedelta = timedelta(), last: bool = False) -> None:
        """Do a job. Doing it again changes nothing.

        Args:
            waited: how long the delivery was put off because its model was not there.
            last: the delivery is not tried again; what cannot be done now has failed.

        Raises:
            ModelAwaited: its model may still come.
            ModelworksError: transient; the same delivery is tried again.
        """
        found = await self._jobs.get(id)
        if found is None or found.state.final:
            # Deleted after its end, or ended already: the delivery came again.
            return
        try:
            await self._perform(found, waited, last=last)
        except ModelAwaited:
            raise
        except ModelworksError as error:
            if error.transient and not last:
                raise
            await self._fail(found, error)
        except Exception:
            if last:
                await self._fail(found, ModelworksError("an internal error happened; it is in the service's log"))
            raise
        self._mine.discard(id)

    async def _perform(self, found: Versioned[Job], waited: timedelta, *, last: bool) -> None:
        job = found.state
        try:
            remaining_seconds(job, self._clock())
            model = await self._model(job, waited, last=last)
            found = await self._start(found)
            await self._run(found, model)
        except DeadlineExceeded:
            await self._end(found, lambda job: expire(job, at=self._clock()))
        except Cancelled:
            # The document says so already; whoever cancelled told of it.
            log.info("job.cancelled", job=job.id)

    async def _fail(self, found: Versioned[Job], error: ModelworksError) -> None:
        reason = failure(error)
        await self._end(found, lambda job: fail(job, reason, at=self._clock()))

    async def _model(self, job: Job, waited: timedelta, *, last: bool) -> LoadedModel:
        try:
            # While it loads here, waiting a moment is cheaper than handing the job back.
            await self._changes.until(
                job.model, self._reader(job.model), lambda ready: ready, timeout_seconds=_LOAD_PATIENCE_SECONDS
            )
            return self._models.get(job.model, job.ref or "")
        except (NotFound, ModelNotReady) as error:
            if isinstance(error, ModelNotReady) and not error.failed and not last:
                # It will be there, however old the job is: a restarted worker must not fail what waited for it.
                raise
            if waited < self._limits.model_wait and not last:
                raise ModelAwaited(error.message) from error
            seconds = self._limits.model_wait.total_seconds()
            raise NotFound(f"{error.message} (waited {seconds:.0f} s for it)") from error

    def _reader(self, name: str) -> Callable[[], Awaitable[bool]]:
        async def settled() -> bool:
            return self._models.peek(name) is not None or (self._models.complete and name not in self._models.missing())

        return settled

    async def _start(self, found: Versioned[Job]) -> Versioned[Job]:
        job = found.state
        if job.id in self._mine and job.worker == self._worker:
            return found
        if job.attempts >= self._limits.attempts_max:
            raise Conflict(
                f"job {job.id} was started {job.attempts} times and never ended: it seems to kill its worker"
            )
        try:
            started = await self._jobs.save(
                start(job, worker=self._worker, at=self._clock()), expected=found.version, actor=job.owner
            )
        except VersionConflict:
            newest = await self._jobs.get(job.id)
            if newest is None or newest.state.final:
                raise Cancelled(f"job {job.id} ended meanwhile") from None
            return await self._start(newest)
        self._mine.add(job.id)
        return started

    async def _run(self, found: Versioned[Job], model: LoadedModel) -> None:
        job = found.state
        assert job.inputs is not None
        raw = await self._payloads.read(job.inputs)
        body = await self._decoded(raw, job.inputs)
        arrays, rows, outputs, size = model.checked(body, rows_max=self._limits.rows_max)
        left = remaining_seconds(job, self._clock())
        span = get_current_span().get_span_context()
        work = Work(
            id=job.id, inputs=arrays, rows=rows, outputs=outputs, lane=job.lane, mouth="queued", principal=job.owner,
            size_bytes=size, deadline=None if left is None else time.monotonic() + left,
            trace=span if span.is_valid else None,
        )  # fmt: skip
        outcome = await self._outcome(self._scheduler.submit(model, work), job.id)
        output = await self._stored(job, model, body, outcome)
        at = self._clock()
        compute_ms = outcome.compute_seconds * 1000
        waited_ms = max(0.0, (at - job.created_at).total_seconds() * 1000 - compute_ms)

        def ended(job: Job) -> Change[Job]:
            return succeed(
                job, output, revision=model.revision, batch_rows=outcome.batch_rows, queue_ms=waited_ms,
                compute_ms=compute_ms, at=at,
            )  # fmt: skip

        if not await self._end(found, ended):
            await self._payloads.delete(output)

    async def _outcome(self, ticket: Ticket, id: str) -> Outcome:
        """The outcome, given up when the job is cancelled meanwhile."""

        async def watch() -> None:
            await asyncio.sleep(self._limits.cancel_poll.total_seconds())
            cancelled = await self._changes.until(
                f"cancel {id}", lambda: self._cancellations.announced(id), bool, timeout_seconds=float("inf"),
                poll_seconds=self._limits.cancel_poll.total_seconds(),
            )  # fmt: skip
            if cancelled:
                ticket.cancel()

        watching = asyncio.create_task(watch(), name=f"watch job {id}")
        try:
            return await ticket.outcome()
        finally:
            await end(watching)

    async def _stored(self, job: Job, model: LoadedModel, body: InferBody, outcome: Outcome) -> Payload:
        wishes = {wish.name: wish for wish in body.outputs}
        outputs = []
        binary: dict[str, bool] = {}
        for tensor in outcome.outputs:
            wish = wishes.get(tensor.name)
            answer = classify(tensor, wish.classes) if wish is not None and wish.classes else tensor
            outputs.append(answer)
            wanted = wish.binary if wish is not None else job.binary
            # A result that has no JSON form is better stored as bytes than not at all.
            binary[answer.name] = wanted or not has_json(answer)

        def write() -> tuple[bytes, int | None]:
            return encode(outputs, model=model.name, version=model.revision, id=body.id, binary=binary)

        heavy = sum(tensor.array.nbytes for tensor in outputs if not binary[tensor.name]) >= _OFFLOAD_BYTES
        content, header_bytes = await asyncio.to_thread(write) if heavy else write()
        # A name of its own for each run: a slow twin must neither replace nor delete what was promised.
        return await self._payloads.put(job.id, f"result-{uuid.uuid4().hex}", content, header_bytes)

    async def _decoded(self, raw: bytes, payload: Payload) -> InferBody:
        if payload.header_bytes is None and len(raw) >= _OFFLOAD_BYTES:
            return await asyncio.to_thread(decode, raw, payload.header_bytes, self._limits.codec)
        return decode(raw, payload.header_bytes, self._limits.codec)

    async def _end(self, found: Versioned[Job], decide: Callable[[Job], Change[Job]]) -> bool:
        """Write the job's end; False when it had one already."""
        for _ in range(_SAVE_ATTEMPTS):
            if found.state.final:
                return False
            change = decide(found.state)
            try:
                await self._jobs.save(change, expected=found.version, actor=found.state.owner)
            except VersionConflict:
                newest = await self._jobs.get(found.state.id)
                if newest is None:
                    return False
                found = newest
            else:
                state = change.state
                log.info(
                    "job.ended", job=state.id, status=state.status, model=state.model, lane=state.lane,
                    queue_ms=round(state.queue_ms, 1), compute_ms=round(state.compute_ms, 1),
                    error=state.error.message if state.error else None,
                )  # fmt: skip
                self._changes.notify(f"job {state.id}")
                return True
        raise VersionConflict(f"job {found.state.id} is being changed by many at once")
