"""ONNX Runtime behind the session protocol.

The library is imported at the first load, so that a process without models
stays small and starts fast. `onnx` itself is never imported.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from modelworks.inference.engine.errors import Cancelled, ModelFailed, ModelRefused
from modelworks.inference.engine.messages import Array, TensorSpec
from modelworks.inference.engine.session import CancelToken, Session, SessionLoader
from modelworks.kit.errors import InvalidInput
from modelworks.kit.logging import get_logger

log = get_logger("engine")

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8", "tensor(uint16)": "UINT16", "tensor(uint32)": "UINT32", "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8", "tensor(int16)": "INT16", "tensor(int32)": "INT32", "tensor(int64)": "INT64",
    "tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}  # fmt: skip

_PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")

_BATCH_NAMES = frozenset({"n", "b", "bs"})
"""Symbols that make a lone open dimension a batch; longer ones contain "batch"."""


def onnx_loader(*, intra_op_threads: int, providers: Sequence[str] = ()) -> SessionLoader:
    """A loader with these session options.

    Args:
        providers: execution providers in order of preference; empty: CUDA where present, else CPU.
    """

    def load(path: Path) -> Session:
        return OnnxSession(path, intra_op_threads=intra_op_threads, providers=providers)

    return load


class OnnxSession:
    """One `InferenceSession`."""

    platform = "onnxruntime_onnx"

    def __init__(self, path: Path, *, intra_op_threads: int, providers: Sequence[str] = ()) -> None:
        """Raises ModelRefused: the file is not an ONNX model, or uses what this server does not offer."""
        self._session, self.memory_bytes = _open(path, intra_op_threads, providers)
        self.provider: str = self._session.get_providers()[0]
        self.inputs = tuple(_spec(value, "input") for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value, "output") for value in self._session.get_outputs())
        self.batchable = _batchable(self._session.get_inputs(), self._session.get_outputs())
        self._text_inputs = frozenset(spec.name for spec in self.inputs if spec.datatype == "BYTES")
        self._text_outputs = frozenset(spec.name for spec in self.outputs if spec.datatype == "BYTES")

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str], token: CancelToken) -> list[Array]:
        """See Session."""
        import onnxruntime

        feed = {name: _text(array, name) if name in self._text_inputs else array for name, array in inputs.items()}
        options = onnxruntime.RunOptions()
        token.attach(lambda: setattr(options, "terminate", True))
        if token.cancelled:
            raise Cancelled("cancelled before it ran")
        try:
            arrays = self._session.run(list(outputs), feed, options)
        except Exception as error:
            raise _mapped(error, token) from error
        return [
            _bytes(array) if name in self._text_outputs else np.asarray(array)
            for name, array in zip(outputs, arrays, strict=True)
        ]

    def close(self) -> None:
        """See Session."""
        self._session = None


_import_lock = threading.Lock()


def _open(path: Path, intra_op_threads: int, providers: Sequence[str]) -> tuple[Any, int]:
    with _import_lock:
        try:
            import onnxruntime
        except ImportError as error:
            raise ModelRefused(
                "onnxruntime is not installed: install modelworks with the extra 'cpu' or 'gpu'"
            ) from error
    available = onnxruntime.get_available_providers()
    wanted = [name for name in (providers or _PREFERRED) if name in available] or ["CPUExecutionProvider"]
    missing = [name for name in providers if name not in available]
    if missing:
        log.warning("engine.provider-missing", wanted=missing, available=available)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Spinning threads burn the cores that other models need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for names in ([*wanted], ["CPUExecutionProvider"]):
        resident = _resident_bytes()
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=names)
            return session, max(path.stat().st_size, _resident_bytes() - resident)
        except Exception as error:
            if names == ["CPUExecutionProvider"]:
                raise ModelRefused(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error
            log.warning("engine.provider-failed", providers=names, error=_first_line(error))
    raise AssertionError("the loop returns or raises")


def _resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _spec(value: Any, what: str) -> TensorSpec:
    datatype = _DATATYPES.get(value.type)
    if datatype is None:
        raise ModelRefused(
            f"{what} {value.name!r} is of type {value.type}: this server takes tensors of {', '.join(_DATATYPES.values())}"
        )
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in value.shape)
    return TensorSpec(value.name, datatype, shape)


def _batchable(inputs: Sequence[Any], outputs: Sequence[Any]) -> bool:
    """Whether rows of different requests may share a run: the rule that Triton's auto-complete uses, and one more.

    A lone open dimension, as in `[tokens]`, is more likely a sequence than a batch; its name must say so.
    """
    values = [*inputs, *outputs]
    if not inputs or any(not value.shape or isinstance(value.shape[0], int) for value in values):
        return False
    return all(len(value.shape) > 1 or _names_a_batch(value.shape[0]) for value in inputs)


def _names_a_batch(symbol: str | None) -> bool:
    name = (symbol or "").lower()
    return name in _BATCH_NAMES or "batch" in name


def _text(array: Array, name: str) -> Array:
    """ONNX strings are text: bytes that are not UTF-8 have no place in them."""
    try:
        values = [value.decode() for value in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {name!r}: an element is not UTF-8, which this model's strings must be") from error
    text = np.empty(len(values), dtype=np.object_)
    text[:] = values
    return text.reshape(array.shape)


def _bytes(array: Any) -> Array:
    texts = np.asarray(array, dtype=np.object_)
    values = np.empty(texts.size, dtype=np.object_)
    values[:] = [str(text).encode() for text in texts.ravel().tolist()]
    return values.reshape(texts.shape)


def _mapped(error: Exception, token: CancelToken) -> Exception:
    if token.cancelled:
        return Cancelled("cancelled while it ran")
    kind = type(error).__name__
    if kind == "InvalidArgument" or isinstance(error, (ValueError, TypeError)):
        return InvalidInput(f"the model does not take these inputs: {_first_line(error)}")
    return ModelFailed(f"the model failed on these inputs: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
