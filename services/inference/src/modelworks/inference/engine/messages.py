"""What server and engine say to each other. Arrays are shared, never written to after they were handed over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from opentelemetry.trace import SpanContext

Array = npt.NDArray[Any]
"""Row-major. BYTES is an object array of `bytes`; BF16 is the bit pattern as uint16, since numpy has no such type."""

Lane = Literal["interactive", "standard", "bulk"]
LANES: tuple[Lane, ...] = ("interactive", "standard", "bulk")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output that a model declares."""

    name: str
    datatype: str
    """V2 name, for example `FP32`."""
    shape: tuple[int, ...]
    """-1 is an open dimension."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array with its V2 datatype."""

    name: str
    datatype: str
    array: Array


@dataclass(frozen=True, slots=True)
class Work:
    """One request, checked against its model."""

    id: str
    inputs: Mapping[str, Array]
    rows: int
    """Length of the batch dimension; 1 for a model without one."""
    outputs: tuple[str, ...]
    """Wanted outputs, in the order they are answered."""
    lane: Lane
    mouth: Literal["online", "queued"]
    principal: str
    size_bytes: int
    """Bytes of all inputs."""
    deadline: float | None = None
    """Monotonic seconds; work that has not started by then is dropped. None: no deadline."""
    trace: SpanContext | None = None
    """Span of the request; the batch's span links to it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the engine made of a piece of work."""

    outputs: tuple[Tensor, ...]
    batch_rows: int
    """Rows of the batch it ran in."""
    queue_seconds: float
    compute_seconds: float
    """Of the whole batch."""


def size_bytes(array: Array) -> int:
    """Bytes the array's values take on the wire (BYTES: with their length prefixes)."""
    if array.dtype == np.object_:
        return sum(4 + len(value) for value in array.ravel().tolist())
    return int(array.nbytes)
