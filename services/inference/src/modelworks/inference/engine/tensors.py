"""Datatypes of the Open Inference Protocol: JSON values and raw bytes to arrays and back.

Every size is checked before anything is allocated, since shapes come from
strangers. Non-finite numbers follow the JSON mapping of Protocol Buffers: the
strings "NaN", "Infinity" and "-Infinity", in both directions; the bare words
that some writers emit are not JSON and are refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from modelworks.inference.engine.messages import Array, Tensor
from modelworks.kit.errors import InvalidInput, TooLarge

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"), "UINT16": np.dtype("<u2"), "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"), "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
    "BYTES": np.dtype(np.object_),
}  # fmt: skip
"""V2 datatype to the array's dtype."""

BINARY_ONLY = frozenset({"FP16", "BF16"})
"""Datatypes without a JSON form."""

DIMENSIONS_MAX = 32
"""numpy's own limit is 64; no model in use has more than 8."""
ELEMENTS_MAX = 2**40
"""Guards the arithmetic only: the body's limit is far below."""

_NON_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def dtype_of(datatype: Any, name: str) -> np.dtype[Any]:
    """The dtype of a V2 datatype.

    Raises:
        InvalidInput: there is no such datatype.
    """
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise InvalidInput(f"input {name!r}: datatype {shown(datatype)} is unknown; use one of {', '.join(DTYPES)}")
    return DTYPES[datatype]


def checked_shape(shape: Any, name: str) -> tuple[tuple[int, ...], int]:
    """The shape and its number of elements.

    Raises:
        InvalidInput: not a list of integers from 0, or the product overflows.
    """
    if not isinstance(shape, list) or len(shape) > DIMENSIONS_MAX:
        raise InvalidInput(f"input {name!r}: shape must be a list of at most {DIMENSIONS_MAX} integers")
    elements, extent = 1, 1
    for dim in shape:
        if type(dim) is not int or dim < 0:
            raise InvalidInput(f"input {name!r}: dimension {shown(dim)} of its shape is not an integer from 0")
        elements *= dim
        # Dimensions beside a zero count too: [0, 2**62, 4] has no elements, and yet no array can have it.
        extent *= max(dim, 1)
        if extent > ELEMENTS_MAX:
            raise InvalidInput(f"input {name!r}: shape {shown(shape)} has too many elements")
    return tuple(shape), elements


def from_raw(
    raw: memoryview, datatype: str, shape: tuple[int, ...], elements: int, *, name: str, element_bytes_max: int
) -> Array:
    """An array over raw little-endian bytes. Numbers are not copied unless they lie unaligned.

    Raises:
        InvalidInput: the bytes do not have the size that the shape asks for.
        TooLarge: a BYTES element is above `element_bytes_max`.
    """
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        return _bytes_from_raw(raw, elements, name=name, element_bytes_max=element_bytes_max).reshape(shape)
    expected = elements * dtype.itemsize
    if len(raw) != expected:
        raise InvalidInput(
            f"input {name!r}: {len(raw)} bytes of data, but shape {list(shape)} of {datatype} takes {expected}"
        )
    if datatype == "BOOL":
        bits = np.frombuffer(raw, np.uint8)
        if elements and int(bits.max()) > 1:
            raise InvalidInput(f"input {name!r}: a BOOL byte is {int(bits.max())}; send 0 or 1")
        return bits.view(np.bool_).reshape(shape)
    array = np.frombuffer(raw, dtype)
    if not array.flags.aligned:
        array = array.copy()
    return array.reshape(shape)


def _bytes_from_raw(raw: memoryview, elements: int, *, name: str, element_bytes_max: int) -> Array:
    # Each element has a length prefix, so more elements than this cannot be there.
    if elements * 4 > len(raw):
        raise InvalidInput(f"input {name!r}: {len(raw)} bytes of data are too few for {elements} BYTES elements")
    values: list[bytes] = []
    at = 0
    for number in range(elements):
        if at + 4 > len(raw):
            raise InvalidInput(f"input {name!r}: BYTES data ends before element {number}")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if length > element_bytes_max:
            raise TooLarge(f"input {name!r}: element {number} has {length} bytes, at most {element_bytes_max} allowed")
        if at + length > len(raw):
            raise InvalidInput(f"input {name!r}: BYTES element {number} announces {length} bytes and ends earlier")
        values.append(bytes(raw[at : at + length]))
        at += length
    if at != len(raw):
        raise InvalidInput(f"input {name!r}: {len(raw) - at} bytes of data behind its {elements} BYTES elements")
    return _object_array(values)


def from_json(
    data: Any, datatype: str, shape: tuple[int, ...], elements: int, *, name: str, element_bytes_max: int
) -> Array:
    """An array from JSON values, nested as `shape` or flat.

    Raises:
        InvalidInput: ragged, of another size than `shape`, or a value that the datatype cannot hold.
        TooLarge: a BYTES element is above `element_bytes_max`.
    """
    if datatype in BINARY_ONLY:
        raise InvalidInput(f"input {name!r}: {datatype} has no JSON form; send it as binary data")
    if not isinstance(data, list):
        raise InvalidInput(f"input {name!r}: data must be a list, nested or flat")
    values = _flat(data, shape, elements, name)
    if len(values) != elements:
        raise InvalidInput(
            f"input {name!r}: {len(values)} values of data, but shape {list(shape)} has {elements} elements"
        )
    try:
        return _CONVERTERS[datatype](values, datatype, name, element_bytes_max).reshape(shape)
    except OverflowError as error:
        raise InvalidInput(f"input {name!r}: a value does not fit {datatype}") from error


def _flat(data: list[Any], shape: tuple[int, ...], elements: int, name: str) -> list[Any]:
    """Row-major values of a list that is flat or nested as `shape`."""
    if not any(isinstance(value, list) for value in data):
        return data
    level: list[Any] = data
    for depth, dim in enumerate(shape):
        if depth:
            level = [value for part in level for value in part]
        if depth + 1 == len(shape):
            break
        if any(not isinstance(part, list) or len(part) != shape[depth + 1] for part in level):
            raise InvalidInput(f"input {name!r}: data is neither flat nor nested as its shape {list(shape)}")
        if depth == 0 and len(level) != dim:
            raise InvalidInput(f"input {name!r}: data has {len(level)} rows, its shape {list(shape)} says {dim}")
        if len(level) > elements and elements:
            raise InvalidInput(f"input {name!r}: data has more values than its shape {list(shape)}")
    if any(isinstance(value, list) for value in level):
        raise InvalidInput(f"input {name!r}: data is nested deeper than its shape {list(shape)}")
    return level


def _to_bool(values: list[Any], datatype: str, name: str, _: int) -> Array:
    if any(type(value) is not bool and value not in (0, 1) for value in values):
        raise InvalidInput(f"input {name!r}: a value is not a BOOL; send true or false")
    return np.array(values, dtype=np.bool_)


def _to_integers(values: list[Any], datatype: str, name: str, _: int) -> Array:
    if set(map(type, values)) - {int}:
        odd = next(value for value in values if type(value) is not int)
        raise InvalidInput(f"input {name!r}: {shown(odd)} is not an integer, as {datatype} needs")
    # numpy refuses integers that the dtype cannot hold (OverflowError).
    return np.array(values, dtype=DTYPES[datatype])


def _to_floats(values: list[Any], datatype: str, name: str, _: int) -> Array:
    kinds = set(map(type, values))
    non_finite = 0
    if str in kinds:
        numbers = [_NON_FINITE.get(value, value) if type(value) is str else value for value in values]
        non_finite = sum(type(value) is str for value in values)
        kinds = set(map(type, numbers))
    else:
        numbers = values
    if kinds - {int, float}:
        odd = next(value for value in numbers if type(value) not in (int, float))
        raise InvalidInput(f"input {name!r}: {shown(odd)} is not a number, as {datatype} needs")
    with np.errstate(over="ignore"):
        array = np.array(numbers, dtype=DTYPES[datatype])
    if np.count_nonzero(np.isfinite(array)) != array.size - non_finite:
        raise InvalidInput(
            f"input {name!r}: a value is beyond what {datatype} can hold; "
            'write infinities as "Infinity" and "-Infinity"'
        )
    return array


def _to_bytes(values: list[Any], datatype: str, name: str, element_bytes_max: int) -> Array:
    encoded: list[bytes] = []
    for value in values:
        if type(value) is not str:
            raise InvalidInput(f"input {name!r}: {shown(value)} is not a string, as BYTES needs in JSON")
        try:
            encoded.append(value.encode())
        except UnicodeEncodeError as error:
            raise InvalidInput(f"input {name!r}: a string holds a lone surrogate; send it as binary data") from error
        if len(encoded[-1]) > element_bytes_max:
            raise TooLarge(f"input {name!r}: an element has more than {element_bytes_max} bytes")
    return _object_array(encoded)


_Converter = Callable[[list[Any], str, str, int], Array]
_CONVERTERS: dict[str, _Converter] = {
    "BOOL": _to_bool,
    "FP32": _to_floats,
    "FP64": _to_floats,
    "BYTES": _to_bytes,
    **{f"{sign}INT{bits}": _to_integers for sign in ("", "U") for bits in (8, 16, 32, 64)},
}


def to_raw(array: Array, datatype: str) -> memoryview | bytes:
    """The array's bytes, little-endian and row-major; without a copy where it lies so already."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in array.ravel().tolist())
    straight = np.ascontiguousarray(array, dtype=DTYPES[datatype])
    # A memoryview cannot be cast when a dimension is 0.
    return straight.reshape(-1).view(np.uint8).data if straight.size else b""


def to_json(array: Array, datatype: str, *, name: str) -> list[Any]:
    """The array's values, flat.

    Raises:
        InvalidInput: the datatype has no JSON form, or a BYTES element is not UTF-8; ask for binary output.
    """
    if datatype in BINARY_ONLY:
        raise InvalidInput(f"output {name!r}: {datatype} has no JSON form; ask for it as binary data")
    if datatype == "BYTES":
        try:
            return [value.decode() for value in array.ravel().tolist()]
        except UnicodeDecodeError as error:
            raise InvalidInput(f"output {name!r}: an element is not UTF-8; ask for it as binary data") from error
    values: list[Any] = array.ravel().tolist()
    if datatype in ("FP32", "FP64") and not np.isfinite(array).all():
        return [_finite(value) for value in values]
    return values


def has_json(tensor: Tensor) -> bool:
    """Whether the tensor's values can be written as JSON."""
    if tensor.datatype == "BYTES":
        try:
            to_json(tensor.array, tensor.datatype, name=tensor.name)
        except InvalidInput:
            return False
    return tensor.datatype not in BINARY_ONLY


def _finite(value: float) -> float | str:
    if value != value:  # noqa: PLR0124 - the definition of NaN
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _object_array(values: Sequence[bytes]) -> Array:
    # Filled in place: np.array would look into the values, and strip trailing zero bytes.
    array = np.empty(len(values), dtype=np.object_)
    array[:] = values
    return array


def shown(value: Any) -> str:
    """A value for an error message: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
