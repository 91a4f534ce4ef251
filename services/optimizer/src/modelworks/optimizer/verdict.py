"""Rules on measurements: whether the variant is promoted, and what a reader should know about it, in sentences.

Pure: the same measurement and rules give the same verdict. A variant that was
compared on random inputs only is never promoted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from modelworks.optimizer.measurement import (
    CandidateMeasurement,
    Latency,
    Machine,
    Measurement,
    TargetMeasurement,
    Value,
)
from modelworks.optimizer.recipe import Rules

# Sizes and times nearer than this are the same for choosing among candidates.
_SAME_SIZE = 0.02
# A machine noisier than this says so in the findings.
_NOISY_SPREAD = 0.25
# Integer kinds of operator, and the kind they stand in for.
_REPLACES = {
    "ConvInteger": "Conv", "MatMulInteger": "MatMul", "DynamicQuantizeMatMul": "MatMul", "MatMulIntegerToFloat": "MatMul",
    "DynamicQuantizeLSTM": "LSTM",
}  # fmt: skip


class RuleResult(Value):
    """One rule and how it came out."""

    rule: str
    wanted: int | float | str
    measured: int | float | str | None
    passed: bool


class Verdict(Value):
    """The decision with its reasons."""

    verdict: Literal["promote", "keep"]
    summary: str
    """One line for lists and commit messages."""
    rules: tuple[RuleResult, ...]
    findings: tuple[str, ...]


def judge(measurement: Measurement, rules: Rules, *, recipe: str) -> Verdict:
    """The verdict on all targets together: each rule is checked on the worst of them."""
    results = tuple(_check(measurement, rules))
    promoted = all(result.passed for result in results)
    findings: list[str] = []
    for target in measurement.targets:
        findings += _findings(target, measurement.machine, recipe, many=len(measurement.targets) > 1)
    broken = [result.rule for result in results if not result.passed]
    ending = "all rules hold" if promoted else f"not met: {', '.join(broken)}"
    summary = (
        f"{times_smaller(measurement.size_ratio)}, {times_faster(measurement.latency_ratio)}, "
        f"agrees on {percent(measurement.agreement)}; {ending}"
    )
    return Verdict(verdict="promote" if promoted else "keep", summary=summary, rules=results, findings=tuple(findings))


def _check(measurement: Measurement, rules: Rules) -> list[RuleResult]:
    targets = measurement.targets
    cosines = [target.agreement.cosine_mean for target in targets]
    cosine = min((value for value in cosines if value is not None), default=None)
    batched = max(target.latency[-1].ratio for target in targets)
    samples = min(target.agreement.samples for target in targets)
    real = all(target.inputs.source != "synthetic" for target in targets)
    finite = all(target.agreement.original_not_finite == 0 for target in targets)
    wanted: list[tuple[str, float | None, float | None, bool]] = [
        ("min_agreement", rules.min_agreement, measurement.agreement, True),
        ("min_cosine_mean", rules.min_cosine_mean, cosine, True),
        ("max_latency_ratio", rules.max_latency_ratio, measurement.latency_ratio, False),
        ("max_latency_ratio_batched", rules.max_latency_ratio_batched, batched, False),
        ("min_size_ratio", rules.min_size_ratio, measurement.size_ratio, True),
        ("min_samples", rules.min_samples, samples, True),
    ]
    results = [
        RuleResult(
            rule=rule, wanted=limit, measured=None if value is None else round(value, 4),
            passed=value is not None and (value >= limit if least else value <= limit),
        )
        for rule, limit, value, least in wanted
        if limit is not None
    ]  # fmt: skip
    results.append(
        RuleResult(rule="real_inputs", wanted="yes", measured="yes" if real else "synthetic only", passed=real)
    )
    if not finite:
        results.append(RuleResult(rule="finite_original", wanted="yes", measured="NaN or infinity", passed=False))
    return results


def choose(candidates: Sequence[CandidateMeasurement], rules: Rules) -> int:
    """The index of the candidate to keep: first those that meet the rules, then by what the rules prefer.

    Candidates that were refused are never chosen; there must be one that was not.
    """

    def rank(index: int) -> tuple[int, float, float]:
        candidate = candidates[index]
        latency, agreement = candidate.latency_ratio or 1.0, candidate.agreement or 0.0
        alike = rules.min_agreement is None or agreement >= rules.min_agreement
        if rules.min_cosine_mean is not None and candidate.cosine_mean is not None:
            alike = alike and candidate.cosine_mean >= rules.min_cosine_mean
        quick = rules.max_latency_ratio is None or latency <= rules.max_latency_ratio
        small = rules.min_size_ratio is None or candidate.size_ratio >= rules.min_size_ratio
        broken = 2 * (not alike) + (not (quick and small))
        if rules.prefer == "latency":
            return broken, latency, -candidate.size_ratio
        return broken, -round(candidate.size_ratio / (best * _SAME_SIZE)), latency

    usable = [index for index, candidate in enumerate(candidates) if candidate.refused is None]
    best = max(candidates[index].size_ratio for index in usable)
    return min(usable, key=rank)


def _findings(target: TargetMeasurement, machine: Machine, recipe: str, *, many: bool) -> list[str]:
    size, latency, agreement = target.size, target.latency[0], target.agreement
    subject = f"{recipe} ({target.path})" if many else recipe
    real = {"repository": "", "derived": "", "synthetic": " random"}[target.inputs.source]
    sentences = [
        f"{subject} is {times_smaller(size.ratio)} ({size.variant_bytes:,} of {size.original_bytes:,} bytes), agrees on "
        f"{percent(agreement.agreement)} of {agreement.samples}{real} inputs, and is {times_faster(latency.ratio)} at "
        f"batch {latency.batch} on this CPU ({_isa(machine)})."
    ]
    sentences += [_latency_sentence(point) for point in target.latency]
    sentences += _reason(target, machine)
    sentences += _others(target)
    sentences += _fidelity(target)
    if latency.spread > _NOISY_SPREAD or latency.cpu_share < 0.8 * min(latency.threads, machine.cores):
        sentences.append(
            f"The machine was busy while timing (load {latency.load_average:g}, spread {percent(latency.spread)}): "
            "the ratios are paired and hold better than the milliseconds."
        )
    sentences += target.notes
    return sentences


def _latency_sentence(point: Latency) -> str:
    return (
        f"Batch {point.batch}: {point.original_ms:.3g} ms before, {point.variant_ms:.3g} ms after; ratio {point.ratio:.2f} "
        f"(95 % between {point.ratio_low:.2f} and {point.ratio_high:.2f}, {point.rounds} interleaved rounds, "
        f"{point.threads} thread{'s' if point.threads > 1 else ''})."
    )


def _reason(target: TargetMeasurement, machine: Machine) -> list[str]:
    """Why it is slower, as far as the profile and the processor say."""
    if target.latency[0].ratio_low <= 1.0 or not target.profile.original:
        return []
    before = {entry.operator: entry.ms for entry in target.profile.original}
    grown = []
    for entry in target.profile.variant:
        replaced = before.get(entry.operator, before.get(_REPLACES.get(entry.operator, ""), 0.0))
        grown.append(
            (entry.ms - replaced, f"{entry.operator} (+{entry.ms - replaced:.2g} ms to {entry.ms:.3g} ms a run)")
        )
    worst = [text for extra, text in sorted(grown, reverse=True)[:2] if extra > 0.1 * target.latency[0].original_ms]
    sentences = [f"What makes it slow: {' and '.join(worst)}."] if worst else []
    if machine.saturates:
        sentences.append("This CPU has no VNNI, so int8 products gain nothing over floating point.")
    elif machine.int8_dot is not None:
        sentences.append(
            f"This CPU has {machine.int8_dot}, so missing int8 instructions are not the reason: the runtime's kernels are."
        )
    return sentences


def _others(target: TargetMeasurement) -> list[str]:
    """What else was tried."""
    tried = [
        f"{candidate.name} (refused: {candidate.refused})"
        if candidate.refused
        else f"{candidate.name} ({times_smaller(candidate.size_ratio)}, {times_faster(candidate.latency_ratio or 1.0)}, "
        f"agreed on {percent(candidate.agreement or 0.0)} in the probe)"
        for candidate in target.candidates
        if not candidate.chosen
    ]
    return [f"Kept {target.chosen.name}; also tried: {', '.join(tried)}."] if tried else []


def _fidelity(target: TargetMeasurement) -> list[str]:
    agreement = target.agreement
    sentences = []
    if target.inputs.source == "synthetic":
        sentences.append(
            "The repository holds no evaluation inputs, so agreement was taken on random numbers, which says little; the "
            "variant is not promoted. Put arrays named as the inputs into evaluation/inputs.npz."
        )
    if agreement.original_not_finite:
        sentences.append(
            f"The original itself answers {agreement.original_not_finite} of {agreement.samples} inputs with NaN or "
            "infinity: they count as disagreement, and the variant is not promoted."
        )
    if agreement.variant_not_finite:
        sentences.append(f"The variant answers {agreement.variant_not_finite} inputs with NaN or infinity.")
    for output in agreement.outputs:
        if output.neighbours is not None and output.neighbours < 0.95:
            sentences.append(
                f"Output {output.name} changes {percent(1 - output.neighbours)} of the ten nearest neighbours although its "
                f"mean cosine is {output.cosine_mean:.4f}: measure retrieval before trusting it."
            )
        if not output.declared and output.kind in ("classes", "vectors"):
            sentences.append(
                f"Output {output.name} was taken for {output.kind}; say otherwise under evaluation.outputs in modelworks.yaml."
            )
    return sentences


def _isa(machine: Machine) -> str:
    if not machine.flags_known:
        return f"{machine.architecture}, instruction sets unknown"
    if machine.int8_dot:
        return f"{machine.architecture} with {machine.int8_dot}"
    return f"{machine.architecture}, no VNNI" if machine.saturates else machine.architecture


def times_smaller(ratio: float) -> str:
    """`3.8x smaller`, `1.1x LARGER`, or `as large`."""
    if abs(ratio - 1) < 0.005:
        return "as large as the original"
    return f"{ratio:.2f}x smaller" if ratio > 1 else f"{1 / ratio:.2f}x LARGER"


def times_faster(ratio: float) -> str:
    """`1.8x faster` or `1.5x SLOWER`, from variant over original."""
    if abs(ratio - 1) < 0.005:
        return "as fast as the original"
    return f"{1 / ratio:.2f}x faster" if ratio < 1 else f"{ratio:.2f}x SLOWER"


def percent(share: float) -> str:
    """`99.8 %`; never rounded up to 100."""
    return f"{100 * share:.4g} %" if share == 1 else f"{int(share * 1000) / 10:g} %"
