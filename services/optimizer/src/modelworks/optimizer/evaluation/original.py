"""What a variant is measured against: opened as often as needed, with the threads that are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from modelworks.optimizer.evaluation.latency import Feed
from modelworks.optimizer.evaluation.profile import operator_times
from modelworks.optimizer.evaluation.session import Runnable, Session
from modelworks.optimizer.measurement import OperatorTime
from modelworks.optimizer.onnx_file import external_files, model_bytes, require_onnx


class Original(Protocol):
    """A source as the measuring sees it."""

    @property
    def size_bytes(self) -> int:
        """On disk, with the files beside it that hold its tensors."""

    @property
    def beside(self) -> list[Path]:
        """The files that hold its large tensors."""

    def open(self, *, threads: int) -> Runnable:
        """Ready to run.

        Raises:
            WorkError: it does not run.
        """

    def operator_times(self, feed: Feed, *, threads: int, folder: Path) -> tuple[OperatorTime, ...]:
        """Where a run's time goes; empty where that cannot be told in the variant's terms."""


class OnnxOriginal:
    """An ONNX file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def size_bytes(self) -> int:
        return model_bytes(self._path)

    @property
    def beside(self) -> list[Path]:
        return external_files(self._path)

    def open(self, *, threads: int) -> Session:
        return Session(self._path, threads=threads)

    def operator_times(self, feed: Feed, *, threads: int, folder: Path) -> tuple[OperatorTime, ...]:
        return operator_times(self._path, feed, threads=threads, folder=folder)


def open_original(path: Path, *, options: Any) -> Original:
    """The ONNX model at `path`.

    Raises:
        WorkError: `not-onnx`, with what is wrong.
    """
    require_onnx(path)
    return OnnxOriginal(path)
