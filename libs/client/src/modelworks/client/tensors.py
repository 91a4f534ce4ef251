"""numpy arrays as tensors of the Open Inference Protocol (V2), binary extension included."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from modelworks.kit.errors import InvalidInput, Unavailable

DATATYPES: Mapping[str, str] = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
"""numpy dtype to V2 datatype."""
_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array."""

    name: str
    array: npt.NDArray[Any]

    @property
    def datatype(self) -> str:
        """The V2 datatype.

        Raises:
            InvalidInput: the array's dtype has none.
        """
        found = DATATYPES.get(self.array.dtype.name)
        if found is None:
            raise InvalidInput(f"input {self.name!r} has dtype {self.array.dtype}: use one of {', '.join(DATATYPES)}")
        return found

    def as_json(self) -> dict[str, Any]:
        """The JSON form; data flat, row-major."""
        if self.datatype == "FP16":
            raise InvalidInput(
                f"input {self.name!r} is float16, which has no JSON form: leave --queue out, or send float32"
            )
        data = self.array.ravel().tolist()
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.array.shape), "data": data}


def load_inputs(specifications: Sequence[str]) -> list[Tensor]:
    """Tensors from `NAME=FILE.npy`. Pickled arrays are refused.

    Raises:
        InvalidInput: a specification or file is not of that form.
    """
    tensors = []
    for text in specifications:
        name, equals, file = text.partition("=")
        if not equals or not name or not file:
            raise InvalidInput(f"--input {text!r}: write NAME=FILE.npy")
        try:
            tensors.append(Tensor(name, np.load(Path(file), allow_pickle=False)))
        except FileNotFoundError:
            raise InvalidInput(f"--input {text!r}: there is no file {file}") from None
        except (ValueError, OSError, EOFError) as error:
            raise InvalidInput(f"--input {text!r}: {file} is not a plain .npy file ({error})") from error
    return tensors


def encode_request(tensors: Sequence[Tensor], *, id: str | None = None) -> tuple[bytes, int]:
    """A V2 infer request with binary tensors; returns the body and the size of its JSON header."""
    inputs = []
    chunks = []
    for tensor in tensors:
        raw = np.ascontiguousarray(tensor.array).astype(tensor.array.dtype.newbyteorder("<"), copy=False).tobytes()
        chunks.append(raw)
        inputs.append(
            {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.array.shape),
             "parameters": {"binary_data_size": len(raw)}}
        )  # fmt: skip
    request: dict[str, Any] = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    if id is not None:
        request["id"] = id
    header = json.dumps(request, separators=(",", ":")).encode()
    return b"".join([header, *chunks]), len(header)


def decode_arrays(body: bytes, header_bytes: int) -> dict[str, npt.NDArray[Any]]:
    """The outputs of a V2 answer by name; BYTES outputs are not read."""
    header = json.loads(body[:header_bytes])
    position = header_bytes
    arrays: dict[str, npt.NDArray[Any]] = {}
    for output in header["outputs"]:
        dtype = _DTYPES.get(output["datatype"])
        if dtype is None:
            raise Unavailable(
                f"output {output['name']!r} has datatype {output['datatype']}, which this client cannot read"
            )
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            arrays[output["name"]] = np.array(output["data"], dtype=dtype).reshape(output["shape"])
            continue
        raw = np.frombuffer(
            body, np.dtype(dtype).newbyteorder("<"), offset=position, count=size // np.dtype(dtype).itemsize
        )
        arrays[output["name"]] = raw.reshape(output["shape"])
        position += size
    return arrays


def decode_answer(body: bytes, header_bytes: int) -> dict[str, Any]:
    """A V2 answer in its JSON form, whatever form it came in."""
    header: dict[str, Any] = json.loads(body[:header_bytes])
    arrays = decode_arrays(body, header_bytes)
    for output in header["outputs"]:
        output["data"] = arrays[output["name"]].ravel().tolist()
        output.pop("parameters", None)
    return header
