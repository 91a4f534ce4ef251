"""int8: ONNX Runtime's dynamic quantization, with the recipe that measuring found best.

Weights per channel. Signed weights where the CPU has exact int8 dot products;
on x86 without VNNI the signed kernel adds two products in 16 bits and
saturates, so there the signed candidate keeps 7 bits (`reduce_range`). Which of
signed and unsigned is faster depends on the operators (ConvInteger with signed
weights takes several times as long), so with `weight_type: auto` both are made
and the probe decides on this CPU. Where a model convolves, a candidate that
leaves convolutions alone is made too: ONNX Runtime's ConvInteger is seldom faster than Conv.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from modelworks.optimizer.measurement import Machine
from modelworks.optimizer.onnx_file import load_graph, model_bytes
from modelworks.optimizer.passes import Candidate, WorkError, refusal
from pydantic import BaseModel, ConfigDict, Field

# Protocol buffers hold at most 2 GiB; above this the weights go to a file beside the model.
_ONE_FILE_BYTES_MAX = 1_900_000_000

# What onnxruntime.quantization.registry treats in its integer mode and that takes weights.
_QUANTIZABLE = ("Attention", "Conv", "EmbedLayerNormalization", "Gather", "LSTM", "MatMul")


class Options(BaseModel):
    """Options of the pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_type: Literal["auto", "int8", "uint8"] = "auto"
    """`auto` makes both and keeps the one that does better on this CPU."""
    per_channel: bool = True
    reduce_range: bool | None = None
    """7-bit weights. None: where signed weights would saturate."""
    leave: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    """Kinds of operator to leave in floating point, for example `Conv` or `Gather`."""
    leave_nodes: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    """Names of nodes to leave in floating point."""


def build(source: Path, into: Path, *, options: Options, machine: Machine) -> Iterator[Candidate]:
    """Candidates of the model at `source`, as files in `into`.

    Raises:
        WorkError: the model has nothing to quantize, or the quantizer refuses it.
    """
    operators = Counter(node.op_type for node in load_graph(source).node)
    # The quantizer splits Gemm into MatMul and Add before it begins.
    present = {"MatMul" if kind == "Gemm" else kind for kind in operators}
    kinds = [kind for kind in _QUANTIZABLE if kind in present and kind not in options.leave]
    if not kinds:
        raise WorkError(
            "nothing-to-quantize",
            f"{source.name} has no operator that int8 quantization covers outside `leave` "
            f"(it has: {', '.join(sorted(operators)) or 'none'})",
        )
    types = ("int8", "uint8") if options.weight_type == "auto" else (options.weight_type,)
    for weight_type in types:
        yield _quantize(source, into, weight_type, kinds, options=options, machine=machine, suffix="")
    rest = [kind for kind in kinds if kind != "Conv"]
    if options.weight_type == "auto" and "Conv" in kinds and rest:
        yield _quantize(source, into, "int8", rest, options=options, machine=machine, suffix="-conv-left")


def _quantize(
    source: Path, into: Path, weight_type: str, kinds: list[str], *, options: Options, machine: Machine, suffix: str
) -> Candidate:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    reduce_range = options.reduce_range
    if reduce_range is None:
        reduce_range = weight_type == "int8" and machine.saturates
    name = f"{weight_type}{'-7bit' if reduce_range else ''}{suffix}"
    path = into / name / source.name
    path.parent.mkdir(parents=True)
    try:
        quantize_dynamic(
            str(source),
            str(path),
            op_types_to_quantize=kinds,
            per_channel=options.per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8 if weight_type == "int8" else QuantType.QUInt8,
            nodes_to_exclude=list(options.leave_nodes),
            use_external_data_format=model_bytes(source) > _ONE_FILE_BYTES_MAX,
        )
    except Exception as error:  # the quantizer raises whatever its inner libraries raise
        raise refusal("pass-failed", f"the int8 quantizer refused {source.name}", error) from error
    facts: dict[str, str | int | float | bool] = {
        "weight_type": weight_type,
        "per_channel": options.per_channel,
        "reduce_range": reduce_range,
        "operators": ", ".join(kinds),
        "operators_quantized": _count_quantized(path),
    }
    return Candidate(name=name, path=path, facts=facts)


def _count_quantized(path: Path) -> int:
    wanted = {"MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM", "QAttention", "QEmbedLayerNormalization"}
    return sum(node.op_type in wanted for node in load_graph(path).node)
