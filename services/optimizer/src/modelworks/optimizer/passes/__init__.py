"""The passes: pure functions from a model file to candidate files, run in a process of their own.

Adding one is a module with `Options` (a pydantic model) and `build` (see
`Build`), and a line here. A pass module imports its heavy libraries inside its
functions: the service reads `Options` and must stay light.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
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
class Takes:
    """The kind of source that a pass works on."""

    suffix: str
    """How a target's path ends."""
    favourite: str
    """Where a revision holds this path, it is the only target."""
    module: str
    """Offers `open_original(path, *, options) -> Original`: how the source is run, for the comparison."""
    beside_suffixes: tuple[str, ...] = ()
    """Files in a target's folder that belong to it, by how their names end."""
    below_names: tuple[str, ...] = ()
    """Files in a target's folder and the folders below it that belong to it, by their names."""
    refused: tuple[str, ...] = ()
    """Ends of files that hold such models, too, in a form that is never read."""
    refused_because: str = ""

    def variant_path(self, target: str) -> str:
        """Where the variant of a target goes. A target of another kind than the variant is not in the variant's tree."""
        return str(PurePosixPath(target).with_suffix(".onnx"))


ONNX = Takes(
    suffix=".onnx",
    favourite="model.onnx",
    module="modelworks.optimizer.evaluation.original",
    beside_suffixes=(".data", ".onnx_data", ".weights", ".weight", ".bin"),
)
ENCODER = Takes(
    suffix=".safetensors",
    favourite="model.safetensors",
    module="modelworks.optimizer.evaluation.encoder",
    below_names=("config.json", "modules.json"),
    refused=(".bin", ".pt", ".pth", ".ckpt", ".pkl"),
    refused_because="it is a pickle, which runs code when it is read: publish model.safetensors",
)


@dataclass(frozen=True, slots=True)
class PassSpec:
    """Where a pass lives, what it works on, and how its stage is called in a job's progress."""

    module: str
    stage: str
    takes: Takes = ONNX
    needs: tuple[str, ...] = ()
    """Modules beyond those that the optimizer always has."""
    extra: str = ""
    """The extra of the distribution that brings them."""


PASSES: dict[str, PassSpec] = {
    "int8": PassSpec(module="modelworks.optimizer.passes.int8", stage="quantize"),
    "onnx-export": PassSpec(
        module="modelworks.optimizer.passes.onnx_export",
        stage="export",
        takes=ENCODER,
        needs=("torch", "transformers", "onnxscript"),
        extra="torch",
    ),
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
