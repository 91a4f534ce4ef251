"""The online mouth: one request, one answer, and an event behind it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from modelworks.events import Failure, PredictionCompleted
from modelworks.inference.domain import failure
from modelworks.inference.engine.errors import Cancelled
from modelworks.inference.engine.messages import Lane, Outcome, Work, size_bytes
from modelworks.inference.engine.models import LoadedModel
from modelworks.inference.engine.scheduler import Scheduler, Ticket
from modelworks.inference.engine.v2 import InferBody
from modelworks.inference.ports import Completions
from modelworks.kit.errors import DeadlineExceeded, ModelworksError
from modelworks.kit.tasks import end
from opentelemetry.trace import get_current_span

_PATIENCE_SECONDS = 0.02
"""Most answers come sooner; only then is it worth looking whether the caller is still there."""

Gone = Callable[[], Awaitable[None]]
"""Returns when the caller has left."""


@dataclass(frozen=True, slots=True)
class Ask:
    """How a request is to be treated."""

    principal: str
    lane: Lane = "interactive"
    deadline: float | None = None
    """Monotonic seconds."""


class Online:
    """Predicts while the caller waits."""

    def __init__(self, scheduler: Scheduler, completions: Completions, *, rows_max: int) -> None:
        self._scheduler = scheduler
        self._completions = completions
        self._rows_max = rows_max

    def check_room(self) -> None:
        """Raises Unavailable when the prediction could not be told of."""
        self._completions.check_room()

    async def predict(self, model: LoadedModel, body: InferBody, ask: Ask, gone: Gone) -> Outcome:
        """Run a request in the next batch.

        Raises:
            InvalidInput, TooLarge: it does not fit the model.
            Cancelled: the caller left.
            DeadlineExceeded, RateLimited, ModelFailed, Unavailable: as Scheduler.
        """
        arrays, rows, outputs, input_bytes = model.checked(body, rows_max=self._rows_max)
        span = get_current_span().get_span_context()
        work = Work(
            id=uuid.uuid4().hex, inputs=arrays, rows=rows, outputs=outputs, lane=ask.lane, mouth="online",
            principal=ask.principal, size_bytes=input_bytes, deadline=ask.deadline,
            trace=span if span.is_valid else None,
        )  # fmt: skip
        started = time.monotonic()
        try:
            outcome = await self._wait(self._scheduler.submit(model, work), gone)
        except ModelworksError as error:
            self._tell(model, work, started, None, error)
            raise
        self._tell(model, work, started, outcome, None)
        return outcome

    async def _wait(self, ticket: Ticket, gone: Gone) -> Outcome:
        watching: asyncio.Task[None] | None = None

        async def watch() -> None:
            await gone()
            ticket.cancel()

        def look() -> None:
            nonlocal watching
            watching = asyncio.create_task(watch(), name="watch caller")

        timer = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, look)
        try:
            return await ticket.outcome()
        finally:
            timer.cancel()
            if watching is not None:
                await end(watching)

    def _tell(
        self, model: LoadedModel, work: Work, started: float, outcome: Outcome | None, error: ModelworksError | None
    ) -> None:
        status, reason = _status(error)
        self._completions.record(
            PredictionCompleted.model_construct(
                job=work.id, request=None, model=model.name, revision=model.revision, mouth="online", lane=work.lane,
                principal=work.principal, status=status, error=reason, result=None,
                batch_rows=outcome.batch_rows if outcome else 0, input_bytes=work.size_bytes,
                output_bytes=sum(size_bytes(tensor.array) for tensor in outcome.outputs) if outcome else 0,
                queue_ms=outcome.queue_seconds * 1000 if outcome else (time.monotonic() - started) * 1000,
                compute_ms=outcome.compute_seconds * 1000 if outcome else 0.0,
            )
        )  # fmt: skip


def _status(
    error: ModelworksError | None,
) -> tuple[Literal["succeeded", "failed", "expired", "cancelled"], Failure | None]:
    if error is None:
        return "succeeded", None
    if isinstance(error, Cancelled):
        return "cancelled", failure(error)
    return ("expired" if isinstance(error, DeadlineExceeded) else "failed"), failure(error)
