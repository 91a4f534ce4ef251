"""Small ONNX models, made with onnx.helper."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(7)


def classifier(*, batch: Any = "n", width: int = 64, classes: int = 8, softmax: bool = True) -> bytes:
    """`x` float [batch, width] -> `probabilities` [batch, classes] through one hidden layer."""
    weights = [
        _tensor("w1", RNG.standard_normal((width, 256)) / 8),
        _tensor("w2", RNG.standard_normal((256, classes)) / 4),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["logits"], name="second"),
    ]
    name = "logits"
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1))
        name = "probabilities"
    return _model(nodes, weights, {"x": ("FLOAT", [batch, width])}, {name: ("FLOAT", [batch, classes])})


def embedder(*, vocabulary: int = 500, width: int = 64) -> bytes:
    """`input_ids`, `attention_mask` int64 [n, tokens] -> `embedding` [n, width]: a table, averaged and projected."""
    weights = [
        _tensor("table", RNG.standard_normal((vocabulary, width))),
        _tensor("projection", RNG.standard_normal((width, width)) / 8),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"], axis=0),
        helper.make_node("ReduceMean", ["tokens", "one"], ["mean"], keepdims=0),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["mask", "one"], ["scale"], keepdims=1),
        helper.make_node("MatMul", ["mean", "projection"], ["projected"]),
        helper.make_node("Mul", ["projected", "scale"], ["embedding"]),
    ]
    inputs = {"input_ids": ("INT64", ["n", "t"]), "attention_mask": ("INT64", ["n", "t"])}
    return _model(nodes, weights, inputs, {"embedding": ("FLOAT", ["n", width])})


def convolver() -> bytes:
    """`image` float [n, 3, 16, 16] -> `features` [n, 8, 16, 16]."""
    weights = [_tensor("kernel", RNG.standard_normal((8, 3, 3, 3)))]
    nodes = [helper.make_node("Conv", ["image", "kernel"], ["features"], pads=[1, 1, 1, 1], kernel_shape=[3, 3])]
    return _model(nodes, weights, {"image": ("FLOAT", ["n", 3, 16, 16])}, {"features": ("FLOAT", ["n", 8, 16, 16])})


def not_a_number() -> bytes:
    """`x` [n, 4] -> `y` [n, 4] = log(x) times a matrix: NaN for negative inputs."""
    weights = [_tensor("w", np.eye(4))]
    nodes = [helper.make_node("Log", ["x"], ["l"]), helper.make_node("MatMul", ["l", "w"], ["y"])]
    return _model(nodes, weights, {"x": ("FLOAT", ["n", 4])}, {"y": ("FLOAT", ["n", 4])})


def adder() -> bytes:
    """`x` [n, 4] -> `y`: nothing that int8 covers."""
    return _model(
        [helper.make_node("Add", ["x", "x"], ["y"])], [], {"x": ("FLOAT", ["n", 4])}, {"y": ("FLOAT", ["n", 4])}
    )


def unknown_operator() -> bytes:
    """A well-formed file that no runtime here can run."""
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")
    graph = helper.make_graph(
        [node], "g", [_value("x", "FLOAT", ["n", 4])], [_value("y", "FLOAT", ["n", 4])], [_tensor("w", np.eye(4))]
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)], ir_version=8
    )
    return model.SerializeToString()


def _tensor(name: str, values: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=np.float32), name)


def _value(name: str, dtype: str, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, getattr(TensorProto, dtype), shape)


def _model(nodes: list[Any], weights: list[Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [_value(name, *spec) for name, spec in inputs.items()],
        [_value(name, *spec) for name, spec in outputs.items()],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()
