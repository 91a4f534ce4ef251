"""ONNX Runtime behind the session protocol."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from subprocess import run
from typing import Any

import numpy as np
import pytest
from modelworks.inference.engine.errors import Cancelled, ModelFailed, ModelRefused
from modelworks.inference.engine.messages import TensorSpec
from modelworks.inference.engine.session import CancelToken
from modelworks.inference.engine.session_onnx import OnnxSession
from modelworks.kit.errors import InvalidInput
from onnx import TensorProto


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def make(data: bytes, **options: Any) -> OnnxSession:
        path = tmp_path / "model"
        path.write_bytes(data)
        return OnnxSession(path, intra_op_threads=1, **options)

    return make


def test_session_tells_its_tensors(load: Any, onnx_models: Any) -> None:
    session = load(onnx_models.affine())

    assert session.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert session.outputs == (TensorSpec("y", "FP32", (-1, 3)),)
    assert session.batchable
    assert session.provider == "CPUExecutionProvider"
    assert session.memory_bytes >= len(onnx_models.affine())


def test_session_runs_unaligned_and_read_only_arrays(load: Any, onnx_models: Any) -> None:
    session = load(onnx_models.affine())
    x = np.frombuffer(b"!" + np.arange(3, dtype=np.float32).tobytes(), "<f4", offset=1).reshape(1, 3)

    (y,) = session.run({"x": x}, ["y"], CancelToken())

    assert y.tolist() == [[1.0, 3.0, 5.0]]


@pytest.mark.parametrize(
    ("kind", "datatype", "values"),
    [
        (TensorProto.BOOL, "BOOL", np.array([[True, False]])),
        (TensorProto.INT8, "INT8", np.array([[-1, 1]], np.int8)),
        (TensorProto.UINT16, "UINT16", np.array([[1, 65535]], np.uint16)),
        (TensorProto.UINT64, "UINT64", np.array([[1, 2**64 - 1]], np.uint64)),
        (TensorProto.FLOAT16, "FP16", np.array([[1.5, -2]], np.float16)),
        (TensorProto.DOUBLE, "FP64", np.array([[1e300, -0.0]])),
        (TensorProto.STRING, "BYTES", np.array([["grün".encode(), b""]], dtype=object)),
    ],
)
def test_every_datatype_goes_through_a_model(
    load: Any, onnx_models: Any, kind: int, datatype: str, values: Any
) -> None:
    session = load(onnx_models.identity(kind))

    (y,) = session.run({"x": values}, ["y"], CancelToken())

    assert session.inputs[0].datatype == datatype
    assert y.tolist() == values.tolist()


def test_bytes_that_are_no_text_are_refused_for_a_string_input(load: Any, onnx_models: Any) -> None:
    session = load(onnx_models.identity(TensorProto.STRING))

    with pytest.raises(InvalidInput, match="UTF-8"):
        session.run({"x": np.array([[b"\xff"]], dtype=object)}, ["y"], CancelToken())


@pytest.mark.parametrize(
    ("shape", "batchable"),
    [
        (["n", 3], True),
        (["anything", 3], True),
        ([2, 3], False),
        (["batch"], True),
        (["batch_size"], True),
        (["tokens"], False),
        ([], False),
    ],
)
def test_rows_are_shared_only_where_the_first_dimension_is_a_batch(
    load: Any, onnx_models: Any, shape: list[Any], batchable: bool
) -> None:
    session = load(onnx_models.identity(TensorProto.FLOAT, shape or None if shape else ["k"]) if shape else scalar())

    assert session.batchable is batchable


def scalar() -> bytes:
    from onnx import helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value[0]], [value[1]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.mark.parametrize("data", [b"", b"not an onnx file", b"\x08\x09" * 100, b"<html></html>"])
def test_file_that_is_no_model_is_refused(load: Any, data: bytes) -> None:
    with pytest.raises(ModelRefused):
        load(data)


def test_truncated_model_is_refused(load: Any, onnx_models: Any) -> None:
    with pytest.raises(ModelRefused):
        load(onnx_models.slow(layers=2, width=64)[:-100])


def test_model_with_data_outside_its_folder_is_refused(load: Any, tmp_path: Path) -> None:
    """A model must not read other files of the worker's disk."""
    from onnx import helper

    secret = tmp_path.parent / "secret.bin"
    secret.write_bytes(b"\x00" * 16)
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [4], b"\x00" * 16, raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("length", "16")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [ends[0]], [ends[1]], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

    with pytest.raises(ModelRefused):
        load(model.SerializeToString())


def test_failing_run_tells_inputs_from_model(load: Any, onnx_models: Any) -> None:
    session = load(onnx_models.lookup(rows=4))

    with pytest.raises((ModelFailed, InvalidInput)):
        session.run({"x": np.array([[99]], np.int64)}, ["y"], CancelToken())
    with pytest.raises(InvalidInput):
        session.run({"x": np.array([[1.0]], np.float32)}, ["y"], CancelToken())


def test_running_model_stops_soon_after_it_is_cancelled(load: Any, onnx_models: Any) -> None:
    session = load(onnx_models.slow())
    x = np.ones((256, 768), np.float32)
    token = CancelToken()
    errors: list[Exception] = []

    def work() -> None:
        try:
            session.run({"x": x}, ["y"], token)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    started = time.monotonic()
    thread.start()
    while thread.is_alive() and time.monotonic() - started < 0.05:
        time.sleep(0.001)
    cancelled = time.monotonic()
    token.cancel()
    thread.join(20)

    assert isinstance(errors[0], Cancelled)
    assert time.monotonic() - cancelled < 2


def test_cancelled_before_it_ran_never_runs(load: Any, onnx_models: Any) -> None:
    token = CancelToken()
    token.cancel()

    with pytest.raises(Cancelled):
        load(onnx_models.affine()).run({"x": np.zeros((1, 3), np.float32)}, ["y"], token)


def test_unknown_provider_falls_back_to_cpu(load: Any, onnx_models: Any) -> None:
    session = load(onnx_models.affine(), providers=("NoSuchExecutionProvider", "CPUExecutionProvider"))

    assert session.provider == "CPUExecutionProvider"


def test_serving_needs_no_onnx_and_starting_needs_no_runtime() -> None:
    """The embedded suite must stay small: onnx never, onnxruntime only once a model is loaded."""
    code = (
        "import sys, modelworks.inference.app; "
        "print([name for name in ('onnx', 'onnxruntime', 'torch', 'tritonclient') if name in sys.modules])"
    )

    told = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert told.stdout.strip() == "[]"


def test_real_model_is_batchable_and_its_rows_do_not_depend_on_company(load: Any, magika_model: bytes) -> None:
    session = load(magika_model)
    rows = np.random.default_rng(0).integers(0, 257, (3, 2048), dtype=np.int32)

    (together,) = session.run({"bytes": rows}, ["target_label"], CancelToken())
    apart = [session.run({"bytes": rows[n : n + 1]}, ["target_label"], CancelToken())[0] for n in range(3)]

    assert session.batchable
    assert session.inputs == (TensorSpec("bytes", "INT32", (-1, 2048)),)
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-5)
