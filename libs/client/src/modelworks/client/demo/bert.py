"""`modelworks demo --bert`: a real BERT from its training files to semantic search, every number measured on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from modelworks.client.demo.corpus import Sentence
from modelworks.client.demo.minilm import INPUTS, OUTPUT, MiniLM, Tokens, write_repository
from modelworks.client.demo.steps import Steps, Verify, WalkFailed
from modelworks.client.tensors import Tensor, decode_arrays, encode_request
from rich.table import Table
from rich.text import Text

EXPORTED, QUANTIZED = "optimized/onnx", "optimized/int8"
RULES: Mapping[str, float] = {"min_cosine_mean": 0.99, "min_agreement": 0.95}
"""Embeddings are compared by cosine; a twentieth of them may lie below the cosine that counts as alike."""
QUERIES: Mapping[str, frozenset[str]] = {
    "the middle value of a list of numbers": frozenset({"statistics.median"}),
    "copy a whole folder with everything in it": frozenset({"shutil.copytree"}),
    "a random text that is safe in a web address": frozenset({"secrets.token_urlsafe"}),
    "is this a leap year": frozenset({"calendar.isleap"}),
    "the few largest values of a data set": frozenset({"heapq.nlargest"}),
    "find the place of a value in a sorted list": frozenset({"bisect.bisect_right", "bisect.bisect_left"}),
    "shuffle a list": frozenset({"random.Random.shuffle"}),
}
"""Questions as a person asks them, and the function of Python's library whose sentence must be among the first three."""
_EVALUATED = 400
_ROWS = 32
_SHOWN, _COMPARED = 3, 10
_SENTENCE_WIDTH = 38
"""Leaves room for a function's name on a line of 80."""
_OVERLAP_MIN = 0.8
"""Share of the first ten answers that int8 and float32 must have in common, over all questions together."""

Vectors = npt.NDArray[np.float32]


@dataclass
class BertWalk(Steps):
    """The steps and what they found."""

    encoder: MiniLM
    sentences: Sequence[Sentence]
    work: Path
    """Empty folder for what is published."""
    model: str = field(default="demo/minilm", kw_only=True)
    exhibits: list[Table | Text] = field(default_factory=list, kw_only=True)
    """What the last step has to show beyond its sentence."""

    def steps(
        self, verify: Verify, progress: Callable[[str], None] = lambda _: None
    ) -> Sequence[tuple[str, Callable[[], Awaitable[str]]]]:
        """The steps in their order.

        Args:
            verify: checks an audit answer.
            progress: told the stages of an optimization.
        """
        return [
            ("log in", self.log_in),
            ("publish", self.publish),
            ("export to ONNX", partial(self.export, progress)),
            ("quantize to int8", partial(self.quantize, progress)),
            ("embed in float32", partial(self.embed, EXPORTED)),
            ("embed in int8", self.embed_recommended),
            ("search", self.search),
            ("audit", partial(self.audit, verify)),
        ]

    async def publish(self) -> str:
        """Push the safetensors repository with card, training parameters and log, and tokenised sentences."""
        self.found["tokens"] = tokens = await asyncio.to_thread(Tokens, self.encoder)
        step = max(1, len(self.sentences) // _EVALUATED)
        texts = [sentence.text for sentence in self.sentences[::step]][:_EVALUATED]
        files = await asyncio.to_thread(write_repository, self.encoder, tokens, texts, self.work / "repository")
        self.found["revision"] = await self.publish_files(files, "Publish all-MiniLM-L6-v2")
        return f"{self.model}@{self.found['revision'][:12]}, {len(files)} files, {len(texts)} sentences to evaluate on"

    async def export(self, progress: Callable[[str], None]) -> str:
        """The encoder as one ONNX file, compared with the torch model."""
        return await self._optimize("export", "main", "onnx", progress)

    async def quantize(self, progress: Callable[[str], None]) -> str:
        """The export in int8, compared with the export."""
        recipe = {"name": "int8", "pass": "int8", "rules": dict(RULES)}
        said = await self._optimize("quantize", EXPORTED, recipe, progress)
        if self.found["quantize"]["revision"] != self.found["export"]["variant"]["revision"]:
            raise WalkFailed("int8 was not made of the export")
        return said

    async def embed(self, ref: str) -> str:
        """Serve a ref and have it embed all sentences and questions."""
        deployment = await self.serve(ref)
        texts = [*(sentence.text for sentence in self.sentences), *QUERIES]
        started = asyncio.get_running_loop().time()
        found = np.concatenate(
            [
                await self._infer(texts[start : start + _ROWS], deployment["revision"])
                for start in range(0, len(texts), _ROWS)
            ]
        )
        seconds = asyncio.get_running_loop().time() - started
        lengths = np.linalg.norm(found, axis=1)
        if not np.allclose(lengths, 1, atol=1e-3):
            raise WalkFailed(f"embeddings have lengths from {lengths.min():.4f} to {lengths.max():.4f}, not 1")
        self.found[ref] = found
        return f"{len(texts)} sentences as {found.shape[1]} numbers each, {len(texts) / seconds:.0f} a second"

    async def embed_recommended(self) -> str:
        """The same with what the optimizer recommends. Where that is not int8 (this CPU is not made for it), with int8."""
        promoted = self.found["quantize"]["verdict"] == "promote"
        ref = "recommended" if promoted else QUANTIZED
        said = await self.embed(ref)
        self.found[QUANTIZED] = self.found.pop(ref)
        return f"{ref}{'' if promoted else ', which is not recommended here'}: {said}"

    async def search(self) -> str:
        """The nearest sentences of each question; int8 must find what is expected, and what float32 finds."""
        ranked = {ref: self._ranked(self.found[ref]) for ref in (EXPORTED, QUANTIZED)}
        table = Table("score", "sentence", "where", box=None, show_header=False)
        missed = []
        for number, (question, wanted) in enumerate(QUERIES.items()):
            best = ranked[QUANTIZED][number][:_SHOWN]
            table.add_row("", Text(question, style="bold"), "")
            for score, index in best:
                text = Text(self.sentences[index].text)
                text.truncate(_SENTENCE_WIDTH, overflow="ellipsis")
                table.add_row(f"{score:.3f}", text, Text(self.sentences[index].where))
            if wanted.isdisjoint(self.sentences[index].where for _, index in best):
                missed.append(question)
        self.exhibits.append(table)
        overlaps = [
            len({index for _, index in one[:_COMPARED]} & {index for _, index in other[:_COMPARED]}) / _COMPARED
            for one, other in zip(ranked[EXPORTED], ranked[QUANTIZED], strict=True)
        ]
        self.found["overlap"] = overlap = float(np.mean(overlaps))
        if missed:
            raise WalkFailed(f"the expected sentence is not among the first {_SHOWN} for: {'; '.join(missed)}")
        if overlap < _OVERLAP_MIN:
            raise WalkFailed(
                f"int8 and float32 share {overlap:.0%} of the first {_COMPARED}, at least {_OVERLAP_MIN:.0%} wanted"
            )
        return (
            f"{len(QUERIES)} of {len(QUERIES)} questions find their sentence; int8 and float32 share {overlap:.0%} of the "
            f"first {_COMPARED}"
        )

    async def audit(self, verify: Verify) -> str:
        """Find who did what; every hit's proof verifies."""
        expected = [
            ("registry.revision-committed.v1", self.found["client publisher"]),
            ("optimizer.job-accepted.v1", self.found["client operator"]),
            ("optimizer.variant-built.v1", None),
            ("inference.deployment-requested.v1", self.found["client operator"]),
            ("inference.model-loaded.v1", None),
            ("inference.prediction-completed.v1", self.found["client consumer"]),
        ]
        proofs = self.found["proofs"] = await self.find_in_audit(expected, verify)
        return f"{len(expected)} kinds of acts found, {proofs} proofs verified"

    # --- parts ---------------------------------------------------------------------------------------

    async def _optimize(
        self, name: str, ref: str, recipe: str | Mapping[str, Any], progress: Callable[[str], None]
    ) -> str:
        operator = self.clients["operator"]
        asked = await self.patient(lambda: operator.optimize(self.model, ref=ref, recipe=recipe))
        job = self.found[name] = await self.follow(asked, progress)
        self.exhibits += [Text(f"   {finding}") for finding in job["report"]["findings"]]
        self.exhibits.append(fidelity(job["report"]))
        return f"verdict {job['verdict']}: {job['report']['summary']}"

    async def _infer(self, texts: Sequence[str], revision: str) -> Vectors:
        arrays = self.found["tokens"](texts)
        body, header_bytes = encode_request([Tensor(name, arrays[name]) for name in INPUTS])
        answer, answered_bytes = await self.patient(
            lambda: self.clients["consumer"].predict_binary(self.model, body, header_bytes)
        )
        said = json.loads(answer[:answered_bytes]).get("model_version")
        if said != revision:
            raise WalkFailed(f"revision {said} answered, but {revision} is deployed")
        return decode_arrays(answer, answered_bytes)[OUTPUT]

    def _ranked(self, vectors: Vectors) -> list[list[tuple[float, int]]]:
        """For each question its sentences as (cosine, index), the nearest first."""
        corpus, questions = vectors[: len(self.sentences)], vectors[len(self.sentences) :]
        return [
            [(float(scores[index]), int(index)) for index in np.argsort(-scores)] for scores in questions @ corpus.T
        ]


def fidelity(report: Mapping[str, Any]) -> Table:
    """Size, speed and fidelity of a report."""
    target = report["targets"][0]
    [output] = target["agreement"]["outputs"]
    table = Table("", "original", "variant", "", box=None, header_style="bold", pad_edge=False)
    size = target["size"]
    table.add_row(
        "   size, MB",
        f"{size['original_bytes'] / 1e6:.1f}",
        f"{size['variant_bytes'] / 1e6:.1f}",
        f"{size['ratio']:.2f}x smaller",
    )
    for point in target["latency"]:
        table.add_row(
            f"   batch {point['batch']}, ms, {point['threads']} thread", f"{point['original_ms']:.1f}",
            f"{point['variant_ms']:.1f}", f"{1 / point['ratio']:.2f}x faster",
        )  # fmt: skip
    table.add_row("   cosine", "mean", f"{output['cosine_mean']:.4f}", f"least {output['cosine_min']:.4f}")
    if "neighbours" in output:
        table.add_row("   ten nearest neighbours", "shared", f"{output['neighbours']:.1%}", "")
        table.add_row("   order of all cosines", "Spearman", f"{output['rank_correlation']:.4f}", "")
    return table
