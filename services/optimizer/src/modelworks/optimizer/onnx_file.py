"""An ONNX file as bytes on disk: whether it is one, how large it is, and what lies beside it. Worker process only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelworks.optimizer.passes import WorkError, refusal

if TYPE_CHECKING:
    import onnx


def require_onnx(path: Path) -> None:
    """Check that the file is a well-formed ONNX model.

    Raises:
        WorkError: `not-onnx`, with what is wrong.
    """
    import onnx

    try:
        external_files(path)
        onnx.checker.check_model(str(path))
    except WorkError:
        raise
    except Exception as error:  # protobuf, the checker and the file system each raise their own
        raise refusal("not-onnx", f"{path.name} is not a valid ONNX model", error) from error


def model_bytes(path: Path) -> int:
    """Size of a model on disk with its external data."""
    return path.stat().st_size + sum(file.stat().st_size for file in external_files(path))


def external_files(path: Path) -> list[Path]:
    """The files beside a model that hold its large tensors.

    Raises:
        WorkError: a tensor points outside the model's folder, or to a file that is not there.
    """
    folder = path.parent.resolve()
    found: set[Path] = set()
    for tensor in load_graph(path).initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                found.add((folder / entry.value).resolve())
    for file in found:
        if not file.is_relative_to(folder):
            raise WorkError("not-onnx", f"{path.name} keeps tensors outside its folder: {file.name}")
        if not file.is_file():
            raise WorkError("not-onnx", f"{path.name} keeps tensors in {file.name}, which the revision does not hold")
    return sorted(found)


def load_graph(path: Path) -> onnx.GraphProto:
    """The graph of a model file, without the tensors that lie beside it."""
    import onnx

    return onnx.load(str(path), load_external_data=False).graph
