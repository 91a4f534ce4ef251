"""What inference announces, and the queue its workers read.

A deployment serves a model under its repository's name. Queued predictions
wait in one topic a lane; the completed event carries sizes and times, never
tensors.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from modelworks.events.event import Audited, Event
from modelworks.events.values import BlobRef, Failure, Identifier, RefName, RepositoryName, Revision, Sha256
from pydantic import Field


class DeploymentRequested(Event):
    topic: ClassVar[str] = "inference.deployment-requested.v1"
    key_field: ClassVar[str] = "model"

    model: RepositoryName
    ref: RefName
    """What the deployment follows: it reloads when this ref moves."""
    revision: Revision


class DeploymentRemoved(Event):
    topic: ClassVar[str] = "inference.deployment-removed.v1"
    key_field: ClassVar[str] = "model"

    model: RepositoryName


class ModelLoaded(Event):
    topic: ClassVar[str] = "inference.model-loaded.v1"
    key_field: ClassVar[str] = "model"

    model: RepositoryName
    revision: Revision
    sha256: Sha256
    """Digest of the model file, verified before the session was made."""
    worker: Identifier
    provider: str
    """Execution provider that runs it, for example `CPUExecutionProvider`."""
    load_ms: Annotated[float, Field(ge=0)]


class ModelLoadFailed(Event):
    topic: ClassVar[str] = "inference.model-load-failed.v1"
    key_field: ClassVar[str] = "model"

    model: RepositoryName
    revision: Revision
    worker: Identifier
    error: Failure


class ModelUnloaded(Event):
    topic: ClassVar[str] = "inference.model-unloaded.v1"
    key_field: ClassVar[str] = "model"

    model: RepositoryName
    revision: Revision
    worker: Identifier
    reason: Literal["removed", "replaced", "requested", "memory"]


class PredictionQueued(Event):
    """A prediction job waiting in a lane. The job's document holds everything else."""

    key_field: ClassVar[str] = "job"
    audited: ClassVar[Audited] = Audited.NO

    job: Identifier
    model: RepositoryName
    ref: RefName | None = None
    """None: the deployed revision."""
    principal: Identifier
    """Who asked; fairness and quotas count by it."""
    inputs: BlobRef
    """The V2 request body (JSON header and binary tensors) in the object store."""
    deadline: datetime | None = None
    """Work that has not started by then is dropped without computing."""


class PredictionQueuedInteractive(PredictionQueued):
    topic: ClassVar[str] = "inference.prediction-queued-interactive.v1"


class PredictionQueuedStandard(PredictionQueued):
    topic: ClassVar[str] = "inference.prediction-queued-standard.v1"


class PredictionQueuedBulk(PredictionQueued):
    topic: ClassVar[str] = "inference.prediction-queued-bulk.v1"


class PredictionCompleted(Event):
    """A prediction ended, well or not: the result event of upstream systems."""

    topic: ClassVar[str] = "inference.prediction-completed.v1"
    key_field: ClassVar[str] = "job"

    job: Identifier
    """Job id, or the request id of an online prediction."""
    request: Identifier | None = None
    """The id of the `ingest.prediction-requested.v1` event that this answers, if one asked."""
    model: RepositoryName
    revision: Revision | None = None
    """Absent when no revision was resolved."""
    mouth: Literal["online", "queued"]
    lane: Literal["interactive", "standard", "bulk"] | None = None
    principal: Identifier
    status: Literal["succeeded", "failed", "expired", "cancelled"]
    error: Failure | None = None
    result: BlobRef | None = None
    """Where a queued job's output can be read. Absent for online predictions, which were answered directly."""
    batch_rows: Annotated[int, Field(ge=0)]
    input_bytes: Annotated[int, Field(ge=0)]
    output_bytes: Annotated[int, Field(ge=0)]
    queue_ms: Annotated[float, Field(ge=0)]
    compute_ms: Annotated[float, Field(ge=0)]
