"""One batch: its members, its run in a thread, and its halves when it fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from modelworks.inference.engine.errors import ModelFailed, RowsMixed
from modelworks.inference.engine.messages import Array, Outcome, Tensor, Work
from modelworks.inference.engine.models import LoadedModel
from modelworks.inference.engine.session import CancelToken
from modelworks.kit.errors import ModelworksError
from opentelemetry.trace import Link, NonRecordingSpan, Span, StatusCode, Tracer, set_span_in_context

Key = tuple[object, ...]
"""Requests with equal keys may share a run."""


def key_of(model: LoadedModel, work: Work) -> Key:
    """Model digest, name and the shape class: all dimensions but the batch's. Types follow from the model."""
    if not model.batched:
        return (id(model), *(array.shape for array in work.inputs.values()))
    return (id(model), *(array.shape[1:] for array in work.inputs.values()))


@dataclass(eq=False, slots=True)
class Entry:
    """A request on its way through the scheduler."""

    work: Work
    model: LoadedModel
    key: Key
    future: asyncio.Future[Outcome]
    enqueued: float
    """Monotonic seconds."""
    estimate: float
    """Expected seconds of service."""
    batch: Batch | None = None
    timer: asyncio.TimerHandle | None = None
    """Ends the wait at the deadline."""
    left: bool = False
    """It has its answer; whatever still runs for it is dropped."""

    def expired(self, now: float) -> bool:
        """Its deadline has passed."""
        return self.work.deadline is not None and self.work.deadline <= now


@dataclass(eq=False, slots=True)
class Batch:
    """Requests that run together."""

    key: Key
    model: LoadedModel
    members: list[Entry]
    token: CancelToken = field(default_factory=CancelToken)
    started: float = 0.0
    span: Span | None = None

    @property
    def rows(self) -> int:
        """Of all members."""
        return sum(member.work.rows for member in self.members)

    def begin(self, tracer: Tracer | None) -> None:
        """The batch gets a slot. Its span goes on with the head's trace and links to every member's."""
        self.started = time.monotonic()
        for member in self.members:
            member.batch = self
        traces = [member.work.trace for member in self.members]
        contexts = [context for context in traces if context is not None and context.trace_flags.sampled]
        if tracer is None or not contexts:
            return
        head = set_span_in_context(NonRecordingSpan(contexts[0]))
        waited = max(self.started - member.enqueued for member in self.members)
        self.span = tracer.start_span(
            "batch", context=head, links=[Link(context) for context in contexts],
            attributes={
                "modelworks.model": self.model.name, "modelworks.revision": self.model.revision,
                "modelworks.batch.requests": len(self.members), "modelworks.batch.rows": self.rows,
                "modelworks.queue_ms_max": waited * 1000,
            },
        )  # fmt: skip

    def end(self, ran: Ran) -> None:
        """The run is over."""
        if self.span is None:
            return
        self.span.set_attribute("modelworks.compute_ms", ran.infer_seconds * 1000)
        if ran.error is not None:
            self.span.set_status(StatusCode.ERROR, ran.error.code)
        self.span.end()


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a run."""

    outputs: tuple[tuple[Tensor, ...], ...] = ()
    """By member, in order."""
    error: ModelworksError | None = None
    prepare_seconds: float = 0.0
    infer_seconds: float = 0.0
    split_seconds: float = 0.0


def execute(batch: Batch) -> Ran:
    """Run a batch; called in a thread. Never raises."""
    begun = time.perf_counter()
    try:
        names = _union(batch)
        inputs = _joined(batch)
        prepared = time.perf_counter()
        arrays = _run(batch, inputs, names)
        inferred = time.perf_counter()
        outputs = _split(batch, dict(zip(names, arrays, strict=True)))
    except ModelworksError as error:
        return Ran(error=error, infer_seconds=time.perf_counter() - begun)
    except MemoryError:
        failure = ModelFailed(f"not enough memory for a batch of {batch.rows} rows: send fewer rows at once")
        return Ran(error=failure, infer_seconds=time.perf_counter() - begun)
    except Exception as error:
        failure = ModelFailed(f"the run failed: {type(error).__name__}: {error}"[:500])
        return Ran(error=failure, infer_seconds=time.perf_counter() - begun)
    return Ran(outputs, None, prepared - begun, inferred - prepared, time.perf_counter() - inferred)


def _run(batch: Batch, inputs: Mapping[str, Array], names: list[str]) -> list[Array]:
    """A run of at most `max_batch` rows at a time: a request of many rows must not take memory without bound."""
    model, step = batch.model, batch.model.max_batch
    if not model.batched or batch.rows <= step:
        return model.session.run(inputs, names, batch.token)
    parts: list[list[Array]] = []
    for start in range(0, batch.rows, step):
        some = {name: array[start : start + step] for name, array in inputs.items()}
        arrays = model.session.run(some, names, batch.token)
        rows = min(step, batch.rows - start)
        if any(array.ndim == 0 or array.shape[0] != rows for array in arrays):
            # Its outputs have no row for each input's row, so only a run of the whole means what the caller meant.
            return model.session.run(inputs, names, batch.token)
        parts.append(arrays)
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def halves(batch: Batch) -> list[Batch]:
    """The members in two batches, to find which of them made it fail."""
    middle = len(batch.members) // 2
    parts = (batch.members[:middle], batch.members[middle:])
    return [Batch(batch.key, batch.model, list(part)) for part in parts if part]


def _union(batch: Batch) -> list[str]:
    """Outputs that any member wants, in the model's order."""
    wanted = {name for member in batch.members for name in member.work.outputs}
    return [spec.name for spec in batch.model.session.outputs if spec.name in wanted]


def _joined(batch: Batch) -> Mapping[str, Array]:
    if len(batch.members) == 1:
        return batch.members[0].work.inputs
    first = batch.members[0].work.inputs
    return {name: np.concatenate([member.work.inputs[name] for member in batch.members]) for name in first}


def _split(batch: Batch, arrays: Mapping[str, Array]) -> tuple[tuple[Tensor, ...], ...]:
    datatypes = {spec.name: spec.datatype for spec in batch.model.session.outputs}
    alone = len(batch.members) == 1
    rows = batch.rows
    if not alone:
        for name, array in arrays.items():
            if array.ndim == 0 or array.shape[0] != rows:
                raise RowsMixed(
                    f"output {name!r} has shape {list(array.shape)} for {rows} rows, so its rows cannot be told apart: "
                    "deploy the model with 'max_batch: 1' in its card"
                )
    parts: list[tuple[Tensor, ...]] = []
    at = 0
    for member in batch.members:
        end = at + member.work.rows
        parts.append(
            tuple(
                Tensor(name, datatypes[name], arrays[name] if alone else arrays[name][at:end])
                for name in member.work.outputs
            )
        )
        at = end
    return tuple(parts)
