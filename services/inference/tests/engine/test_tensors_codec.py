"""The V2 codec: what goes in comes out, and what is hostile is refused before anything is allocated."""

from __future__ import annotations

import gzip
import json
import math
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from modelworks.inference.engine.messages import Tensor, TensorSpec
from modelworks.inference.engine.tensors import BINARY_ONLY, DTYPES, from_json, from_raw, has_json, to_json, to_raw
from modelworks.inference.engine.v2 import (
    Limits,
    classify,
    decode,
    decode_answer,
    deflate,
    encode,
    header_length,
    inflate,
)
from modelworks.kit.errors import InvalidInput, TooLarge

LIMITS = Limits(inflated_bytes_max=100_000, header_bytes_max=5_000, tensors_max=8, element_bytes_max=1_000)
NUMERIC = [name for name in DTYPES if name not in ("BYTES", "BOOL", "BF16")]


def request(inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


def one(datatype: str, shape: Any, data: Any) -> bytes:
    return request([{"name": "x", "datatype": datatype, "shape": shape, "data": data}])


def binary(entries: list[tuple[str, str, list[int], bytes]], **more: Any) -> tuple[bytes, int]:
    head = request(
        [
            {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
            for name, kind, shape, raw in entries
        ],
        **more,
    )
    return head + b"".join(raw for *_, raw in entries), len(head)


# --- JSON ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "expected"),
    [
        ("BOOL", [3], [True, False, True], [True, False, True]),
        ("INT8", [2], [-128, 127], [-128, 127]),
        ("UINT8", [2, 1], [[0], [255]], [[0], [255]]),
        ("INT64", [2], [-(2**63), 2**63 - 1], [-(2**63), 2**63 - 1]),
        ("UINT64", [2], [0, 2**64 - 1], [0, 2**64 - 1]),
        ("FP32", [2, 2], [1, 2.5, -3, 4], [[1, 2.5], [-3, 4]]),
        ("FP64", [1], [1e300], [1e300]),
        ("FP32", [], [7], 7.0),
        ("FP32", [0, 3], [], np.zeros((0, 3)).tolist()),
        ("INT32", [2, 2, 1], [[[1], [2]], [[3], [4]]], [[[1], [2]], [[3], [4]]]),
    ],
)
def test_json_values_are_read_flat_and_nested(datatype: str, shape: list[int], data: Any, expected: Any) -> None:
    tensor = decode(one(datatype, shape, data), None, LIMITS).inputs[0]

    assert tensor.array.dtype == DTYPES[datatype]
    assert list(tensor.array.shape) == shape
    assert tensor.array.tolist() == expected


def test_json_strings_become_bytes() -> None:
    tensor = decode(one("BYTES", [2], ["grün", ""]), None, LIMITS).inputs[0]

    assert tensor.array.tolist() == ["grün".encode(), b""]


def test_non_finite_numbers_travel_as_strings_both_ways() -> None:
    tensor = decode(one("FP32", [4], ["NaN", "Infinity", "-Infinity", 1]), None, LIMITS).inputs[0]

    written = to_json(tensor.array, "FP32", name="x")

    assert math.isnan(tensor.array[0])
    assert tensor.array[1:].tolist() == [math.inf, -math.inf, 1.0]
    assert written == ["NaN", "Infinity", "-Infinity", 1.0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"[]", "must be a JSON object"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"inputs":' + b"[" * 50_000, "nested too deeply"),
        (request([]), "at least one tensor"),
        (b"{}", "at least one tensor"),
        (request("x"), "at least one tensor"),
        (request([1]), "must be an object"),
        (request([{"datatype": "FP32", "shape": [1], "data": [1]}]), "needs a 'name'"),
        (request([{"name": "", "datatype": "FP32", "shape": [1], "data": [1]}]), "needs a 'name'"),
        (request([{"name": "x", "datatype": "FP32", "shape": [1]}]), "neither 'data'"),
        (one("FP33", [1], [1]), "'FP33' is unknown"),
        (request([{"name": "x", "datatype": ["FP32"], "shape": [1], "data": [1]}]), "is unknown"),
        (one("FP16", [1], [1]), "no JSON form"),
        (one("BF16", [1], [1]), "no JSON form"),
        (one("FP32", None, [1]), "shape must be a list"),
        (one("FP32", [-1], [1]), "-1 of its shape"),
        (one("FP32", [1.0], [1]), "1.0 of its shape"),
        (one("FP32", [True], [1]), "True of its shape"),
        (one("FP32", ["1"], [1]), "'1' of its shape"),
        (one("FP32", [1] * 33, [1]), "at most 32"),
        (one("FP32", [2**62, 2**62], [1]), "too many elements"),
        (one("FP32", [0, 2**62], []), "too many elements"),
        (one("FP32", [3], [1, 2]), "2 values of data"),
        (one("FP32", [2, 2], [[1, 2], [3]]), "neither flat nor nested"),
        (one("FP32", [2, 2], [[1, 2], 3]), "neither flat nor nested"),
        (one("FP32", [4], [[1, 2], [3, 4]]), "nested deeper"),
        (one("FP32", [2, 2], [[[1], [2]], [[3], [4]]]), "nested deeper"),
        (one("FP32", [3, 2], [[1, 2], [3, 4]]), "has 2 rows"),
        (one("FP32", [1], "1"), "data must be a list"),
        (one("FP32", [1], {"0": 1}), "data must be a list"),
        (one("FP32", [1], ["1"]), "'1' is not a number"),
        (one("FP32", [1], [None]), "None is not a number"),
        (one("FP32", [1], [True]), "True is not a number"),
        (one("FP32", [1], [{}]), "{} is not a number"),
        (one("FP32", [1], ["nan"]), "'nan' is not a number"),
        (one("FP32", [1], [1e300]), "beyond what FP32 can hold"),
        (one("FP32", [2], ["Infinity", 1e39]), "beyond what FP32 can hold"),
        (b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1],"data":[1e999]}]}', "beyond what FP64 can hold"),
        (b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1],"data":[NaN]}]}', 'string "NaN"'),
        (b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1],"data":[-Infinity]}]}', 'string "-Infinity"'),
        (one("FP64", [1], [10**400]), "does not fit FP64"),
        (one("INT32", [1], [1.0]), "1.0 is not an integer"),
        (one("INT32", [1], [True]), "True is not an integer"),
        (one("INT32", [1], ["1" * 500]), "is not an integer"),
        (one("INT8", [1], [128]), "does not fit INT8"),
        (one("UINT8", [1], [-1]), "does not fit UINT8"),
        (one("UINT64", [1], [2**64]), "does not fit UINT64"),
        (one("BOOL", [1], [2]), "not a BOOL"),
        (one("BOOL", [1], ["true"]), "not a BOOL"),
        (one("BYTES", [1], [1]), "1 is not a string"),
        (one("BYTES", [1], ["\ud800"]), "lone surrogate"),
        (request([{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}] * 2), "given twice"),
        (request([{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}], outputs=[1]), "each of 'outputs'"),
        (request([{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}], outputs={}), "must be a list"),
        (
            request([{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}], outputs=[{"name": "y"}] * 2),
            "asked for twice",
        ),
        (
            request([{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}], parameters=[]),
            "parameters must be an object",
        ),
        (
            request(
                [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}], parameters={"binary_data_output": 1}
            ),
            "give true or false",
        ),
        (request([{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}], id=7), "'id' must be a string"),
    ],
)
def test_malformed_json_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(says)):
        decode(body, None, LIMITS)


def test_too_many_tensors_and_too_large_elements_are_refused() -> None:
    entry = {"datatype": "FP32", "shape": [1], "data": [1]}
    with pytest.raises(TooLarge):
        decode(request([{"name": f"x{n}", **entry} for n in range(9)]), None, LIMITS)
    with pytest.raises(TooLarge):
        decode(one("BYTES", [1], ["x" * 1_001]), None, LIMITS)


# --- binary -------------------------------------------------------------------------------------------------


def test_binary_tensors_follow_in_the_order_of_inputs() -> None:
    first, second = np.arange(6, dtype=np.int64), np.array([1.5], np.float16)
    body, length = binary([("a", "INT64", [2, 3], first.tobytes()), ("b", "FP16", [1], second.tobytes())])

    a, b = decode(body, length, LIMITS).inputs

    assert a.array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert b.array.tolist() == [1.5]
    assert a.array.flags.aligned


def test_json_and_binary_inputs_mix_in_one_request() -> None:
    head = request(
        [
            {"name": "a", "datatype": "INT32", "shape": [1], "data": [5]},
            {"name": "b", "datatype": "BOOL", "shape": [2], "parameters": {"binary_data_size": 2}},
        ]
    )

    a, b = decode(head + b"\x01\x00", len(head), LIMITS).inputs

    assert a.array.tolist() == [5]
    assert b.array.tolist() == [True, False]


def test_bytes_elements_keep_zero_bytes_and_emptiness() -> None:
    values = [b"", b"a\x00\x00", b"\xff\xfe"]
    raw = b"".join(struct.pack("<I", len(value)) + value for value in values)
    body, length = binary([("x", "BYTES", [3], raw)])

    assert decode(body, length, LIMITS).inputs[0].array.tolist() == values


@pytest.mark.parametrize(
    ("kind", "shape", "raw", "says"),
    [
        ("FP32", [2], b"\x00" * 7, "takes 8"),
        ("FP32", [2], b"\x00" * 9, "takes 8"),
        ("FP32", [2**31, 2], b"\x00" * 8, "8 bytes of data"),
        ("FP32", [2**20, 2**21], b"", "too many elements"),
        ("BOOL", [1], b"\x02", "send 0 or 1"),
        ("BYTES", [2**31], b"\x00" * 8, "too few"),
        ("BYTES", [1], b"\x05\x00\x00\x00abc", "ends earlier"),
        ("BYTES", [1], b"\xff\xff\xff\xff", "at most 1000"),
        ("BYTES", [1], b"\x01\x00\x00\x00ab", "behind its 1"),
        ("BYTES", [2], b"\x04\x00\x00\x00abcd", "ends before element 1"),
    ],
)
def test_raw_data_of_another_size_is_refused(kind: str, shape: list[int], raw: bytes, says: str) -> None:
    body, length = binary([("x", kind, shape, raw)])

    with pytest.raises((InvalidInput, TooLarge), match=says):
        decode(body, length, LIMITS)


@pytest.mark.parametrize("size", [-1, 2**63, 10**30, 9, 1.0, "4", True, None])
def test_binary_data_size_must_be_what_is_there(size: Any) -> None:
    head = request([{"name": "x", "datatype": "UINT8", "shape": [4], "parameters": {"binary_data_size": size}}])

    with pytest.raises(InvalidInput):
        decode(head + b"\x00" * 4, len(head), LIMITS)


@pytest.mark.parametrize("length", [1, 10**9, -5])
def test_header_length_must_lie_in_the_body(length: int) -> None:
    body, _ = binary([("x", "UINT8", [4], b"\x00" * 4)])

    with pytest.raises(InvalidInput):
        decode(body, length, LIMITS)


def test_header_above_its_limit_is_refused() -> None:
    body, length = binary([("x", "UINT8", [4], b"\x00" * 4)], id="r", parameters={"note": "x" * 6_000})

    with pytest.raises(TooLarge):
        decode(body, length, LIMITS)


def test_bytes_that_belong_to_no_input_are_refused() -> None:
    body, length = binary([("x", "UINT8", [4], b"\x00" * 4)])

    with pytest.raises(InvalidInput, match="belong to no input"):
        decode(body + b"!", length, LIMITS)


def test_tensor_with_data_and_binary_size_is_refused() -> None:
    head = request(
        [{"name": "x", "datatype": "UINT8", "shape": [1], "data": [1], "parameters": {"binary_data_size": 1}}]
    )

    with pytest.raises(InvalidInput, match="both"):
        decode(head + b"\x00", len(head), LIMITS)


# --- raw request --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "body", "shape"),
    [
        (TensorSpec("x", "FP32", (-1, 3)), b"\x00" * 12, (1, 3)),
        (TensorSpec("x", "UINT8", (-1, -1)), b"abcd", (1, 4)),
        (TensorSpec("x", "UINT8", (2, 2)), b"abcd", (2, 2)),
        (TensorSpec("x", "UINT8", (2, -1)), b"abcdef", (2, 3)),
    ],
)
def test_raw_request_is_the_sole_input(spec: TensorSpec, body: bytes, shape: tuple[int, ...]) -> None:
    read = decode(body, 0, LIMITS, sole=spec)

    assert read.inputs[0].array.shape == shape
    assert read.binary_outputs


def test_raw_request_of_bytes_is_one_element() -> None:
    read = decode(b"hello", 0, LIMITS, sole=TensorSpec("t", "BYTES", (-1, 1)))

    assert read.inputs[0].array.tolist() == [[b"hello"]]


@pytest.mark.parametrize(
    ("spec", "body"),
    [
        (None, b"1234"),
        (TensorSpec("x", "FP32", (-1, 3)), b"\x00" * 11),
        (TensorSpec("x", "FP32", (-1, -1, -1)), b"\x00" * 12),
        (TensorSpec("x", "FP32", (-1, 0, -1)), b"\x00" * 12),
    ],
)
def test_raw_request_that_cannot_be_told_is_refused(spec: TensorSpec | None, body: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode(body, 0, LIMITS, sole=spec)


# --- compression --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_body_comes_out_as_it_went_in(coding: str) -> None:
    assert inflate(deflate(b"tensor" * 100, coding), coding, 1_000) == b"tensor" * 100


@pytest.mark.parametrize(
    ("coding", "bomb"), [("gzip", gzip.compress(bytes(10_000_000))), ("deflate", zlib.compress(bytes(10_000_000)))]
)
def test_zip_bomb_is_cut_at_the_limit(coding: str, bomb: bytes) -> None:
    with pytest.raises(TooLarge):
        inflate(bomb, coding, 1_000)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"not gzip"),
        ("gzip", gzip.compress(b"abc")[:-4]),
        ("gzip", gzip.compress(b"abc") + b"more"),
        ("deflate", b""),
        ("br", b"abc"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"abc"))),
    ],
)
def test_damaged_or_foreign_coding_is_refused(coding: str, body: bytes) -> None:
    with pytest.raises(InvalidInput):
        inflate(body, coding, 1_000)


# --- answers ------------------------------------------------------------------------------------------------


def test_answer_without_binary_outputs_has_no_header_length() -> None:
    body, length = encode(
        [Tensor("y", "INT32", np.array([1, 2], np.int32))], model="a/b", version="v", id="7", binary={}
    )

    assert length is None
    assert json.loads(body) == {
        "model_name": "a/b",
        "model_version": "v",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "INT32", "shape": [2], "data": [1, 2]}],
    }


def test_bytes_output_that_is_no_text_has_no_json_form() -> None:
    tensor = Tensor(
        "y", "BYTES", decode(*binary([("y", "BYTES", [1], b"\x01\x00\x00\x00\xff")]), LIMITS).inputs[0].array
    )

    assert not has_json(tensor)
    with pytest.raises(InvalidInput, match="not UTF-8"):
        encode([tensor], model="a/b", version="v", binary={})


def test_classification_gives_the_best_classes_of_each_row() -> None:
    scores = Tensor("y", "FP32", np.array([[0.1, 0.7, 0.2], [0.5, 0.5, 0.9]], np.float32))

    best = classify(scores, 2)

    assert best.datatype == "BYTES"
    assert best.array.tolist() == [[b"0.700000:1", b"0.200000:2"], [b"0.900000:2", b"0.500000:0"]]


def test_length_of_a_stored_header_is_found_in_the_body() -> None:
    body, length = binary([("x", "BYTES", [1], b'\x03\x00\x00\x00}"\xff')], id='brace } and "quote" ü')

    assert header_length(body, LIMITS) == length
    assert header_length(request([]), LIMITS) is None
    with pytest.raises(InvalidInput):
        header_length(b"\x00\x01", LIMITS)


# --- properties ---------------------------------------------------------------------------------------------


@st.composite
def tensors(draw: Any) -> Tensor:
    datatype = draw(st.sampled_from([*NUMERIC, "BOOL"]))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    return Tensor("x", datatype, draw(hnp.arrays(DTYPES[datatype], shape)))


@given(tensors())
@settings(max_examples=150, deadline=None)
def test_any_tensor_survives_the_binary_form(tensor: Tensor) -> None:
    body, length = encode([tensor], model="a/b", version="v", binary={"x": True})

    _, (back,) = decode_answer(body, length, LIMITS)

    np.testing.assert_array_equal(back.array, tensor.array)
    assert back.array.dtype == tensor.array.dtype


@given(tensors())
@settings(max_examples=150, deadline=None)
def test_any_tensor_with_a_json_form_survives_it(tensor: Tensor) -> None:
    if tensor.datatype in BINARY_ONLY:
        return
    body, length = encode([tensor], model="a/b", version="v", binary={})

    _, (back,) = decode_answer(body, length, LIMITS)

    np.testing.assert_array_equal(back.array, tensor.array)


@given(st.lists(st.binary(max_size=20), max_size=8))
@settings(max_examples=100, deadline=None)
def test_any_bytes_survive_the_binary_form(values: list[bytes]) -> None:
    array = np.empty(len(values), dtype=np.object_)
    array[:] = values

    raw = memoryview(bytes(to_raw(array, "BYTES")))
    back = from_raw(raw, "BYTES", (len(values),), len(values), name="x", element_bytes_max=100)

    assert back.tolist() == values


@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(-2, 400)))
@settings(max_examples=300, deadline=None)
def test_any_bytes_as_request_are_read_or_refused(body: bytes, length: int | None) -> None:
    """INVARIANT: a hostile body gives an error of ours, never a crash. Broken by any unchecked size or type."""
    try:
        decode(body, length, LIMITS, sole=TensorSpec("x", "INT16", (-1, -1)))
    except (InvalidInput, TooLarge):
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries(
        {"name": st.just("x") | JSON, "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON},
        optional={"datatype": st.sampled_from(list(DTYPES)) | JSON, "data": JSON, "parameters": JSON},
    )
)
@settings(max_examples=300, deadline=None)
def test_any_json_as_tensor_is_read_or_refused(entry: dict[str, Any]) -> None:
    try:
        decode(request([entry]), None, LIMITS)
    except (InvalidInput, TooLarge):
        return


def test_value_that_shape_cannot_hold_is_refused_in_every_json_type() -> None:
    for datatype in set(DTYPES) - BINARY_ONLY:
        with pytest.raises(InvalidInput):
            from_json([{}], datatype, (1,), 1, name="x", element_bytes_max=10)
