"""Public contracts: what upstream systems may tell us.

The CloudEvents `id` and `source` name a request: the same pair sent twice is
answered once.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from modelworks.events.event import Audited, Event, StrictValue
from modelworks.events.values import BlobRef, RefName, RepositoryName
from pydantic import Field


class TensorValue(StrictValue):
    """A small tensor in the JSON form of the Open Inference Protocol (V2)."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    datatype: Literal[
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64", "BYTES"
    ]
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=8)]
    data: list[Any]
    """Row-major, nested or flat."""


class PredictionRequested(Event):
    """Please predict. Exactly one of `inputs` and `inputs_ref` is present."""

    topic: ClassVar[str] = "ingest.prediction-requested.v1"
    key_field: ClassVar[str] = "model"
    audited: ClassVar[Audited] = Audited.DIGEST

    model: RepositoryName
    ref: RefName | None = None
    inputs: Annotated[list[TensorValue], Field(min_length=1, max_length=64)] | None = None
    """For small tensors: an event's body is at most 256 KiB."""
    inputs_ref: BlobRef | None = None
    """A V2 request body stored beforehand; needed above 256 KiB."""
    lane: Literal["interactive", "standard", "bulk"] = "standard"
    timeout_ms: Annotated[int, Field(ge=1, le=86_400_000)] | None = None
    """Counted from the event's time; work that has not started by then is dropped."""


class OptimizationRequested(Event):
    """Please build a variant of a revision."""

    topic: ClassVar[str] = "ingest.optimization-requested.v1"
    key_field: ClassVar[str] = "repository"

    repository: RepositoryName
    ref: RefName = "main"
    recipe: Annotated[str, Field(min_length=1, max_length=200)] = "int8"
