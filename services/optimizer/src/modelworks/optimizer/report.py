"""The report beside a variant: JSON for programs, Markdown for people, and a small picture."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from modelworks.optimizer.domain import Job
from modelworks.optimizer.measurement import Measurement, TargetMeasurement
from modelworks.optimizer.recipe import Rules
from modelworks.optimizer.verdict import Verdict, percent

SCHEMA = 1
"""Version of the report's JSON; grows when a property changes its meaning."""


def report_of(job: Job, measurement: Measurement, verdict: Verdict, rules: Rules) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        "schema": SCHEMA,
        "job": job.id,
        "repository": job.repository,
        "source_revision": job.revision,
        "recipe": job.recipe,
        "verdict": verdict.verdict,
        "summary": verdict.summary,
        "size_ratio": round(measurement.size_ratio, 4),
        "latency_ratio": round(measurement.latency_ratio, 4),
        "agreement": round(measurement.agreement, 6),
        "findings": list(verdict.findings),
        "rules": rules.model_dump(mode="json"),
        "rules_checked": [result.model_dump(mode="json") for result in verdict.rules],
        **measurement.model_dump(mode="json", exclude_none=True),
    }


def as_json(report: dict[str, Any]) -> bytes:
    """The bytes of `report.json`."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def as_markdown(job: Job, measurement: Measurement, verdict: Verdict) -> bytes:
    """The bytes of `report.md`."""
    lines = [
        f"# {job.repository}: {job.recipe_name}",
        "",
        f"**{verdict.verdict}**: {verdict.summary}.",
        "",
        "![Original and variant](report.svg)",
        "",
        "## Findings",
        "",
        *[f"- {sentence}" for sentence in verdict.findings],
        "",
        "## Rules",
        "",
        "| rule | wanted | measured | holds |",
        "|---|---|---|---|",
        *[f"| {r.rule} | {r.wanted} | {r.measured} | {'yes' if r.passed else '**no**'} |" for r in verdict.rules],
        "",
    ]
    for target in measurement.targets:
        lines += _target(target)
    machine = measurement.machine
    lines += [
        "## How it was measured",
        "",
        f"- Source revision `{job.revision}`, job `{job.id}`.",
        f"- {machine.cpu}, {machine.cores} cores, {machine.architecture}; instruction sets: "
        f"{', '.join(machine.flags) or 'unknown'}.",
        f"- {', '.join(f'{name} {version}' for name, version in measurement.versions.items())}.",
        f"- Worker: {measurement.seconds:.1f} s, at most {measurement.memory_bytes_peak / 1e6:.0f} MB resident.",
        "- Latency: both models run in turns, the order changing each round; the ratio is the median over the rounds' "
        "ratios, its interval a bootstrap over the rounds.",
        "",
    ]
    return "\n".join(lines).encode()


def _target(target: TargetMeasurement) -> list[str]:
    size, agreement = target.size, target.agreement
    lines = [
        f"## {target.path}",
        "",
        "| | original | variant | ratio |",
        "|---|---:|---:|---|",
        f"| size, bytes | {size.original_bytes:,} | {size.variant_bytes:,} | {size.ratio:.2f} (original / variant) |",
    ]
    lines += [
        f"| latency, batch {p.batch}, {p.threads} thread(s), ms | {p.original_ms:.3f} | {p.variant_ms:.3f} | "
        f"{p.ratio:.3f} [{p.ratio_low:.3f} to {p.ratio_high:.3f}] (variant / original; load {p.load_average:g}, "
        f"spread {percent(p.spread)}) |"
        for p in target.latency
    ]
    lines += [
        "",
        f"Compared on {agreement.samples} inputs ({target.inputs.source}: {target.inputs.description}), "
        f"{agreement.batch} a run: {percent(agreement.agreement)} agree.",
        "",
        "| output | kind | agreement | cosine mean | cosine min | largest difference | neighbours | rank correlation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {o.name} | {o.kind}{'' if o.declared else ' (guessed)'} | {percent(o.agreement)} | {_number(o.cosine_mean)} | "
        f"{_number(o.cosine_min)} | {_number(o.difference_max)} | {_number(o.neighbours)} | "
        f"{_number(o.rank_correlation)} |"
        for o in agreement.outputs
    ]
    lines += ["", "| candidate | smaller | latency ratio | agreement | kept |", "|---|---|---|---|---|"]
    lines += [
        f"| {c.name} | {c.size_ratio:.2f} | {_number(c.latency_ratio)} | {_number(c.agreement)} | "
        f"{'yes' if c.chosen else c.refused or ''} |"
        for c in target.candidates
    ]
    lines += ["", "| operator | original, ms a run | variant, ms a run |", "|---|---|---|"]
    before = {entry.operator: entry.ms for entry in target.profile.original}
    after = {entry.operator: entry.ms for entry in target.profile.variant}
    lines += [
        f"| {operator} | {_number(before.get(operator))} | {_number(after.get(operator))} |"
        for operator in dict.fromkeys([*before, *after])
    ]
    return [*lines, ""]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


_WIDTH, _ROW, _LEFT, _BAR = 640, 46, 150, 360
_GREY, _BLUE, _RED = "#9aa5b1", "#2f6fb0", "#c2452d"


def as_svg(measurement: Measurement) -> bytes:
    """The bytes of `report.svg`: a pair of bars each for size, latency and agreement; red is worse than the original."""
    rows: list[tuple[str, float, float, str, str, bool]] = []
    for target in measurement.targets:
        label = target.path if len(measurement.targets) > 1 else ""
        size = target.size
        rows.append((
            f"{label} size", size.original_bytes, size.variant_bytes, _bytes(size.original_bytes),
            _bytes(size.variant_bytes), size.variant_bytes > size.original_bytes,
        ))  # fmt: skip
        rows += [
            (f"{label} batch {p.batch}", p.original_ms, p.variant_ms, f"{p.original_ms:.3g} ms", f"{p.variant_ms:.3g} ms",
             p.variant_ms > p.original_ms)
            for p in target.latency
        ]  # fmt: skip
        agreement = target.agreement.agreement
        rows.append((f"{label} agreement", 1.0, agreement, "100 %", percent(agreement), agreement < 0.99))
    height = _ROW * len(rows) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="18" fill="#52606d">grey: original; blue: variant; red: variant, worse</text>',
    ]
    for number, (label, before, after, before_text, after_text, worse) in enumerate(rows):
        top = 30 + number * _ROW
        most = max(before, after) or 1.0
        parts.append(f'<text x="{_LEFT - 10}" y="{top + 21}" text-anchor="end">{escape(label.strip()[-24:])}</text>')
        for row, value, text, colour in (
            (0, before, before_text, _GREY),
            (1, after, after_text, _RED if worse else _BLUE),
        ):
            width, y = max(1.0, _BAR * value / most), top + 16 * row
            parts.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="14" fill="{colour}"/>')
            parts.append(f'<text x="{_LEFT + width + 6:.1f}" y="{y + 12}" fill="#323f4b">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>", ""]).encode()


def _bytes(count: int) -> str:
    if count < 1e6:
        return f"{count / 1e3:.3g} kB"
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"
