"""Every event of the suite, one frozen class each, and the CloudEvents envelope they travel in.

This package is the vocabulary that services share; it holds no logic. The
schemas under `contracts/events` say the same in a language-neutral form, and a
test holds the two equal.
"""

from modelworks.events.audit import CheckpointSigned
from modelworks.events.auth import AccessDenied, ClientCreated, ClientDeleted, KeyRotated, TokenIssued, TokenRefused
from modelworks.events.envelope import CLOUDEVENTS_VERSION, Envelope, EnvelopeError
from modelworks.events.event import Audited, Event, StrictValue
from modelworks.events.inference import (
    DeploymentRemoved,
    DeploymentRequested,
    ModelLoaded,
    ModelLoadFailed,
    ModelUnloaded,
    PredictionCompleted,
    PredictionQueued,
    PredictionQueuedBulk,
    PredictionQueuedInteractive,
    PredictionQueuedStandard,
)
from modelworks.events.ingest import OptimizationRequested, PredictionRequested, TensorValue
from modelworks.events.optimizer import JobAccepted, JobCancelled, JobFailed, VariantBuilt
from modelworks.events.registry import (
    FileChange,
    Lineage,
    RefMoved,
    RepositoryCreated,
    RevisionCommitted,
    UploadRefused,
)
from modelworks.events.values import BlobRef, Failure

ALL: tuple[type[Event], ...] = (
    RepositoryCreated,
    RevisionCommitted,
    RefMoved,
    UploadRefused,
    JobAccepted,
    VariantBuilt,
    JobFailed,
    JobCancelled,
    DeploymentRequested,
    DeploymentRemoved,
    ModelLoaded,
    ModelLoadFailed,
    ModelUnloaded,
    PredictionQueuedInteractive,
    PredictionQueuedStandard,
    PredictionQueuedBulk,
    PredictionCompleted,
    ClientCreated,
    ClientDeleted,
    TokenIssued,
    TokenRefused,
    AccessDenied,
    KeyRotated,
    CheckpointSigned,
    PredictionRequested,
    OptimizationRequested,
)
"""All event classes. Order carries no meaning."""

BY_TOPIC: dict[str, type[Event]] = {event.topic: event for event in ALL}
"""Topic name to its class; a topic carries exactly one class."""

__all__ = [
    "ALL",
    "BY_TOPIC",
    "CLOUDEVENTS_VERSION",
    "AccessDenied",
    "Audited",
    "BlobRef",
    "CheckpointSigned",
    "ClientCreated",
    "ClientDeleted",
    "DeploymentRemoved",
    "DeploymentRequested",
    "Envelope",
    "EnvelopeError",
    "Event",
    "Failure",
    "FileChange",
    "JobAccepted",
    "JobCancelled",
    "JobFailed",
    "KeyRotated",
    "Lineage",
    "ModelLoadFailed",
    "ModelLoaded",
    "ModelUnloaded",
    "OptimizationRequested",
    "PredictionCompleted",
    "PredictionQueued",
    "PredictionQueuedBulk",
    "PredictionQueuedInteractive",
    "PredictionQueuedStandard",
    "PredictionRequested",
    "RefMoved",
    "RepositoryCreated",
    "RevisionCommitted",
    "StrictValue",
    "TensorValue",
    "TokenIssued",
    "TokenRefused",
    "UploadRefused",
    "VariantBuilt",
]
