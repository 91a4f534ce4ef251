"""The model of the demo: magika's file type classifier, a real ONNX model that its Python package ships.

Input `bytes`, int32 `[files, 2048]`: the first 1024 bytes of a file without
leading white space and the last 1024 without trailing, padded with 256. Output
`target_label`, float32 `[files, 214]`: a probability for each file type.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from modelworks.kit.errors import InvalidInput

INPUT = "bytes"
OUTPUT = "target_label"
_EDGE_BYTES = 1024
_BLOCK_BYTES = 4096
_PADDING = 256
_MIN_BYTES = 200
"""Below that a file says too little for a model to tell its type."""

SUFFIXES: Mapping[str, frozenset[str]] = {
    ".py": frozenset({"python"}),
    ".md": frozenset({"markdown"}),
    ".json": frozenset({"json"}),
    ".toml": frozenset({"toml"}),
    ".yaml": frozenset({"yaml"}),
    ".yml": frozenset({"yaml"}),
    ".sh": frozenset({"shell"}),
    ".onnx": frozenset({"onnx"}),
}
"""What the names of the demo's files promise about their content."""


@dataclass(frozen=True, slots=True)
class Magika:
    """The model as it lies in the installed package."""

    model: Path
    labels: Sequence[str]
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    package_version: str


def find_magika() -> Magika:
    """The installed package's model; nothing of the package is imported.

    Raises:
        InvalidInput: the package is not installed.
    """
    spec = find_spec("magika")
    if spec is None or not spec.submodule_search_locations:
        raise InvalidInput("the demo's model comes with the package magika: pip install --no-deps magika==1.0.3")
    folder = Path(spec.submodule_search_locations[0]) / "models" / "standard_v3_3"
    config = json.loads((folder / "config.min.json").read_text("utf-8"))
    metadata = json.loads((folder / "metadata.json").read_text("utf-8"))
    return Magika(folder / "model.onnx", config["target_labels_space"], config, metadata, version("magika"))


def features(content: bytes) -> npt.NDArray[np.int32]:
    """One file as a row of the model's input, `[2048]`."""
    head = content[:_BLOCK_BYTES].lstrip()[:_EDGE_BYTES]
    tail = content[-_BLOCK_BYTES:].rstrip()[-_EDGE_BYTES:]
    row = np.full(2 * _EDGE_BYTES, _PADDING, dtype=np.int32)
    row[: len(head)] = np.frombuffer(head, np.uint8)
    if tail:
        row[2 * _EDGE_BYTES - len(tail) :] = np.frombuffer(tail, np.uint8)
    return row


def sample_files(root: Path, *, files_max: int) -> Sequence[Path]:
    """Files whose suffix promises a type, spread over the tree; hidden and installed ones are left out.

    Raises:
        InvalidInput: there are fewer than ten.
    """
    found = sorted(_walk(root))
    if len(found) < 10:
        raise InvalidInput(
            f"{root.resolve()} holds {len(found)} files of known type, the demo needs 10: name another with --files"
        )
    step = max(1, len(found) // files_max)
    return found[::step][:files_max]


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if (
            path.name.startswith(".")
            or path.name in ("node_modules", "__pycache__", "build", "dist")
            or path.is_symlink()
        ):
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.suffix in SUFFIXES and path.stat().st_size >= _MIN_BYTES:
            yield path


def write_repository(magika: Magika, samples: Sequence[Path], folder: Path) -> None:
    """What is published: the model, its card, its training parameters and log, labels and evaluation inputs."""
    for name in ("training", "evaluation"):
        (folder / name).mkdir(parents=True)
    data = magika.model.read_bytes()
    (folder / "model.onnx").write_bytes(data)
    (folder / "README.md").write_text(_card(magika, len(samples)), "utf-8")
    (folder / "labels.json").write_text(json.dumps(list(magika.labels)), "utf-8")
    parameters = {**{k: v for k, v in magika.config.items() if k != "target_labels_space"}, **magika.metadata}
    (folder / "training" / "parameters.json").write_text(json.dumps(parameters, indent=2), "utf-8")
    log = (
        f"source: magika {magika.package_version}, model standard_v3_3, sha256 {sha256(data).hexdigest()}\n"
        f"epoch: {magika.metadata.get('epoch_num', 'unknown')} (the last that the authors name; their full log is not published)\n"
    )
    (folder / "training" / "training.log").write_text(log, "utf-8")
    inputs = io.BytesIO()
    np.savez_compressed(inputs, bytes=np.stack([features(path.read_bytes()) for path in samples]))
    (folder / "evaluation" / "inputs.npz").write_bytes(inputs.getvalue())


def _card(magika: Magika, samples: int) -> str:
    return f"""---
license: apache-2.0
library_name: onnx
pipeline_tag: file-type-classification
tags: [magika, file-type, onnx]
language: en
modelworks:
  evaluation:
    outputs: {{{OUTPUT}: classes}}
---
# File types from bytes

Tells {len(magika.labels)} file types apart by their first and last bytes. From the package magika {magika.package_version},
model standard_v3_3, by its authors under the Apache licence 2.0.

- input `{INPUT}`: int32 `[files, 2048]`, byte values, 256 where a file is shorter
- output `{OUTPUT}`: float32 `[files, {len(magika.labels)}]`, a probability for each entry of `labels.json`

`evaluation/inputs.npz` holds {samples} real files in that form; variants are compared on them.
"""
