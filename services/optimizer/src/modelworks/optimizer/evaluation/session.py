"""An ONNX model that can be run, with the signature of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from modelworks.optimizer.onnx_file import load_graph
from modelworks.optimizer.passes import WorkError, refusal

Array = np.ndarray[Any, np.dtype[Any]]

_DTYPES: dict[str, str] = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(int8)": "int8",
    "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64", "tensor(bool)": "bool",
    "tensor(string)": "object",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input as the model declares it."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]
    """A number is fixed, a name or None is open; equal names are equal sizes."""

    def __str__(self) -> str:
        sizes = ", ".join("-1" if not isinstance(size, int) else str(size) for size in self.shape)
        return f"{self.dtype.name} [{sizes}]"


class Runnable(Protocol):
    """A loaded model, whatever runs it."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]

    @property
    def batchable(self) -> bool:
        """Whether every input has an open first dimension."""

    @property
    def bounds(self) -> Mapping[str, int]:
        """For inputs that index a table: the table's length."""

    def run(self, feed: Mapping[str, Array]) -> list[Any]:
        """All outputs, in the order of `outputs`.

        Raises:
            WorkError: `not-runnable`, with the runtime's own reason.
        """


class Session:
    """A loaded ONNX model."""

    def __init__(self, path: Path, *, threads: int, profile_prefix: Path | None = None) -> None:
        """Load.

        Raises:
            WorkError: `not-runnable`, with the runtime's own reason.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning workers would take the processor from the other model of the pair.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_prefix)
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises its own pybind classes, without a common base
            raise refusal("not-runnable", f"{path.name} cannot be loaded", error) from error
        self.path = path
        self.inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(node.name for node in self._session.get_outputs())

    def run(self, feed: Mapping[str, Array]) -> list[Any]:
        """All outputs, in the order of `outputs`.

        Raises:
            WorkError: `not-runnable`, with the runtime's own reason.
        """
        try:
            return list(self._session.run(None, dict(feed)))
        except Exception as error:
            raise refusal("not-runnable", f"{self.path.name} fails when run", error) from error

    def end_profiling(self) -> Path:
        """Stop profiling; the file with the events."""
        return Path(self._session.end_profiling())

    @property
    def batchable(self) -> bool:
        """Whether every input has an open first dimension."""
        return bool(self.inputs) and all(spec.shape and not isinstance(spec.shape[0], int) for spec in self.inputs)

    @property
    def bounds(self) -> Mapping[str, int]:
        """For inputs that index a constant table (through casts at most): the table's length."""
        graph = load_graph(self.path)
        lengths = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
        origin = {spec.name: spec.name for spec in self.inputs}
        for node in graph.node:
            if node.op_type in ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape") and node.input[0] in origin:
                origin[node.output[0]] = origin[node.input[0]]
        bounds: dict[str, int] = {}
        for node in graph.node:
            if node.op_type == "Gather" and node.input[0] in lengths and node.input[1] in origin:
                name = origin[node.input[1]]
                bounds[name] = min(bounds.get(name, lengths[node.input[0]]), lengths[node.input[0]])
        return bounds


def _spec(node: Any) -> TensorSpec:
    if node.type not in _DTYPES:
        raise WorkError("not-runnable", f"input {node.name!r} is a {node.type}; only tensors can be evaluated")
    shape = tuple(size if not isinstance(size, int) or size > 0 else None for size in node.shape)
    return TensorSpec(node.name, np.dtype(_DTYPES[node.type]), shape)
