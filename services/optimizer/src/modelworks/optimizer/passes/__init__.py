"""The passes: pure functions from a model file to candidate files, run in a process of their own.

Adding one is a module with `Options` (a pydantic model) and `build` (see
`Build`), and a line here. A pass module imports its heavy libraries inside its
functions: the service reads `Options` and must stay light.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from modelworks.optimizer.measurement import Machine


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that a pass made."""

    name: str
    path: Path
    facts: dict[str, str | int | float | bool] = field(default_factory=dict)
    """What was done, for the report."""


class Build(Protocol):
    """What a pass module offers as `build`."""

    def __call__(self, source: Path, into: Path, *, options: Any, machine: Machine) -> Iterator[Candidate]:
        """Make candidates of `source` in the folder `into`, most promising first; the source is not changed.

        Raises:
            WorkError: the model cannot be treated; the message says what about it.
        """


@dataclass(frozen=True, slots=True)
class PassSpec:
    """Where a pass lives and how its stage is called in a job's progress."""

    module: str
    stage: str


PASSES: dict[str, PassSpec] = {
    "int8": PassSpec(module="modelworks.optimizer.passes.int8", stage="quantize"),
}


class WorkError(Exception):
    """A worker's refusal: the job fails with this code and message, and trying again would not help."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


# How the libraries say that they got no memory: Python, protobuf, C++, ONNX Runtime's arena, OpenBLAS.
_NO_MEMORY = (
    "MemoryError", "Arena alloc failed", "Failed to serialize proto", "bad_alloc", "Failed to allocate memory",
    "Cannot allocate memory", "Memory allocation still failed",
)  # fmt: skip


def is_out_of_memory(text: str) -> bool:
    """Whether a library's last words mean that it got no memory."""
    return any(sign in text for sign in _NO_MEMORY)


def refusal(code: str, what: str, error: Exception) -> WorkError | MemoryError:
    """A library's error as ours: `what: its first line`; a want of memory is not mistaken for a fault of the model."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError) or is_out_of_memory(text):
        return MemoryError(text)
    return WorkError(code, f"{what}: {text.splitlines()[0][:500]}")
