"""Deployments and jobs: frozen states, and transitions that return the new state with what happened."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from modelworks.events import (
    BlobRef,
    DeploymentRemoved,
    DeploymentRequested,
    Event,
    Failure,
    ModelLoaded,
    ModelLoadFailed,
    ModelUnloaded,
    PredictionCompleted,
    PredictionQueued,
    PredictionQueuedBulk,
    PredictionQueuedInteractive,
    PredictionQueuedStandard,
)
from modelworks.kit.errors import Conflict, InvalidInput, ModelworksError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Lane = Literal["interactive", "standard", "bulk"]
LANES: tuple[Lane, ...] = ("interactive", "standard", "bulk")
JobStatus = Literal["queued", "running", "succeeded", "failed", "expired", "cancelled"]
FINAL: frozenset[str] = frozenset({"succeeded", "failed", "expired", "cancelled"})
UnloadReason = Literal["removed", "replaced", "requested", "memory"]

State = TypeVar("State")


class Value(BaseModel):
    """A frozen value that is stored as JSON."""

    model_config = ConfigDict(frozen=True, extra="ignore")


@dataclass(frozen=True, slots=True)
class Change(Generic[State]):
    """A new state and its events."""

    state: State
    events: tuple[Event, ...] = ()


# --- deployments ------------------------------------------------------------------------------------------


class Artifact(Value):
    """The file that is loaded."""

    path: str
    sha256: str
    size_bytes: int


class Batching(Value):
    """What the model's card says of batches; None: the worker's settings."""

    max_batch: Annotated[int, Field(ge=1, le=4096)] | None = None
    max_delay_ms: Annotated[float, Field(ge=0, le=1000)] | None = None


class Loaded(Value):
    """What one worker made of a deployment."""

    state: Literal["loading", "ready", "failed", "unloaded"]
    revision: str
    """The revision it was told to load."""
    serving: str | None = None
    """The revision that answers now: an earlier one while a load runs or after it failed."""
    sha256: str | None = None
    """Of the file that was loaded."""
    provider: str | None = None
    load_ms: float | None = None
    memory_bytes: int | None = None
    error: Failure | None = None
    at: datetime


class Deployment(Value):
    """A model that is served under its name."""

    model: str
    ref: str
    """Followed: the deployment moves with it."""
    revision: str
    artifact: Artifact
    batching: Batching = Batching()
    pinned: bool = False
    """Never unloaded to make room."""
    generation: int = 1
    """Grows with each request, so that asking again tries a failed load again."""
    removed: bool = False
    error: Failure | None = None
    """Why the newest revision of the ref cannot be served. The revision above stays."""
    requested_by: str
    requested_at: datetime
    updated_at: datetime
    workers: Mapping[str, Loaded] = Field(default_factory=dict)

    def seen_by(self, alive: frozenset[str]) -> Deployment:
        """Without what workers told that are no more."""
        return self.model_copy(update={"workers": {name: at for name, at in self.workers.items() if name in alive}})

    def status(self) -> Literal["loading", "ready", "failed"]:
        """Ready when a worker serves the wanted revision; failed when none does and all that tried failed."""
        states = [loaded.state for loaded in self.workers.values() if loaded.revision == self.revision]
        if self.error is not None:
            return "failed"
        if "ready" in states or "unloaded" in states:
            return "ready"
        return "failed" if states and all(state == "failed" for state in states) else "loading"


@dataclass(frozen=True, slots=True)
class Source:
    """A revision and the file in it that is the model."""

    ref: str
    revision: str
    artifact: Artifact
    batching: Batching


def request_deployment(
    before: Deployment | None, *, model: str, source: Source, pinned: bool, by: str, at: datetime
) -> Change[Deployment]:
    """Serve a model. Asking for what is served already, and works, changes nothing."""
    if before is not None and not before.removed:
        same = (before.ref, before.revision, before.pinned) == (source.ref, source.revision, pinned)
        if same and before.status() != "failed":
            return Change(before)
    after = Deployment(
        model=model, ref=source.ref, revision=source.revision, artifact=source.artifact, batching=source.batching,
        pinned=pinned, generation=before.generation + 1 if before else 1, requested_by=by, requested_at=at,
        updated_at=at, workers=before.workers if before and not before.removed else {},
    )  # fmt: skip
    return Change(after, (DeploymentRequested(model=model, ref=after.ref, revision=after.revision),))


def follow(before: Deployment, source: Source, *, at: datetime) -> Change[Deployment]:
    """The followed ref moved."""
    if before.removed or (before.revision == source.revision and before.error is None):
        return Change(before)
    after = before.model_copy(
        update={
            "revision": source.revision, "artifact": source.artifact, "batching": source.batching, "error": None,
            "generation": before.generation + 1, "updated_at": at,
        }
    )  # fmt: skip
    return Change(after, (DeploymentRequested(model=after.model, ref=after.ref, revision=after.revision),))


def cannot_follow(
    before: Deployment, revision: str, error: Failure, *, worker: str, at: datetime
) -> Change[Deployment]:
    """The ref moved to a revision that cannot be served: the one before stays, and it is said so."""
    if before.removed or before.error == error:
        return Change(before)
    after = before.model_copy(update={"error": error, "updated_at": at})
    failed = ModelLoadFailed(model=before.model, revision=revision, worker=worker, error=error)
    return Change(after, (failed,))


def remove_deployment(before: Deployment, *, at: datetime) -> Change[Deployment]:
    """Stop serving. Removing twice changes nothing."""
    if before.removed:
        return Change(before)
    after = before.model_copy(update={"removed": True, "updated_at": at, "generation": before.generation + 1})
    return Change(after, (DeploymentRemoved(model=before.model),))


def report_loaded(
    before: Deployment, worker: str, loaded: Loaded, *, gone: frozenset[str] = frozenset()
) -> Change[Deployment]:
    """A worker tells what it made of the deployment; `gone` are workers that are no more."""
    known = before.workers.get(worker)
    workers = {name: state for name, state in before.workers.items() if name not in gone} | {worker: loaded}
    after = before.model_copy(update={"workers": workers})
    return Change(after, tuple(_load_events(before, worker, known, loaded)))


def _load_events(before: Deployment, worker: str, known: Loaded | None, loaded: Loaded) -> list[Event]:
    events: list[Event] = []
    told = known is not None and (known.state, known.revision, known.error) == (
        loaded.state, loaded.revision, loaded.error
    )  # fmt: skip
    if loaded.state == "ready":
        # Told again after a restart: the model was loaded anew, whatever the document remembered.
        events.append(
            ModelLoaded(
                model=before.model, revision=loaded.revision, sha256=loaded.sha256 or "", worker=worker,
                provider=loaded.provider or "", load_ms=loaded.load_ms or 0.0,
            )
        )  # fmt: skip
        if known is not None and known.serving not in (None, loaded.revision):
            events.append(_unloaded(before.model, str(known.serving), worker, "replaced"))
    elif loaded.state == "failed" and loaded.error is not None and not told:
        events.append(
            ModelLoadFailed(model=before.model, revision=loaded.revision, worker=worker, error=loaded.error)
        )  # fmt: skip
    return events


def report_unloaded(
    before: Deployment, worker: str, revision: str, reason: UnloadReason, *, at: datetime
) -> Change[Deployment]:
    """A worker gave a model up: it was removed, or its memory was needed."""
    workers = dict(before.workers)
    if reason == "memory":
        workers[worker] = Loaded(state="unloaded", revision=revision, at=at)
    else:
        workers.pop(worker, None)
    return Change(before.model_copy(update={"workers": workers}), (_unloaded(before.model, revision, worker, reason),))


def _unloaded(model: str, revision: str, worker: str, reason: UnloadReason) -> ModelUnloaded:
    return ModelUnloaded(model=model, revision=revision, worker=worker, reason=reason)


# --- jobs -------------------------------------------------------------------------------------------------


class Payload(Value):
    """A V2 body in the object store."""

    key: str
    sha256: str
    size_bytes: int
    header_bytes: int | None = None
    """Length of its JSON header; None when all of it is JSON."""


class Job(Value):
    """A queued prediction."""

    id: str
    model: str
    ref: str | None = None
    revision: str | None = None
    """Of the model that ran it."""
    lane: Lane
    owner: str
    request: str | None = None
    """The id of the event that asked, if one did."""
    status: JobStatus = "queued"
    inputs: Payload | None = None
    """None when the request could not be read."""
    binary: bool = False
    """Outputs are stored as raw bytes where the request does not say: the form in which it came."""
    output: Payload | None = None
    deadline: datetime | None = None
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    attempts: int = 0
    """Starts. One that never ended is the mark of a job that killed its worker."""
    worker: str | None = None
    error: Failure | None = None
    batch_rows: int = 0
    queue_ms: float = 0.0
    compute_ms: float = 0.0

    @property
    def final(self) -> bool:
        """It has ended; nothing changes it any more."""
        return self.status in FINAL

    @property
    def result_uri(self) -> str:
        """Where its output is read."""
        return f"/api/v1/jobs/{self.id}/result"


QUEUES: Mapping[Lane, type[PredictionQueued]] = {
    "interactive": PredictionQueuedInteractive,
    "standard": PredictionQueuedStandard,
    "bulk": PredictionQueuedBulk,
}
"""The topic of each lane, as its event."""


def job_id(*parts: str) -> str:
    """The id of a job that a caller named: the same parts give the same job."""
    return hashlib.sha256("\n".join(("inference-job", *parts)).encode()).hexdigest()[:32]


def enqueue(job: Job) -> Change[Job]:
    """A new job in its lane."""
    assert job.inputs is not None
    event = QUEUES[job.lane](
        job=job.id, model=job.model, ref=job.ref, principal=job.owner, deadline=job.deadline,
        inputs=BlobRef(
            uri=f"/api/v1/jobs/{job.id}/inputs", sha256=job.inputs.sha256, size_bytes=job.inputs.size_bytes
        ),
    )  # fmt: skip
    return Change(job, (event,))


def start(job: Job, *, worker: str, at: datetime) -> Change[Job]:
    """A worker takes the job up.

    Raises:
        Conflict: it has ended.
    """
    if job.final:
        raise Conflict(f"job {job.id} has ended: it is {job.status}")
    return Change(
        job.model_copy(
            update={
                "status": "running", "worker": worker, "attempts": job.attempts + 1,
                "started_at": job.started_at or at,
            }
        )
    )  # fmt: skip


def succeed(
    job: Job, output: Payload, *, revision: str, batch_rows: int, queue_ms: float, compute_ms: float, at: datetime
) -> Change[Job]:
    """The job has its output."""
    return _end(
        job, "succeeded", at=at, output=output, revision=revision, batch_rows=batch_rows, queue_ms=queue_ms,
        compute_ms=compute_ms,
    )  # fmt: skip


def fail(job: Job, error: Failure, *, at: datetime) -> Change[Job]:
    """The job cannot be done."""
    return _end(job, "failed", at=at, error=error)


def expire(job: Job, *, at: datetime) -> Change[Job]:
    """The deadline passed before it ran."""
    error = Failure(code="deadline-exceeded", message="the deadline passed before the job could run")
    return _end(job, "expired", at=at, error=error)


def cancel(job: Job, *, at: datetime) -> Change[Job]:
    """The owner gave it up. Cancelling twice changes nothing.

    Raises:
        Conflict: it has ended another way.
    """
    if job.status == "cancelled":
        return Change(job)
    return _end(job, "cancelled", at=at)


def _end(job: Job, status: JobStatus, *, at: datetime, **update: Any) -> Change[Job]:
    if job.final:
        raise Conflict(f"job {job.id} has ended already: it is {job.status}")
    after = job.model_copy(update={"status": status, "completed_at": at, **update})
    return Change(after, (completed(after),))


def completed(job: Job) -> PredictionCompleted:
    """The result event of an ended job."""
    assert job.status != "queued"
    assert job.status != "running"
    result = None
    if job.output is not None:
        result = BlobRef(uri=job.result_uri, sha256=job.output.sha256, size_bytes=job.output.size_bytes)
    return PredictionCompleted(
        job=job.id, request=job.request, model=job.model, revision=job.revision, mouth="queued", lane=job.lane,
        principal=job.owner, status=job.status, error=job.error, result=result, batch_rows=job.batch_rows,
        input_bytes=job.inputs.size_bytes if job.inputs else 0,
        output_bytes=job.output.size_bytes if job.output else 0, queue_ms=job.queue_ms, compute_ms=job.compute_ms,
    )  # fmt: skip


def failure(error: ModelworksError) -> Failure:
    """An error as an event carries it."""
    return Failure(code=error.code, message=error.message[:2000])


# --- the model's file ------------------------------------------------------------------------------------


def choose_artifact(files: Mapping[str, tuple[str, int]], wishes: Mapping[str, str]) -> Artifact:
    """The file of a revision that is the model: what the repository names, or the only `*.onnx`.

    Args:
        files: path to sha256 and size.
        wishes: what the repository says of itself (`card.py`).

    Raises:
        InvalidInput: it names a file that is not there, or there is none or more than one.
    """
    named = wishes.get("model")
    if named:
        if named not in files:
            raise InvalidInput(f"the repository says 'model: {named}', but the revision has no such file")
        return Artifact(path=named, sha256=files[named][0], size_bytes=files[named][1])
    found = sorted(path for path in files if path.lower().endswith(".onnx"))
    if len(found) != 1:
        what = f"{len(found)} files end in .onnx ({', '.join(found[:5])})" if found else "no file ends in .onnx"
        raise InvalidInput(f"{what}: name the model in the card, as 'modelworks: {{model: PATH}}'")
    return Artifact(path=found[0], sha256=files[found[0]][0], size_bytes=files[found[0]][1])


def choose_batching(wishes: Mapping[str, str]) -> Batching:
    """The batching that the repository asks for.

    Raises:
        InvalidInput: a value is not a number within bounds.
    """
    given = {name: wishes[name] for name in ("max_batch", "max_delay_ms") if name in wishes}
    try:
        return Batching.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise InvalidInput(f"the repository says a wrong {first['loc'][0]!r}: {first['msg']}") from error
