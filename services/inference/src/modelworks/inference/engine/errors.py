"""Errors of the engine that a caller needs to tell apart."""

from __future__ import annotations

from modelworks.kit.errors import Conflict, ModelworksError, NotFound, Unavailable


class Cancelled(Conflict):
    """The request was cancelled before it had a result."""

    code = "cancelled"


class ModelFailed(ModelworksError):
    """The model's run failed on these inputs; trying the same again gives the same."""

    code = "model-failed"


class RowsMixed(ModelFailed):
    """An output has another first dimension than the batch, so rows of different requests cannot share a run."""


class ModelRefused(ModelworksError):
    """The file is not a model that this worker can load; loading it again gives the same."""

    code = "model-refused"
    status = 400


class ModelUnknown(NotFound):
    """No deployment under this name."""

    code = "model-unknown"


class ModelNotReady(Unavailable):
    """Deployed, and not loaded here yet."""

    code = "model-not-ready"

    def __init__(self, message: str, /, *, failed: bool = False, retry_after_seconds: int = 1) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.failed = failed
        """Loading it failed: waiting may not help."""
        self.headers["Retry-After"] = str(retry_after_seconds)


class Unsupported(ModelworksError):
    """Part of a protocol that this server does not offer."""

    code = "unsupported"
    status = 501
