"""A transformers encoder as an ONNX file, by the real worker; and what is refused instead.

Tests marked `torch` need the extra and are skipped where it is not installed. The others run everywhere.
"""

from __future__ import annotations

import json
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from modelworks.events import FileChange, RevisionCommitted
from modelworks.kit.errors import InvalidInput
from modelworks.optimizer import domain
from modelworks.optimizer.adapters.workshop_subprocess import COMMAND, SubprocessWorkshop
from modelworks.optimizer.measurement import Measurement
from modelworks.optimizer.order import Effort, Order
from modelworks.optimizer.passes import ENCODER, ONNX, WorkError
from modelworks.optimizer.ports import SourceFile, SourceRevision
from modelworks.optimizer.recipe import parse_recipe
from modelworks.optimizer.variant import beside, find_targets

WIDTH, VOCABULARY = 32, 200
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def of(*paths: str) -> SourceRevision:
    files = [SourceFile(path, 1, "0" * 64) for path in paths]
    return SourceRevision(revision="1" * 40, created_at="2026-01-01T00:00:00Z", files=files, lineage=None)


def order(folder: Path, **options: Any) -> Order:
    return Order(
        folder=str(folder), targets=("model.safetensors",), pass_name="onnx-export", options=options,
        rules=parse_recipe("onnx").rules, effort=Effort(rounds=5, seconds_max=0.2), memory_bytes_max=4 << 30,
        arrays=("evaluation/inputs.npz",) if (folder / "source" / "evaluation").is_dir() else (),
    )  # fmt: skip


async def export(folder: Path, **options: Any) -> Measurement:
    return await SubprocessWorkshop(folder, seconds_max=110).work(order(folder, **options), lambda *_: None)


@pytest.fixture
def encoder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small BERT with random weights as a repository would hold it; returns the job's folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("onnxscript")

    def write(
        *, pooling: dict[str, bool] | None = None, modules: tuple[str, ...] = (), drop: str | None = None
    ) -> Path:
        source = tmp_path / "source"
        torch.manual_seed(3)
        config = transformers.BertConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=64,
        )  # fmt: skip
        model = transformers.BertModel(config)
        state = {name: tensor for name, tensor in model.state_dict().items() if name != drop}
        model.save_pretrained(source, state_dict=state, safe_serialization=True)
        if modules:
            kinds = [
                {
                    "idx": n,
                    "type": f"sentence_transformers.models.{kind}",
                    "path": "1_Pooling" if kind == "Pooling" else "",
                }
                for n, kind in enumerate(modules)
            ]
            (source / "modules.json").write_text(json.dumps(kinds))
        if pooling is not None:
            (source / "1_Pooling").mkdir()
            (source / "1_Pooling" / "config.json").write_text(
                json.dumps({"word_embedding_dimension": WIDTH, **pooling})
            )
        (source / "evaluation").mkdir()
        rng = np.random.default_rng(5)
        mask = (np.arange(12)[None, :] < rng.integers(3, 13, 64)[:, None]).astype(np.int64)
        ids = rng.integers(1, VOCABULARY, (64, 12)) * mask
        np.savez(source / "evaluation" / "inputs.npz", input_ids=ids, attention_mask=mask)
        return tmp_path

    return write


def answer(file: Path, ids: Any, mask: Any) -> Any:
    session = onnxruntime.InferenceSession(file.read_bytes())
    return session.run(None, {"input_ids": np.asarray(ids), "attention_mask": np.asarray(mask)})[0]


@pytest.mark.torch
async def test_export_answers_as_the_torch_model_does_at_every_batch_and_length(encoder: Any) -> None:
    folder = encoder(pooling=MEAN, modules=("Transformer", "Pooling", "Normalize"))

    found = await export(folder)

    target = found.targets[0]
    [output] = target.agreement.outputs
    assert target.path == "model.onnx"
    assert target.inputs.source == "repository"
    assert output.cosine_min is not None
    assert output.cosine_min > 0.99999
    assert output.neighbours == 1.0
    assert output.rank_correlation is not None
    assert output.rank_correlation > 0.9999
    assert {"torch", "transformers"} <= found.versions.keys()
    assert target.chosen.facts["head_declared"] is True
    file = folder / "variant" / "model.onnx"
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]
    for batch, tokens in ((1, 1), (1, 7), (5, 64)):
        vectors = answer(file, np.ones((batch, tokens), np.int64), np.ones((batch, tokens), np.int64))
        assert vectors.shape == (batch, WIDTH)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    graph = onnx.load(str(file))
    assert target.chosen.facts["opset"] == next(entry.version for entry in graph.opset_import if entry.domain == "")


@pytest.mark.torch
async def test_padding_changes_no_embedding(encoder: Any) -> None:
    folder = encoder()

    await export(folder)

    file = folder / "variant" / "model.onnx"
    bare = answer(file, [[5, 6, 7]], [[1, 1, 1]])
    padded = answer(file, [[5, 6, 7, 0, 0, 0]], [[1, 1, 1, 0, 0, 0]])
    np.testing.assert_allclose(bare, padded, atol=1e-5)


@pytest.mark.torch
async def test_head_is_what_the_repository_declares(encoder: Any) -> None:
    folder = encoder(pooling={"pooling_mode_cls_token": True}, modules=("Transformer", "Pooling"))

    found = await export(folder)

    facts = found.targets[0].chosen.facts
    assert (facts["pooling"], facts["normalized"]) == ("cls", False)
    vectors = answer(folder / "variant" / "model.onnx", [[5, 6, 7]], [[1, 1, 1]])
    assert abs(np.linalg.norm(vectors) - 1) > 0.01


@pytest.mark.torch
@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"pooling": {"pooling_mode_max_tokens": True}}, "1_Pooling/config.json asks for"),
        ({"modules": ("Transformer", "Pooling", "Dense")}, "modules.json names a module 'Dense'"),
        ({"drop": "encoder.layer.1.output.dense.weight"}, "lacks 1 weights of the model, for example encoder.layer.1.output"),
    ],
)  # fmt: skip
async def test_encoder_that_would_answer_otherwise_is_refused(encoder: Any, made: Any, said: str) -> None:
    """INVARIANT: no export with random weights or another head; the library itself only warns of missing weights."""
    folder = encoder(**made)

    with pytest.raises(WorkError, match=said) as caught:
        await export(folder)

    assert caught.value.code == "not-an-encoder"


@pytest.mark.torch
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"auto_map": {"AutoModel": "trap.Trap"}}, "remote-code", "which is never run"),
        ({"is_encoder_decoder": True}, "not-an-encoder", "has a decoder"),
        ({"model_type": "no-such-type"}, "not-an-encoder", "transformers cannot load"),
    ],
)
async def test_configuration_that_cannot_be_trusted_is_refused(
    encoder: Any, tmp_path: Path, change: dict[str, Any], code: str, said: str
) -> None:
    folder = encoder()
    file = folder / "source" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (folder / "source" / "trap.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'sprung')!r}).touch()")

    with pytest.raises(WorkError, match=said) as caught:
        await export(folder)

    assert caught.value.code == code
    assert not (tmp_path / "sprung").exists()


@pytest.mark.torch
async def test_weights_that_are_no_safetensors_are_refused(encoder: Any) -> None:
    folder = encoder()
    (folder / "source" / "model.safetensors").write_bytes(b"\x80\x04\x95 a pickle by another name")

    with pytest.raises(WorkError, match=r"transformers cannot load model\.safetensors") as caught:
        await export(folder)

    assert caught.value.code == "not-an-encoder"


async def test_without_torch_the_job_says_what_to_install(tmp_path: Path) -> None:
    """A real Python that has everything but torch: a virtual environment with links to the packages of this one."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    [packages] = (tmp_path / "venv").glob("lib/python*/site-packages")
    for entry in Path(np.__file__).parent.parent.iterdir():
        if not entry.name.startswith(("torch", "functorch", "_virtualenv")):
            (packages / entry.name).symlink_to(entry)
    python = str(tmp_path / "venv" / "bin" / "python")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "model.safetensors").write_bytes(b"never looked at")
    workshop = SubprocessWorkshop(tmp_path, seconds_max=60, command=(python, *COMMAND[1:]))

    with pytest.raises(WorkError, match=r"pass onnx-export needs torch.*pip install 'modelworks\[torch\]'") as caught:
        await workshop.work(order(tmp_path), lambda *_: None)

    assert caught.value.code == "extra-missing"


class TestSources:
    def test_export_takes_safetensors_and_what_describes_them(self) -> None:
        source = of(
            "README.md", "config.json", "1_Pooling/config.json", "model.safetensors", "modules.json", "model.onnx",
            "pytorch_model.bin", "tokenizer.json", "trap.py",
        )  # fmt: skip

        targets = find_targets(parse_recipe("onnx"), source, ENCODER)

        assert targets == ("model.safetensors",)
        assert ENCODER.variant_path(targets[0]) == "model.onnx"
        taken = [file.path for file in beside(targets, source, ENCODER)]
        assert taken == ["config.json", "1_Pooling/config.json", "modules.json"]

    def test_onnx_file_is_replaced_where_it_is(self) -> None:
        assert ONNX.variant_path("sub/model.onnx") == "sub/model.onnx"

    @pytest.mark.parametrize("path", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
    def test_pickled_weights_are_never_read(self, path: str) -> None:
        with pytest.raises(InvalidInput, match=f"{path} is not read, it is a pickle, which runs code"):
            find_targets(parse_recipe("onnx"), of("config.json", path), ENCODER)
        with pytest.raises(InvalidInput, match="it is a pickle, which runs code"):
            parse_recipe({"name": "onnx", "pass": "onnx-export", "targets": [path]})

    def test_commit_is_wanted_by_the_recipe_whose_files_changed(self) -> None:
        change = FileChange(path="model.safetensors", change="added", sha256="0" * 64, size_bytes=1)
        event = RevisionCommitted(
            repository="a/b",
            revision="1" * 40,
            parents=[],
            branch="main",
            message="",
            changes=[change],
            changes_total=1,
        )

        assert domain.is_wanted(event, branches=("main",), suffix=ENCODER.suffix)
        assert not domain.is_wanted(event, branches=("main",), suffix=ONNX.suffix)
