"""The int8 pass alone: which candidates it makes on which processor, and what their weights hold."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from modelworks.optimizer.machine import read_machine
from modelworks.optimizer.passes import PASSES, Candidate, WorkError
from modelworks.optimizer.passes.int8 import Options, build
from onnx import numpy_helper

PLAIN = read_machine("flags : avx2 fma", architecture="x86_64")
VNNI = read_machine("flags : avx2 avx512_vnni", architecture="x86_64")


def candidates(tmp_path: Path, model: bytes, machine: Any, **options: Any) -> dict[str, Candidate]:
    (tmp_path / "model.onnx").write_bytes(model)
    made = build(tmp_path / "model.onnx", tmp_path / "made", options=Options(**options), machine=machine)
    return {candidate.name: candidate for candidate in made}


def weights(candidate: Candidate) -> list[Any]:
    graph = onnx.load(str(candidate.path)).graph
    arrays = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name.endswith("_quantized")]
    assert arrays
    return arrays


def test_cpu_without_vnni_gets_seven_bits_for_signed_weights(tmp_path: Path, models: ModuleType) -> None:
    found = candidates(tmp_path, models.classifier(), PLAIN)

    assert list(found) == ["int8-7bit", "uint8"]
    assert all(array.dtype == np.int8 and np.abs(array).max() <= 64 for array in weights(found["int8-7bit"]))
    assert all(array.dtype == np.uint8 for array in weights(found["uint8"]))


def test_cpu_with_vnni_gets_all_eight(tmp_path: Path, models: ModuleType) -> None:
    found = candidates(tmp_path, models.classifier(), VNNI)

    assert list(found) == ["int8", "uint8"]
    assert any(np.abs(array.astype(int)).max() > 64 for array in weights(found["int8"]))


def test_option_overrules_the_processor(tmp_path: Path, models: ModuleType) -> None:
    assert list(candidates(tmp_path, models.classifier(), VNNI, weight_type="int8", reduce_range=True)) == ["int8-7bit"]


def test_weights_are_scaled_by_channel_unless_told_otherwise(tmp_path: Path, models: ModuleType) -> None:
    def scales(**options: Any) -> set[tuple[int, ...]]:
        folder = tmp_path / str(len(options))
        folder.mkdir()
        [candidate] = candidates(folder, models.classifier(), VNNI, weight_type="uint8", **options).values()
        graph = onnx.load(str(candidate.path)).graph
        return {tuple(t.dims) for t in graph.initializer if t.name in ("w1_scale", "w2_scale")}

    assert scales() == {(256,), (8,)}
    assert scales(per_channel=False) == {()}


def test_what_is_to_be_left_alone_is(tmp_path: Path, models: ModuleType) -> None:
    found = candidates(tmp_path, models.classifier(), VNNI, weight_type="uint8", leave_nodes=["second"])

    graph = onnx.load(str(found["uint8"].path)).graph
    assert [node.op_type for node in graph.node].count("MatMul") == 1
    assert found["uint8"].facts["operators_quantized"] == 1


def test_nothing_left_to_quantize_is_refused(tmp_path: Path, models: ModuleType) -> None:
    with pytest.raises(WorkError, match="outside `leave`") as caught:
        candidates(tmp_path, models.classifier(), VNNI, leave=["MatMul"])

    assert caught.value.code == "nothing-to-quantize"


def test_every_pass_offers_options_and_build() -> None:
    from importlib import import_module

    for spec in PASSES.values():
        module = import_module(spec.module)
        assert module.Options().model_dump() is not None
        assert callable(module.build)
