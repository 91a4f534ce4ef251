"""Whether bytes are what their name says, judged from the first of them, without loading anything.

Not a validator: it catches the page of HTML, the Git LFS pointer and the half
download that were saved as `model.onnx`. Whoever loads a model checks it in
full.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

HEAD_BYTES = 64 * 1024
"""Read of an ONNX file."""
SAFETENSORS_HEAD_BYTES = 1024 * 1024 + 8
"""Read of a safetensors file: headers up to 1 MiB are checked entry by entry, larger ones by their length alone."""
_SAFETENSORS_HEADER_BYTES_MAX = 100_000_000
# A field number and wire type of onnx.ModelProto (onnx.proto, "Models"): 0 is a varint, 2 has a length.
_ONNX_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_GRAPH = 7
_IR_VERSION_MAX = 10_000
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".joblib", ".ckpt")

ScanState = Literal["unscanned"]


def scan_state(path: str) -> ScanState | None:
    """`unscanned` for files that may hold pickles, which run code when they are loaded; None for others."""
    return "unscanned" if path.lower().endswith(_PICKLE_SUFFIXES) else None


def head_bytes(path: str) -> int:
    """How many of the file's first bytes `fault` wants to see; 0: its name promises nothing that is checked."""
    lower = path.lower()
    if lower.endswith(".onnx"):
        return HEAD_BYTES
    return SAFETENSORS_HEAD_BYTES if lower.endswith(".safetensors") else 0


def fault(path: str, head: bytes, size_bytes: int) -> str:
    """Why the file is not what its name says; empty when nothing speaks against it.

    Args:
        head: its first `head_bytes(path)` bytes, or all of it when it is shorter.
    """
    lower = path.lower()
    if lower.endswith(".onnx"):
        return _onnx_fault(head, size_bytes)
    return _safetensors_fault(head, size_bytes) if lower.endswith(".safetensors") else ""


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    wire_type: int
    value: int
    """Of a varint the value, else the length."""
    end: int
    """Offset behind the field, which may lie outside of the bytes at hand."""


def _onnx_fault(head: bytes, size_bytes: int) -> str:
    if not head:
        return "it is empty, an ONNX model is not"
    seen: set[int] = set()
    try:
        for item in _fields(head):
            seen.add(item.number)
            wrong = _field_fault(item, size_bytes)
            if wrong:
                return wrong
    except ValueError as error:
        return f"it is not an ONNX model: {error}"
    if 1 not in seen and _GRAPH not in seen:
        return "it is not an ONNX model: neither its IR version nor a graph comes in the first 64 KiB"
    if len(head) >= size_bytes and _GRAPH not in seen:
        return "it is not an ONNX model: it has no graph"
    return ""


def _field_fault(item: _Field, size_bytes: int) -> str:
    expected = _ONNX_FIELDS.get(item.number)
    if expected is not None and expected != item.wire_type:
        return f"it is not an ONNX model: field {item.number} has wire type {item.wire_type}, not {expected}"
    if item.number == 1 and not 1 <= item.value <= _IR_VERSION_MAX:
        return f"it is not an ONNX model: IR version {item.value}"
    if item.end > size_bytes:
        return f"it is cut off: field {item.number} ends at byte {item.end}, the file at {size_bytes}"
    return ""


def _fields(head: bytes) -> Iterator[_Field]:
    """The top-level fields of a protobuf message that begin within `head` (encoding: protobuf.dev, "Message Structure").

    Raises:
        ValueError: the bytes are not a protobuf message.
    """
    position = 0
    while position < len(head):
        try:
            tag, after_tag = _varint(head, position)
            number, wire_type = tag >> 3, tag & 7
            if number == 0 or wire_type not in (0, 1, 2, 5):
                raise ValueError(f"byte {position} is no protobuf field")
            if wire_type == 1:
                value, end = 8, after_tag + 8
            elif wire_type == 5:
                value, end = 4, after_tag + 4
            else:
                value, end = _varint(head, after_tag)
                end = end + value if wire_type == 2 else end
        except IndexError:
            # The head ends within a tag; if the file ends there too, it is cut off.
            yield _Field(number=0, wire_type=0, value=0, end=len(head) + 1)
            return
        yield _Field(number, wire_type, value, end)
        position = end


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A varint and the offset behind it; IndexError when the data ends first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"byte {position} is no protobuf field")


def _safetensors_fault(head: bytes, size_bytes: int) -> str:
    header_bytes = int.from_bytes(head[:8], "little")
    if size_bytes < 10 or header_bytes > min(size_bytes - 8, _SAFETENSORS_HEADER_BYTES_MAX):
        return f"it is not a safetensors file: its header would have {header_bytes} bytes, the file has {size_bytes}"
    if head[8:9] != b"{":
        return "it is not a safetensors file: its header does not begin with '{'"
    if 8 + header_bytes > len(head):
        return ""
    try:
        header = json.loads(head[8 : 8 + header_bytes])
    except (ValueError, RecursionError):
        return "it is not a safetensors file: its header is not JSON"
    data_bytes = size_bytes - 8 - header_bytes
    wrong = next((name for name, tensor in header.items() if not _spans(name, tensor, data_bytes)), None)
    if wrong is None:
        return ""
    return f"tensor {wrong[:100]!r} has no data_offsets within the {data_bytes} bytes behind the header"


def _spans(name: str, tensor: Any, data_bytes: int) -> bool:
    if name == "__metadata__":
        return True
    offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        return False
    first, last = offsets
    return bool(0 <= first <= last <= data_bytes)
