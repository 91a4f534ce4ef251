"""onnx-export: a transformers encoder as one ONNX file that answers tokens with a sentence embedding.

Pooling and norm are inside the graph, batch and tokens stay open. The exporter
may fix an axis or write another opset than it was asked for and still end well,
so axes and opset are read back from the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from modelworks.optimizer.measurement import Machine
from modelworks.optimizer.passes import Candidate, WorkError, refusal
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import onnx

# Protocol buffers hold at most 2 GiB, and the variant is one file.
_ONE_FILE_BYTES_MAX = 1_900_000_000


class Options(BaseModel):
    """Options of the pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pooling: Literal["mean", "cls"] | None = None
    """None: as the repository declares in sentence-transformers' files, else the mean."""
    normalize: bool | None = None
    """To length 1. None: as the repository declares, else yes."""
    opset: Annotated[int, Field(ge=18, le=23)] = 20
    """Below 18 the exporter's converter fails and leaves the file as it is."""


def build(source: Path, into: Path, *, options: Options, machine: Machine) -> Iterator[Candidate]:
    """The exported model, as a file in `into`.

    Raises:
        WorkError: the source is no encoder, or the exporter refuses it.
    """
    import torch
    from modelworks.optimizer.evaluation.encoder import INPUTS, OUTPUT, load_encoder

    if source.stat().st_size > _ONE_FILE_BYTES_MAX:
        raise WorkError(
            "too-large", f"{source.name} has {source.stat().st_size} bytes, one ONNX file holds {_ONE_FILE_BYTES_MAX}"
        )
    encoder = load_encoder(source, pooling=options.pooling, normalize=options.normalize)
    path = into / "float32" / source.with_suffix(".onnx").name
    path.parent.mkdir(parents=True)
    # Two rows of different length: an example of size 1 invites the exporter to fix that axis.
    ids = torch.full((2, 8), 5, dtype=torch.int64)
    mask = torch.ones((2, 8), dtype=torch.int64)
    mask[1, 5:] = 0
    open_axes = {0: "batch", 1: "tokens"}
    try:
        program = torch.onnx.export(
            encoder,
            (ids, mask),
            dynamo=True,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=dict.fromkeys(INPUTS, open_axes),
            opset_version=options.opset,
            external_data=False,
            verbose=False,
        )
        program.save(str(path), external_data=False)
    except Exception as error:  # the exporter raises whatever its inner libraries raise
        raise refusal("pass-failed", f"the exporter refused {source.name}", error) from error
    opset = _read_back(path)
    facts: dict[str, str | int | float | bool] = {
        "opset": opset, "pooling": encoder.head.pooling, "normalized": encoder.head.normalize,
        "head_declared": encoder.head.declared, "model_type": str(encoder.encoder.config.model_type),
    }  # fmt: skip
    yield Candidate(name="float32", path=path, facts=facts)


def _read_back(path: Path) -> int:
    """The opset of the file.

    Raises:
        WorkError: it is not what was asked for: inputs, output, or an axis that is not open.
    """
    import onnx
    from modelworks.optimizer.evaluation.encoder import INPUTS, OUTPUT
    from modelworks.optimizer.onnx_file import external_files, require_onnx

    require_onnx(path)
    model = onnx.load(str(path), load_external_data=False)
    inputs, outputs = [value.name for value in model.graph.input], [value.name for value in model.graph.output]
    if tuple(inputs) != INPUTS or outputs != [OUTPUT]:
        raise WorkError("pass-failed", f"the exporter wrote inputs {inputs} and outputs {outputs}")
    for value, axes in [*((value, 2) for value in model.graph.input), (model.graph.output[0], 1)]:
        fixed = [size for size in _sizes(value)[:axes] if isinstance(size, int)]
        if fixed:
            raise WorkError("pass-failed", f"the exporter fixed an axis of {value.name}: {_sizes(value)}")
    if external_files(path):
        raise WorkError("pass-failed", "the exporter wrote tensors beside the file")
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _sizes(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in value.type.tensor_type.shape.dim]
