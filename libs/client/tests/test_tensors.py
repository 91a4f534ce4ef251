"""Arrays on the wire."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from modelworks.client.tensors import DATATYPES, Tensor, decode_answer, decode_arrays, encode_request, load_inputs
from modelworks.kit.errors import InvalidInput


@pytest.mark.parametrize("dtype", sorted(DATATYPES))
def test_array_survives_the_binary_form(dtype: str) -> None:
    first = np.arange(6).reshape(2, 3).astype(dtype)
    second = np.ones((1,), dtype)

    body, header_bytes = encode_request([Tensor("a", first), Tensor("b", second)])
    # A request and an answer lay tensors out alike; only the property's name differs.
    answer = body[:header_bytes].replace(b'"inputs"', b'"outputs"') + body[header_bytes:]
    arrays = decode_arrays(answer, header_bytes + 1)

    assert (arrays["a"] == first).all()
    assert (arrays["b"] == second).all()


def test_big_endian_and_strided_arrays_are_sent_row_major_little_endian() -> None:
    body, header_bytes = encode_request([Tensor("a", np.array([[1, 2], [3, 4]], dtype=">i4").T)])

    assert np.frombuffer(body[header_bytes:], "<i4").tolist() == [1, 3, 2, 4]


def test_json_answer_is_read_as_well() -> None:
    body = b'{"model_name": "m", "outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}'

    assert decode_answer(body, len(body))["outputs"][0]["data"] == [1.0, 2.0]


def test_dtype_without_a_protocol_name_is_refused() -> None:
    with pytest.raises(InvalidInput, match="complex128"):
        encode_request([Tensor("a", np.ones(2, complex))])


@pytest.mark.parametrize("text", ["x", "=f.npy", "x=", ""])
def test_malformed_input_option_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"NAME=FILE\.npy"):
        load_inputs([text])


def test_missing_file_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"there is no file nowhere\.npy"):
        load_inputs(["x=nowhere.npy"])


def test_pickled_array_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "evil.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)

    with pytest.raises(InvalidInput, match=r"not a plain \.npy"):
        load_inputs([f"x={path}"])


def test_truncated_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short.npy"
    np.save(path, np.arange(100))
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(InvalidInput, match=r"not a plain \.npy"):
        load_inputs([f"x={path}"])
