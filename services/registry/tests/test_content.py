"""What bytes are, and what cards say."""

from __future__ import annotations

import json
import struct
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelworks.registry.card import read_card
from modelworks.registry.content import HEAD_BYTES, fault, head_bytes, scan_state

unhurried = settings(deadline=None)
"""Time says more of the machine than of the code."""


def onnx(*, ir_version: int = 8, graph: bytes = b"\x0a\x03abc", after: bytes = b"\x42\x02\x10\x0d") -> bytes:
    """A ModelProto by hand: ir_version, producer_name, graph, opset_import."""
    return b"\x08" + bytes([ir_version]) + b"\x12\x03abc" + b"\x3a" + bytes([len(graph)]) + graph + after


def safetensors(header: object, data: bytes = b"\0" * 8, *, length: int | None = None) -> bytes:
    body = json.dumps(header).encode()
    return struct.pack("<Q", len(body) if length is None else length) + body + data


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def verdict(path: str, data: bytes) -> str:
    return fault(path, data[: head_bytes(path)], len(data))


def test_an_onnx_model_passes() -> None:
    assert verdict("m.onnx", onnx()) == ""


def test_the_onnx_model_of_the_demo_passes() -> None:
    spec = find_spec("magika")
    if spec is None or spec.origin is None:
        pytest.skip("magika is not installed")
    models = sorted(Path(spec.origin).parent.rglob("*.onnx"))

    assert models
    assert [verdict(model.name, model.read_bytes()) for model in models] == [""] * len(models)


def test_an_onnx_model_whose_graph_is_longer_than_what_is_read_passes() -> None:
    graph = b"\x0a" + b"\xe8\x07" + b"x" * 1000
    big = graph * (2 * HEAD_BYTES // len(graph) + 1)
    length = len(big)
    varint = bytes([length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14])
    data = b"\x08\x08\x3a" + varint + big + b"\x42\x02\x10\x0d"

    assert len(data) > 2 * HEAD_BYTES
    assert verdict("m.onnx", data) == ""
    assert "cut off" in verdict("m.onnx", data[:-10])


@pytest.mark.parametrize(
    "data",
    [b"", b"this is not a model", b"<html><body>Not found</body></html>", b'{"error": "not found"}',
     b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n", b"PK\x03\x04" + b"\0" * 100, b"\x00" * 64,
     b"\xff" * 64, b"\x08", b"\x08\x80", b"\x80\x04\x95", onnx()[:-1], onnx()[:12], onnx(ir_version=0), b"\x08\x08",
     b"\x12\x03abc", b"\x0a\x03abc", b"\x38\x01" + onnx(), "ONNX ist kein Text".encode("utf-16")],
)  # fmt: skip
def test_what_is_no_onnx_model_is_said_to_be_none(data: bytes) -> None:
    wrong = verdict("weights/Model.ONNX", data)

    assert wrong
    assert "ONNX" in wrong or "cut off" in wrong


def test_an_unknown_field_of_a_later_onnx_passes() -> None:
    assert verdict("m.onnx", onnx(after=b"\xfa\x01\x01x")) == ""


@unhurried
@given(st.binary(max_size=200))
def test_any_bytes_get_a_verdict(data: bytes) -> None:
    assert isinstance(verdict("m.onnx", data), str)
    assert isinstance(verdict("m.safetensors", data), str)
    assert isinstance(verdict("m.safetensors", len(data[8:]).to_bytes(8, "little") + data[8:]), str)


@pytest.mark.parametrize(
    "data",
    [safetensors({"w": TENSOR}), safetensors({"w": TENSOR, "__metadata__": {"format": "pt"}}), safetensors({}, b"")],
)
def test_a_safetensors_file_passes(data: bytes) -> None:
    assert verdict("m.safetensors", data) == ""


@pytest.mark.parametrize(
    "data",
    [b"", b"short", safetensors({"w": TENSOR}, length=10**15), safetensors({"w": TENSOR}, length=2**64 - 1),
     safetensors({"w": TENSOR}, length=99), safetensors({"w": TENSOR}, b""), safetensors([TENSOR]),
     struct.pack("<Q", 5) + b"{nope" + b"\0" * 8, safetensors({"w": {"data_offsets": [4, 2]}}),
     safetensors({"w": {"data_offsets": [-1, 2]}}), safetensors({"w": {"data_offsets": [0, 9]}}),
     safetensors({"w": {"data_offsets": [0]}}), safetensors({"w": {"data_offsets": [0.0, 1.5]}}), safetensors({"w": []}),
     safetensors({"w": {"data_offsets": [False, True]}}),
     struct.pack("<Q", 100_000) + b'{"a":' + b"[" * 99_995 + b"\0" * 8],
)  # fmt: skip
def test_a_safetensors_header_that_lies_is_found_out(data: bytes) -> None:
    assert verdict("m.safetensors", data)


def test_a_large_safetensors_header_is_judged_by_its_length() -> None:
    header = {f"layer.{n}": TENSOR for n in range(20_000)}

    assert len(json.dumps(header)) > 1024 * 1024
    assert verdict("m.safetensors", safetensors(header)) == ""


def test_files_of_other_names_are_not_looked_at() -> None:
    assert head_bytes("model.onnx.txt") == 0
    assert verdict("notes.txt", b"anything") == ""


@pytest.mark.parametrize("path", ["pytorch_model.bin", "a/b.PT", "x.pkl", "x.pickle", "x.pth", "x.joblib", "x.ckpt"])
def test_formats_that_may_hold_a_pickle_are_marked(path: str) -> None:
    assert scan_state(path) == "unscanned"


@pytest.mark.parametrize("path", ["model.onnx", "model.safetensors", "README.md", "bin", "pt.txt"])
def test_other_formats_are_not_marked(path: str) -> None:
    assert scan_state(path) is None


CARD = b"""---
license: apache-2.0
language:
- en
tags:
- onnx
- file-type
- onnx
library_name: onnxruntime
pipeline_tag: text-classification
model-index:
- name: x
  results: &all
  - *all
---
# Magika

Knows file types.
"""


def test_a_card_says_what_can_be_searched() -> None:
    card = read_card(CARD, sha256="1" * 64)

    assert card.tags == ("onnx", "file-type")
    assert (card.library, card.task, card.license) == ("onnxruntime", "text-classification", "apache-2.0")
    assert card.text == "# Magika\n\nKnows file types."
    assert (card.error, card.sha256) == (None, "1" * 64)


def test_our_own_names_of_fields_work_too() -> None:
    card = read_card(b"---\r\nlibrary: torch\r\ntask: x\r\nlicence: mit\r\ntags: one\r\n---\r\n", sha256="")

    assert (card.library, card.task, card.license, card.tags) == ("torch", "x", "mit", ("one",))


@pytest.mark.parametrize("source", [b"", b"# Title\n---\nlicense: mit\n---\n", b"---\nlicense: mit\n", b"--- \nx"])
def test_a_readme_without_front_matter_is_all_prose(source: bytes) -> None:
    card = read_card(source, sha256="")

    assert (card.license, card.error) == (None, None)
    assert card.text == source.decode().strip()


@pytest.mark.parametrize(
    "front",
    ["tags: [unclosed", "tags: *x", "tags: &a [x]\nlicense: *a", "license: !!python/object/apply:os.system ['id']",
     "tags: " + "[" * 5000, "license: 'x\n", "tags:\n  - a\n - b"],
)  # fmt: skip
def test_front_matter_that_cannot_be_read_says_why_and_hurts_nobody(front: str) -> None:
    card = read_card(f"---\n{front}\n---\nprose".encode(), sha256="")

    assert card.error
    assert card.text == "prose"
    assert (card.tags, card.license) == ((), None)


def test_front_matter_that_explodes_is_refused_before_it_does() -> None:
    bomb = "tags: &a0 [x]\n" + "".join(f"license: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))

    card = read_card(f"---\n{bomb}---\n".encode(), sha256="")

    assert "aliases" in (card.error or "")


def test_values_are_bounded() -> None:
    many = read_card(b"---\ntags: [" + b",".join(b"t%d" % n for n in range(500)) + b"]\n---\n", sha256="")
    long = read_card(b"---\nlicense: " + b"x" * 5000 + b"\n---\n", sha256="")
    huge = read_card(b"---\nlicense: " + b"x" * 20_000 + b"\n---\n", sha256="")

    assert len(many.tags) == 100
    assert long.license == "x" * 100
    assert huge.error is not None


def test_values_of_other_types_are_left_out() -> None:
    card = read_card(b"---\nlicense: 5\ntags: [1, a, null, {x: y}, b]\nlibrary_name: [torch, onnx]\n---\n", sha256="")

    assert (card.license, card.tags, card.library) == (None, ("a", "b"), "torch")


@unhurried
@given(st.binary(max_size=300))
def test_any_readme_gives_a_card(source: bytes) -> None:
    assert read_card(b"---\n" + source, sha256="").sha256 == ""
