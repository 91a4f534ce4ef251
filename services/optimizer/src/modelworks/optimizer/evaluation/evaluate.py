"""One target from file to measurement: candidates, a short probe among them, and the full measuring of the one kept."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from modelworks.optimizer.evaluation.agreement import Reference, answers, compare
from modelworks.optimizer.evaluation.inputs import InputSet, find_inputs
from modelworks.optimizer.evaluation.latency import paired_latency
from modelworks.optimizer.evaluation.original import Original
from modelworks.optimizer.evaluation.profile import operator_times
from modelworks.optimizer.evaluation.session import Runnable, Session
from modelworks.optimizer.measurement import (
    Agreement,
    CandidateMeasurement,
    Latency,
    Machine,
    Profile,
    Size,
    TargetMeasurement,
)
from modelworks.optimizer.onnx_file import external_files, model_bytes
from modelworks.optimizer.order import Order
from modelworks.optimizer.passes import PASSES, Candidate, PassSpec, WorkError
from modelworks.optimizer.verdict import choose

Report = Callable[[str, float], None]
"""Told a stage and how much of it is done."""

# Enough distinct feeds that a run does not find its own last input in the cache; few enough to stay in memory.
_FEEDS = 8
_PROBE_ROUNDS = 5


@dataclass
class _Bench:
    """What all candidates of a target are measured with."""

    order: Order
    root: Path
    source: Original
    original: Runnable
    """The source with the threads that are timed."""
    inputs: InputSet

    @property
    def batches(self) -> tuple[int, ...]:
        return (1,) if self.inputs.whole else self.order.effort.batches

    @property
    def batch(self) -> int:
        """Inputs a run when answers are compared."""
        return max(self.batches)

    def feeds(self, batch: int) -> list[dict[str, Any]]:
        if self.inputs.whole:
            return [self.inputs.feed(number % self.inputs.samples, 1) for number in range(_FEEDS)]
        return [self.inputs.repeated(number * batch, batch) for number in range(_FEEDS)]

    def latency(self, variant: Runnable, batch: int, *, rounds: int) -> Latency:
        effort = self.order.effort
        return paired_latency(
            self.original, variant, self.feeds(batch), batch=batch, threads=effort.threads, rounds=rounds,
            seconds_max=effort.seconds_max,
        )  # fmt: skip

    @property
    def threads_compare(self) -> int:
        return self.order.effort.threads_compare or os.cpu_count() or 1

    def original_answers(
        self, samples: int, *, tick: Callable[[float], None] = lambda _: None, seconds_max: float = math.inf
    ) -> Reference:
        model = self.source.open(threads=self.threads_compare)
        return self._answers(model, samples, tick=tick, seconds_max=seconds_max)

    def answers(self, path: Path, samples: int, *, tick: Callable[[float], None] = lambda _: None) -> Reference:
        return self._answers(Session(path, threads=self.threads_compare), samples, tick=tick, seconds_max=math.inf)

    def _answers(
        self, model: Runnable, samples: int, *, tick: Callable[[float], None], seconds_max: float
    ) -> Reference:
        effort = self.order.effort
        return answers(
            model, self.inputs, samples=samples, batch=self.batch, bytes_max=effort.output_bytes_max,
            seconds_max=seconds_max, tick=tick,
        )  # fmt: skip

    def compare(self, original: Reference, variant: Reference, samples: int) -> Agreement:
        return compare(
            original, variant, names=self.original.outputs, declared=self.order.outputs, samples=samples,
            batch=self.batch, whole=self.inputs.whole,
        )  # fmt: skip


def process_target(order: Order, target: str, machine: Machine, report: Report) -> TargetMeasurement:
    """Build the variant of one file in `variant/` and measure it.

    Raises:
        WorkError: the file is no model, does not run, or the pass refuses it.
    """
    root = Path(order.folder)
    path = root / "source" / target
    spec = PASSES[order.pass_name]
    report(spec.stage, 0.0)
    _require_modules(order.pass_name, spec)
    options = import_module(spec.module).Options.model_validate(order.options)
    source: Original = import_module(spec.takes.module).open_original(path, options=options)
    original = source.open(threads=order.effort.threads)
    inputs, notes = find_inputs(
        original,
        arrays=[root / "source" / path for path in order.arrays],
        files=[root / "source" / path for path in order.files],
        declared=order.inputs,
        samples_max=order.effort.samples_max,
        root=root / "source",
    )
    bench = _Bench(order, root, source, original, inputs)
    scratch = root / "candidates"
    made: list[Candidate] = list(import_module(spec.module).build(path, scratch, options=options, machine=machine))
    report("evaluate", 0.0)
    measured, kept = _probe(bench, made, report)
    variant = spec.takes.variant_path(target)
    _install(made[kept].path, root / "variant" / variant)
    shutil.rmtree(scratch)
    return _measure(bench, variant, measured, notes, report)


def _require_modules(name: str, spec: PassSpec) -> None:
    missing = [module for module in spec.needs if find_spec(module) is None]
    if missing:
        raise WorkError(
            "extra-missing",
            f"pass {name} needs {', '.join(missing)}, which the optimizer's Python does not have: install the extra "
            f"{spec.extra!r} there (pip install 'modelworks[{spec.extra}]')",
        )


def _probe(bench: _Bench, made: list[Candidate], report: Report) -> tuple[list[CandidateMeasurement], int]:
    """A short look at every candidate, and the index of the one to keep."""
    samples = min(bench.order.effort.probe_samples, bench.inputs.samples)
    original_bytes = bench.source.size_bytes
    reference = bench.original_answers(samples) if len(made) > 1 else ()
    measured: list[CandidateMeasurement] = []
    for number, candidate in enumerate(made):
        ratio = round(original_bytes / model_bytes(candidate.path), 4)
        found: dict[str, Any] = {"name": candidate.name, "facts": candidate.facts, "size_ratio": ratio, "chosen": False}
        if len(made) > 1:
            try:
                compared = bench.compare(reference, bench.answers(candidate.path, samples), samples)
                session = Session(candidate.path, threads=bench.order.effort.threads)
                found["agreement"], found["cosine_mean"] = compared.agreement, compared.cosine_mean
                found["latency_ratio"] = bench.latency(session, bench.batches[0], rounds=_PROBE_ROUNDS).ratio
            except WorkError as error:
                found["refused"] = error.message[:300]
        measured.append(CandidateMeasurement(**found))
        report("evaluate", 0.3 * (number + 1) / len(made))
    refusals = [candidate.refused for candidate in measured if candidate.refused]
    if len(refusals) == len(measured):
        raise WorkError("variant-not-runnable", f"the runtime refuses every candidate: {refusals[0]}")
    kept = choose(measured, bench.order.rules)
    return [c.model_copy(update={"chosen": n == kept}) for n, c in enumerate(measured)], kept


def _measure(
    bench: _Bench, path: str, measured: list[CandidateMeasurement], notes: tuple[str, ...], report: Report
) -> TargetMeasurement:
    variant_path = bench.root / "variant" / path
    try:
        variant = Session(variant_path, threads=bench.order.effort.threads)
    except WorkError as error:
        raise WorkError("variant-not-runnable", error.message) from error
    agreement, cut_short = _agreement(bench, variant_path, report)
    points = []
    for number, batch in enumerate(bench.batches):
        points.append(bench.latency(variant, batch, rounds=bench.order.effort.rounds))
        report("evaluate", 0.7 + 0.25 * (number + 1) / len(bench.batches))
    notes = (*notes, *cut_short)
    if bench.inputs.whole:
        notes = (*notes, "The model's first dimension is fixed, so only one batch size could be timed.")
    feed, threads = bench.feeds(bench.batches[0])[0], bench.order.effort.threads
    original_bytes, variant_bytes = bench.source.size_bytes, model_bytes(variant_path)
    return TargetMeasurement(
        path=path,
        candidates=tuple(measured),
        inputs=bench.inputs.about,
        size=Size(
            original_bytes=original_bytes, variant_bytes=variant_bytes, ratio=round(original_bytes / variant_bytes, 4)
        ),
        latency=tuple(points),
        agreement=agreement,
        profile=Profile(
            original=bench.source.operator_times(feed, threads=threads, folder=bench.root),
            variant=operator_times(variant_path, feed, threads=threads, folder=bench.root),
        ),
        beside_original=_shown(bench.source.beside, bench.root / "source"),
        beside_variant=_shown(external_files(variant_path), bench.root / "variant"),
        notes=notes,
    )


def _agreement(bench: _Bench, variant: Path, report: Report) -> tuple[Agreement, tuple[str, ...]]:
    """The agreement on as many inputs as the time allows, and a note when those are not all."""
    samples, seconds = bench.inputs.samples, bench.order.effort.seconds_compare_max
    original = bench.original_answers(
        samples, tick=lambda share: report("evaluate", 0.3 + 0.2 * share), seconds_max=seconds
    )
    step = 1 if bench.inputs.whole else bench.batch
    done = min(samples, len(original) * step)
    answered = bench.answers(variant, done, tick=lambda share: report("evaluate", 0.5 + 0.2 * share))
    found = bench.compare(original, answered, done)
    if done == samples:
        return found, ()
    return found, (f"Answers were compared on {done} of {samples} inputs, chosen at random: {seconds:g} s were over.",)


def _shown(files: list[Path], root: Path) -> tuple[str, ...]:
    return tuple(str(file.relative_to(root.resolve())) for file in files)


def _install(candidate: Path, into: Path) -> None:
    """Move the candidate and the files beside it that hold its tensors to where the variant lies."""
    into.parent.mkdir(parents=True, exist_ok=True)
    for file in external_files(candidate):
        shutil.move(file, into.parent / file.name)
    shutil.move(candidate, into)
