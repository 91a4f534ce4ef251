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


def first_line(error: Exception) -> str:
    """The first line of a library's error, short enough for a message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:500]
