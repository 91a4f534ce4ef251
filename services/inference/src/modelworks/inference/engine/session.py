"""What every runtime looks like to the scheduler."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from modelworks.inference.engine.messages import Array, TensorSpec


class CancelToken:
    """Asks a running batch to stop, from any thread; the session says how by `attach`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None
        self.cancelled = False

    def attach(self, stop: Callable[[], None]) -> None:
        """`stop` is called once cancelled; at once when that has happened already."""
        with self._lock:
            self._stop = stop
            cancelled = self.cancelled
        if cancelled:
            stop()

    def cancel(self) -> None:
        """Ask to stop. Twice is once."""
        with self._lock:
            if self.cancelled:
                return
            self.cancelled = True
            stop = self._stop
        if stop is not None:
            stop()


class Session(Protocol):
    """A loaded model. `run` is called from several threads at once and must not hold the GIL while it computes."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batchable: bool
    """The first dimension of every input and output is open and stands for independent rows."""
    provider: str
    """What executes it, for example `CPUExecutionProvider`."""
    platform: str
    """V2 platform name, for example `onnxruntime_onnx`."""
    memory_bytes: int
    """What loading it took, measured; at least the size of its file."""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str], token: CancelToken) -> list[Array]:
        """The named outputs, in order.

        Raises:
            Cancelled: the token was cancelled before it ended.
            InvalidInput: the model does not take these inputs.
            ModelFailed: the run failed.
        """

    def close(self) -> None:
        """Give the memory back. No run is under way, and none follows."""


SessionLoader = Callable[[Path], Session]
"""Makes a session of a model file; blocks for as long as that takes, so it is called in a thread.

Raises (the loader):
    ModelRefused: the file is not a model that this runtime can run.
"""
