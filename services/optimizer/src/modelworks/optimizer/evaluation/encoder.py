"""A transformers encoder as a sentence embedder: weights, pooling and norm as the repository says, run by torch.

Only safetensors and JSON are read. Code that comes with a repository is never
run, and nothing is fetched: what is not in the folder does not exist.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from modelworks.optimizer.evaluation.latency import Feed
from modelworks.optimizer.evaluation.session import Array, TensorSpec
from modelworks.optimizer.measurement import OperatorTime
from modelworks.optimizer.passes import WorkError, refusal

# Read while the library is imported.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")

import torch
import transformers

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
"""`embedding` would be the obvious name, but the exporter gives it to a node inside, and the file is not valid then."""

_JSON_BYTES_MAX = 1 << 20
_MODULES_KNOWN = ("Transformer", "Pooling", "Normalize")
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclass(frozen=True, slots=True)
class Head:
    """What makes one vector of the tokens' vectors."""

    pooling: str
    """`mean` over the tokens of the mask, or `cls`, the first token."""
    normalize: bool
    """To length 1."""
    declared: bool
    """The repository says it; otherwise it is what most embedders do."""


class SentenceEncoder(torch.nn.Module):  # type: ignore[misc]
    """`input_ids`, `attention_mask` int64 `[batch, tokens]` -> `sentence_embedding` float32 `[batch, width]`."""

    def __init__(self, encoder: Any, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.head.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, p=2.0, dim=1) if self.head.normalize else pooled


def read_head(folder: Path, *, pooling: str | None = None, normalize: bool | None = None) -> Head:
    """The head that the repository declares in sentence-transformers' files; without them, mean and length 1.

    Args:
        pooling: overrides what is declared.
        normalize: likewise.

    Raises:
        WorkError: `not-an-encoder`: it declares something else than a mean or the first token, with or without norm.
    """
    declared_pooling, declared_normalize, declared = "mean", True, False
    pooling_folder = folder / "1_Pooling"
    if (folder / "modules.json").is_file():
        modules = _read_json(folder / "modules.json", list)
        kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
        strange = [kind for kind in kinds if kind not in _MODULES_KNOWN]
        if strange:
            raise _not_an_encoder(f"modules.json names a module {strange[0]!r}; known are {', '.join(_MODULES_KNOWN)}")
        declared, declared_normalize = True, "Normalize" in kinds
        paths = [module.get("path") for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"]
        pooling_folder = (folder / str(paths[0])).resolve() if paths else folder / "absent"
        if not pooling_folder.is_relative_to(folder.resolve()):
            raise _not_an_encoder(f"modules.json names a folder outside the repository: {paths[0]!r}")
    file = pooling_folder / "config.json"
    if file.is_file():
        modes = [name for name, on in _read_json(file, dict).items() if name.startswith("pooling_mode") and on is True]
        if len(modes) != 1 or modes[0] not in _POOLINGS:
            raise _not_an_encoder(f"{file.parent.name}/config.json asks for {modes}; exported are {list(_POOLINGS)}")
        declared, declared_pooling = True, _POOLINGS[modes[0]]
    return Head(
        pooling=pooling or declared_pooling,
        normalize=declared_normalize if normalize is None else normalize,
        declared=declared,
    )


@lru_cache(maxsize=1)
def load_encoder(path: Path, *, pooling: str | None, normalize: bool | None) -> SentenceEncoder:
    """The encoder whose weights are the safetensors file `path`; the last one is kept, as it is asked for twice.

    Raises:
        WorkError: `not-an-encoder`, with what is wrong.
    """
    if path.name != "model.safetensors":
        raise _not_an_encoder(f"weights are read from model.safetensors, not from {path.name} (parts are not joined)")
    folder = path.parent
    _check_config(_read_json(folder / "config.json", dict))
    head = read_head(folder, pooling=pooling, normalize=normalize)
    rules = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **rules)
        encoder, loaded = transformers.AutoModel.from_pretrained(
            folder, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **rules
        )
    except Exception as error:  # the library raises whatever its inner libraries raise
        raise refusal("not-an-encoder", f"transformers cannot load {path.name}", error) from error
    # Weights that are missing would be random, and the library only warns. Its own pooler is not used here.
    missing = sorted(name for name in loaded["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise _not_an_encoder(f"{path.name} lacks {len(missing)} weights of the model, for example {missing[0]}")
    found = SentenceEncoder(encoder, head)
    found.eval()
    return found


class EncoderModel:
    """An encoder that can be run: see `session.Runnable`."""

    batchable = True

    def __init__(self, path: Path, encoder: SentenceEncoder, *, threads: int) -> None:
        self.path = path
        self.inputs = tuple(TensorSpec(name, np.dtype(np.int64), ("batch", "tokens")) for name in INPUTS)
        self.outputs = (OUTPUT,)
        self._encoder = encoder
        self._threads = threads

    @property
    def bounds(self) -> Mapping[str, int]:
        return {"input_ids": int(self._encoder.encoder.config.vocab_size)}

    def run(self, feed: Mapping[str, Array]) -> list[Any]:
        # One setting for the whole process, and both a timed and a comparing model may live in it.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                return [self._encoder(*(torch.from_numpy(feed[name]) for name in INPUTS)).numpy()]
        except Exception as error:
            raise refusal("not-runnable", f"{self.path.name} fails when run", error) from error


class EncoderOriginal:
    """See `original.Original`."""

    def __init__(self, path: Path, encoder: SentenceEncoder) -> None:
        self._path = path
        self._encoder = encoder

    @property
    def size_bytes(self) -> int:
        return self._path.stat().st_size

    @property
    def beside(self) -> list[Path]:
        return []

    def open(self, *, threads: int) -> EncoderModel:
        return EncoderModel(self._path, self._encoder, threads=threads)

    def operator_times(self, feed: Feed, *, threads: int, folder: Path) -> tuple[OperatorTime, ...]:
        # torch's operators are others than the graph's: a table of both would compare what cannot be compared.
        return ()


def open_original(path: Path, *, options: Any) -> EncoderOriginal:
    """The encoder at `path`, with the head that the pass's options ask for.

    Raises:
        WorkError: `not-an-encoder`, with what is wrong.
    """
    return EncoderOriginal(path, load_encoder(path, pooling=options.pooling, normalize=options.normalize))


def _check_config(config: Mapping[str, Any]) -> None:
    if config.get("auto_map"):
        raise WorkError(
            "remote-code",
            "config.json asks for Python code of the repository (auto_map), which is never run: publish an architecture "
            "that transformers has itself",
        )
    if config.get("is_encoder_decoder") or config.get("is_decoder"):
        raise _not_an_encoder(f"model type {config.get('model_type')!r} has a decoder")


def _read_json(path: Path, kind: type[Any]) -> Any:
    if not path.is_file():
        raise _not_an_encoder(f"there is no {path.name} beside the weights")
    if path.stat().st_size > _JSON_BYTES_MAX:
        raise _not_an_encoder(f"{path.name} has more than {_JSON_BYTES_MAX} bytes")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _not_an_encoder(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, kind) or (kind is list and not all(isinstance(item, dict) for item in value)):
        raise _not_an_encoder(f"{path.name} is not of the form that transformers writes")
    return value


def _not_an_encoder(what: str) -> WorkError:
    return WorkError("not-an-encoder", what)
