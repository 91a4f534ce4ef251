"""Bodies of the Open Inference Protocol (V2): a JSON header and raw tensors behind it.

The binary extension as `tritonclient` speaks it: the header's length travels
beside the body, tensors follow in the order of `inputs`, little-endian, without
padding. One codec for the HTTP door, queued jobs and their results.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from modelworks.inference.engine.messages import Tensor, TensorSpec
from modelworks.inference.engine.tensors import (
    DTYPES,
    checked_shape,
    dtype_of,
    from_json,
    from_raw,
    shown,
    to_json,
    to_raw,
)
from modelworks.kit.errors import InvalidInput, TooLarge


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one body."""

    inflated_bytes_max: int = 64 * 1024 * 1024
    """Of a compressed body, after inflating it."""
    header_bytes_max: int = 1024 * 1024
    """Of the JSON in front of binary tensors."""
    json_bytes_max: int = 16 * 1024 * 1024
    """Of a body that is all JSON: as Python objects it takes up to twenty times its size."""
    tensors_max: int = 64
    element_bytes_max: int = 16 * 1024 * 1024
    """Of one BYTES element."""


@dataclass(frozen=True, slots=True)
class OutputWish:
    """An output that the caller asks for."""

    name: str
    binary: bool
    classes: int = 0
    """Above 0: answer the best so many as "score:index" (classification extension)."""


@dataclass(frozen=True, slots=True)
class InferBody:
    """A request as it was read; not yet checked against a model."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[OutputWish, ...] = ()
    """Empty: all that the model has."""
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    binary_outputs: bool = False
    """Form of outputs that were not named."""


def inflate(body: bytes, encoding: str, bytes_max: int) -> bytes:
    """The plain body of a request with `Content-Encoding`.

    Raises:
        InvalidInput: another coding than gzip and deflate, or damaged data.
        TooLarge: more than `bytes_max` bytes come out; what lies beyond is never inflated.
    """
    coding = encoding.strip().lower()
    if coding in ("", "identity"):
        return body
    if coding not in ("gzip", "deflate"):
        raise InvalidInput(f"Content-Encoding {shown(encoding)} is not supported: use gzip or deflate")
    # 31: gzip. 15: zlib, which is what HTTP calls deflate (RFC 9110 section 8.4.1.2).
    inflater = zlib.decompressobj(31 if coding == "gzip" else 15)
    try:
        plain = inflater.decompress(body, bytes_max + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not {coding} data: {error}") from error
    if len(plain) > bytes_max:
        raise TooLarge(f"the body inflates to more than {bytes_max} bytes")
    if not inflater.eof or inflater.unused_data:
        raise InvalidInput(f"the {coding} body is cut off, or has data behind its end")
    return plain


def deflate(body: bytes, encoding: str) -> bytes:
    """The body in `gzip` or `deflate` coding, for an answer."""
    # Level 1: tensors shrink little, and the caller waits.
    deflater = zlib.compressobj(1, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    return deflater.compress(body) + deflater.flush()


def header_length(body: bytes, limits: Limits) -> int | None:
    """Where the JSON of a stored body ends, for a body that came without its length; None: all of it is JSON.

    Raises:
        InvalidInput: it does not begin with a JSON object within the header's limit.
    """
    # One character a byte: the decoder only has to find the end, and no byte of UTF-8 text looks like a bracket.
    text = body[: limits.header_bytes_max + 1].decode("latin-1")
    try:
        _, end = json.JSONDecoder(strict=False).raw_decode(text)
    except (ValueError, RecursionError):
        if len(body) <= limits.header_bytes_max or body[:1] != b"{":
            raise InvalidInput("the body does not begin with a JSON object") from None
        # A JSON body with large tensors in it: its end lies behind the limit of a binary header.
        return None
    return None if not text[end:].strip() and len(body) <= len(text) else end


def decode(body: bytes, length: int | None, limits: Limits, *, sole: TensorSpec | None = None) -> InferBody:
    """Read a request.

    Args:
        length: value of `Inference-Header-Content-Length`; None: the whole body is JSON.
        sole: the model's only input; needed for a raw request (`length` 0), whose body is that input's bytes.

    Raises:
        InvalidInput, TooLarge: the message names the tensor and what is wrong.
    """
    if length == 0:
        return _decode_raw(body, sole, limits)
    end = len(body) if length is None else length
    if length is not None and not 0 < end <= len(body):
        raise InvalidInput(f"Inference-Header-Content-Length is {length}, but the body has {len(body)} bytes")
    if length is None and end > limits.json_bytes_max:
        raise TooLarge(f"{end} bytes of JSON, at most {limits.json_bytes_max} allowed: send tensors as binary data")
    if length is not None and end > limits.header_bytes_max:
        raise TooLarge(f"the JSON header has {end} bytes, at most {limits.header_bytes_max} allowed before tensors")
    header = _parse(body[:end] if end < len(body) else body)
    entries = header.get("inputs")
    if not isinstance(entries, list) or not entries:
        raise InvalidInput("property 'inputs' must be a list with at least one tensor")
    if len(entries) > limits.tensors_max:
        raise TooLarge(f"{len(entries)} inputs, at most {limits.tensors_max} allowed")
    parameters = _mapping(header.get("parameters"), "parameters")
    binary = _boolean(parameters, "binary_data_output", default=False)
    request_id = header.get("id", "")
    if not isinstance(request_id, str) or len(request_id) > 200:
        raise InvalidInput("property 'id' must be a string of at most 200 characters")
    return InferBody(
        inputs=_inputs(entries, memoryview(body)[end:], limits),
        outputs=_wishes(header.get("outputs"), binary, limits),
        id=request_id,
        parameters=parameters,
        binary_outputs=binary,
    )


def _decode_raw(body: bytes, sole: TensorSpec | None, limits: Limits) -> InferBody:
    if sole is None:
        raise InvalidInput("a raw request (Inference-Header-Content-Length: 0) needs a model with exactly one input")
    # Batch 1: an open first dimension is the batch.
    dims = [1, *sole.shape[1:]] if sole.shape[:1] == (-1,) else list(sole.shape)
    if sole.datatype == "BYTES":
        if len(body) > limits.element_bytes_max:
            raise TooLarge(f"input {sole.name!r}: {len(body)} bytes, at most {limits.element_bytes_max} allowed")
        raw: bytes = len(body).to_bytes(4, "little") + body
        shape = tuple(1 for _ in dims)
        elements = 1
    else:
        raw = body
        itemsize = DTYPES[sole.datatype].itemsize
        if dims.count(-1) > 1:
            raise InvalidInput(f"input {sole.name!r} has more than one open dimension: send a request with its shape")
        if -1 in dims:
            fixed = itemsize
            for dim in dims:
                fixed *= dim if dim >= 0 else 1
            dims[dims.index(-1)] = len(body) // fixed if fixed else 0
        shape, elements = checked_shape(dims, sole.name)
    view = memoryview(raw)
    array = from_raw(
        view, sole.datatype, shape, elements, name=sole.name, element_bytes_max=limits.element_bytes_max
    )  # fmt: skip
    return InferBody(inputs=(Tensor(sole.name, sole.datatype, array),), binary_outputs=True)


def _inputs(entries: list[Any], raw: memoryview, limits: Limits) -> tuple[Tensor, ...]:
    inputs: list[Tensor] = []
    names: set[str] = set()
    at = 0
    for entry in entries:
        if not isinstance(entry, dict):
            raise InvalidInput("each of 'inputs' must be an object with name, shape, datatype and data")
        name = entry.get("name")
        if not isinstance(name, str) or not name or len(name) > 200:
            raise InvalidInput("each input needs a 'name' of 1 to 200 characters")
        if name in names:
            raise InvalidInput(f"input {name!r} is given twice")
        names.add(name)
        datatype = entry.get("datatype")
        dtype_of(datatype, name)
        assert isinstance(datatype, str)
        shape, elements = checked_shape(entry.get("shape"), name)
        size = _mapping(entry.get("parameters"), f"parameters of input {name!r}").get("binary_data_size")
        if size is None:
            if "data" not in entry:
                raise InvalidInput(f"input {name!r} has neither 'data' nor parameter 'binary_data_size'")
            array = from_json(
                entry["data"], datatype, shape, elements, name=name, element_bytes_max=limits.element_bytes_max
            )
        else:
            if type(size) is not int or size < 0 or at + size > len(raw):
                raise InvalidInput(
                    f"input {name!r}: binary_data_size is {shown(size)}, but {len(raw) - at} bytes of tensor data are left"
                )
            if "data" in entry:
                raise InvalidInput(f"input {name!r} has both 'data' and parameter 'binary_data_size'")
            array = from_raw(
                raw[at : at + size], datatype, shape, elements, name=name, element_bytes_max=limits.element_bytes_max
            )
            at += size
        inputs.append(Tensor(name, datatype, array))
    if at != len(raw):
        raise InvalidInput(f"{len(raw) - at} bytes of tensor data belong to no input")
    return tuple(inputs)


def decode_answer(body: bytes, length: int | None, limits: Limits) -> tuple[Mapping[str, Any], tuple[Tensor, ...]]:
    """The header and outputs of an answer that `encode` wrote."""
    end = len(body) if length is None else length
    header = _parse(body[:end])
    return header, _inputs(header["outputs"], memoryview(body)[end:], limits)


def _wishes(entries: Any, binary: bool, limits: Limits) -> tuple[OutputWish, ...]:
    if entries is None:
        return ()
    if not isinstance(entries, list) or len(entries) > limits.tensors_max:
        raise InvalidInput(f"property 'outputs' must be a list of at most {limits.tensors_max} objects")
    wishes: dict[str, OutputWish] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise InvalidInput("each of 'outputs' must be an object with a 'name'")
        name = entry["name"]
        if name in wishes:
            raise InvalidInput(f"output {shown(name)} is asked for twice")
        parameters = _mapping(entry.get("parameters"), f"parameters of output {shown(name)}")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise InvalidInput(f"output {shown(name)}: classification is {shown(classes)}; give the number of classes")
        wishes[name] = OutputWish(name, _boolean(parameters, "binary_data", default=binary), classes)
    return tuple(wishes.values())


def encode(
    outputs: Sequence[Tensor],
    *,
    model: str,
    version: str,
    id: str = "",
    binary: Mapping[str, bool],
) -> tuple[bytes, int | None]:
    """An answer's body and the length of its JSON header; None when no output is binary, so all of it is JSON.

    Args:
        binary: by output name, whether it travels as raw bytes.

    Raises:
        InvalidInput: an output that is wanted as JSON has no JSON form.
    """
    head: dict[str, Any] = {"model_name": model, "model_version": version}
    if id:
        head["id"] = id
    head["outputs"], raws = _entries(outputs, binary)
    return _joined(head, raws, any_binary=any(binary.get(output.name) for output in outputs))


def _entries(
    tensors: Sequence[Tensor], binary: Mapping[str, bool]
) -> tuple[list[dict[str, Any]], list[bytes | memoryview]]:
    entries: list[dict[str, Any]] = []
    raws: list[bytes | memoryview] = []
    for tensor in tensors:
        entry: dict[str, Any] = {
            "name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.array.shape)
        }  # fmt: skip
        if binary.get(tensor.name):
            raw = to_raw(tensor.array, tensor.datatype)
            entry["parameters"] = {"binary_data_size": len(raw)}
            raws.append(raw)
        else:
            entry["data"] = to_json(tensor.array, tensor.datatype, name=tensor.name)
        entries.append(entry)
    return entries, raws


def _joined(head: dict[str, Any], raws: list[bytes | memoryview], *, any_binary: bool) -> tuple[bytes, int | None]:
    header = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    if not any_binary:
        return header, None
    return b"".join([header, *raws]), len(header)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise InvalidInput("the JSON is nested too deeply") from error
    except ValueError as error:
        raise InvalidInput(f"the JSON of the request cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput("the request must be a JSON object")
    return value


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f'{word} is not JSON; write it as the string "{word}"')


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} must be an object")
    return value


def _boolean(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"parameter {name!r} is {shown(value)}; give true or false")
    return value


def classify(tensor: Tensor, classes: int) -> Tensor:
    """The best classes of each row as `"score:index"` (classification extension); no labels are known here.

    Raises:
        InvalidInput: the output is not numeric.
    """
    if tensor.datatype in ("BYTES", "BF16") or tensor.array.ndim == 0:
        raise InvalidInput(f"output {tensor.name!r} of {tensor.datatype} cannot be classified: it holds no scores")
    scores = tensor.array.reshape(-1, tensor.array.shape[-1])
    count = min(classes, scores.shape[1])
    best = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :count]
    texts = np.empty(best.shape, dtype=np.object_)
    for row, indices in enumerate(best.tolist()):
        texts[row] = [f"{float(scores[row, index]):f}:{index}".encode() for index in indices]
    return Tensor(tensor.name, "BYTES", texts.reshape(*tensor.array.shape[:-1], count))
