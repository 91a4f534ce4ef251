"""A real BERT goes the whole way: exported, quantized, served, searched with. Needs the torch extra; skipped without."""

from __future__ import annotations

from pathlib import Path

import pytest
from modelworks.audit.verify import verify_search_answer
from modelworks.client.connection import read_admin_file
from modelworks.client.demo.bert import EXPORTED, QUANTIZED, BertWalk
from modelworks.client.demo.corpus import read_corpus
from modelworks.client.demo.minilm import find_minilm
from modelworks.client.demo.suite import SuiteProcess
from modelworks.kit.errors import InvalidInput

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.timeout(400)
async def test_real_bert_goes_from_safetensors_to_semantic_search(tmp_path: Path) -> None:
    try:
        encoder = find_minilm()
    except InvalidInput as error:
        pytest.skip(error.message)
    suite = SuiteProcess(tmp_path / "data", environment={"OPTIMIZER_EVALUATION_SECONDS_MAX": "1.5"})
    suite.start()
    (tmp_path / "work").mkdir()
    walk = BertWalk(
        suite.url, read_admin_file(suite.data), encoder, read_corpus(ROOT, sentences_max=500), tmp_path / "work"
    )
    stages: list[str] = []

    try:
        for _, work in walk.steps(verify_search_answer, stages.append):
            await work()
        files = {ref: await walk.clients["operator"].revision(walk.model, ref) for ref in (EXPORTED, QUANTIZED)}
    finally:
        await walk.close()
        suite.stop()

    exported, quantized = walk.found["export"], walk.found["quantize"]
    [output] = exported["report"]["targets"][0]["agreement"]["outputs"]
    assert (output["name"], output["kind"], output["declared"]) == ("sentence_embedding", "vectors", True)
    assert output["cosine_min"] > 0.9999
    assert quantized["report"]["rules"]["min_cosine_mean"] == 0.99
    assert quantized["report"]["targets"][0]["agreement"]["outputs"][0]["cosine_mean"] >= 0.99
    assert quantized["report"]["size_ratio"] > 3
    assert walk.found["overlap"] >= 0.8
    for ref, revision in files.items():
        paths = {entry.path for entry in revision.tree}
        assert {"model.onnx", "tokenizer.json", "optimization/report.json", "training/training.log"} <= paths, ref
        assert "model.safetensors" not in paths
        assert revision.lineage is not None
        assert revision.lineage["kind"] == "optimized"
    assert files[QUANTIZED].lineage is not None
    assert files[QUANTIZED].lineage["source_revision"] == files[EXPORTED].revision
    assert any("export" in stage for stage in stages)
    assert any("quantize" in stage for stage in stages)


def test_corpus_holds_what_the_questions_ask_for() -> None:
    """Without the torch extra, too: the questions and Python's own sentences belong together."""
    from modelworks.client.demo.bert import QUERIES

    there = {sentence.where for sentence in read_corpus(ROOT, sentences_max=500)}

    assert all(not wanted.isdisjoint(there) for wanted in QUERIES.values())
    assert len(there) > 300
