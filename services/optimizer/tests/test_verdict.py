"""Verdicts and findings: what the report says by itself, from the figures alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest
from modelworks.optimizer import domain
from modelworks.optimizer.machine import read_machine
from modelworks.optimizer.measurement import CandidateMeasurement, Measurement
from modelworks.optimizer.recipe import Rules, parse_recipe
from modelworks.optimizer.report import as_json, as_markdown, as_svg, report_of
from modelworks.optimizer.verdict import choose, judge, percent, times_faster, times_smaller

Measured = Callable[..., Measurement]


def broken(measurement: Measurement, rules: Rules | None = None) -> list[str]:
    return [r.rule for r in judge(measurement, rules or Rules(), recipe="int8").rules if not r.passed]


def test_smaller_faster_and_alike_is_promoted(measured: Measured) -> None:
    verdict = judge(measured(), Rules(), recipe="int8")

    assert verdict.verdict == "promote"
    assert verdict.summary == "3.80x smaller, 1.67x faster, agrees on 100 %; all rules hold"


@pytest.mark.parametrize(
    ("figures", "rule"),
    [
        ({"latency": 1.11}, "max_latency_ratio"),
        ({"agreement": 0.989}, "min_agreement"),
        ({"size": 1.19}, "min_size_ratio"),
        ({"samples": 19}, "min_samples"),
        ({"source": "synthetic"}, "real_inputs"),
        ({"bad_original": 1}, "finite_original"),
    ],
)
def test_each_rule_alone_keeps_the_original(measured: Measured, figures: dict[str, float], rule: str) -> None:
    assert broken(measured(**figures)) == [rule]
    assert judge(measured(**figures), Rules(), recipe="int8").verdict == "keep"


def test_figure_on_the_limit_holds(measured: Measured) -> None:
    assert broken(measured(latency=1.1, agreement=0.99, size=1.2, samples=20)) == []


def test_rule_that_is_switched_off_is_not_checked(measured: Measured) -> None:
    assert broken(measured(latency=5.0), Rules(max_latency_ratio=None)) == []


def test_rule_on_a_figure_that_was_not_measured_does_not_hold(measured: Measured) -> None:
    assert broken(measured(), Rules(min_cosine_mean=0.9)) == ["min_cosine_mean"]
    assert broken(measured(cosine=0.95), Rules(min_cosine_mean=0.9)) == []


def test_batched_rule_looks_at_the_largest_batch(measured: Measured) -> None:
    assert broken(measured(batched=1.5), Rules(max_latency_ratio_batched=1.0)) == ["max_latency_ratio_batched"]


def test_random_inputs_never_promote_even_when_every_rule_is_off(measured: Measured) -> None:
    """INVARIANT: agreement on noise proves nothing; a rule set without `real_inputs` would break it."""
    rules = Rules(min_agreement=None, max_latency_ratio=None, min_size_ratio=None, min_samples=1)

    verdict = judge(measured(source="synthetic"), rules, recipe="int8")

    assert verdict.verdict == "keep"
    assert any("random numbers" in sentence for sentence in verdict.findings)


def test_several_targets_are_judged_by_the_worst(measured: Measured) -> None:
    good, bad = measured(), measured(latency=2.0, agreement=0.5, path="decoder.onnx")
    both = good.model_copy(update={"targets": good.targets + bad.targets})

    assert broken(both) == ["min_agreement", "max_latency_ratio"]
    assert "int8 (decoder.onnx)" in " ".join(judge(both, Rules(), recipe="int8").findings)


def test_slow_variant_without_vnni_is_explained_by_it(measured: Measured) -> None:
    findings = judge(measured(latency=3.0), Rules(), recipe="int8").findings

    assert findings[0] == (
        "int8 is 3.80x smaller (1,000,000 of 3,800,000 bytes), agrees on 100 % of 600 inputs, and is 3.00x SLOWER at "
        "batch 1 on this CPU (x86_64, no VNNI)."
    )
    assert "This CPU has no VNNI, so int8 products gain nothing over floating point." in findings
    assert any(sentence.startswith("What makes it slow: ConvInteger (+8 ms") for sentence in findings)


def test_slow_variant_with_vnni_is_not_blamed_on_its_absence(measured: Measured) -> None:
    findings = " ".join(judge(measured(latency=3.0, flags=("avx512_vnni",)), Rules(), recipe="int8").findings)

    assert "no VNNI" not in findings
    assert "This CPU has avx512_vnni, so missing int8 instructions are not the reason" in findings


def test_fast_variant_gets_no_excuses(measured: Measured) -> None:
    findings = " ".join(judge(measured(), Rules(), recipe="int8").findings)

    assert "What makes it slow" not in findings
    assert "VNNI, so" not in findings


def candidate(name: str, size: float, latency: float | None, agreement: float | None, refused: str | None = None):  # type: ignore[no-untyped-def]
    return CandidateMeasurement(
        name=name, facts={}, size_ratio=size, latency_ratio=latency, agreement=agreement, chosen=False, refused=refused
    )


def test_candidate_that_meets_the_rules_goes_before_a_smaller_one_that_does_not() -> None:
    found = [candidate("small", 3.8, 4.0, 1.0), candidate("quick", 1.3, 0.9, 1.0)]

    assert choose(found, Rules()) == 1


def test_of_two_as_small_the_faster_is_kept() -> None:
    found = [candidate("int8", 3.790, 4.3, 1.0), candidate("uint8", 3.789, 1.5, 1.0)]

    assert choose(found, Rules()) == 1


def test_rule_on_cosines_decides_among_candidates_too() -> None:
    found = [
        candidate("int8", 3.8, 0.5, 1.0).model_copy(update={"cosine_mean": 0.96}),
        candidate("uint8", 3.8, 0.6, 1.0).model_copy(update={"cosine_mean": 0.993}),
    ]

    assert choose(found, Rules()) == 0
    assert choose(found, Rules(min_cosine_mean=0.99)) == 1


def test_slow_export_is_not_blamed_on_int8(measured: Measured) -> None:
    """The original's operators are not the variant's: then nothing is said about the reason."""
    slow = measured(latency=2.0)
    target = slow.targets[0].model_copy(update={"profile": slow.targets[0].profile.model_copy(update={"original": ()})})

    findings = " ".join(judge(slow.model_copy(update={"targets": (target,)}), Rules(), recipe="onnx").findings)

    assert "2.00x SLOWER" in findings
    assert "What makes it slow" not in findings
    assert "int8" not in findings


def test_preference_decides_when_all_or_none_meet_the_rules() -> None:
    found = [candidate("small", 3.8, 1.0, 1.0), candidate("quick", 1.3, 0.5, 1.0)]

    assert choose(found, Rules()) == 0
    assert choose(found, Rules(prefer="latency")) == 1


def test_candidate_that_disagrees_is_the_last_resort_and_a_refused_one_none() -> None:
    found = [
        candidate("tiny", 8.0, 0.1, 0.2), candidate("broken", 9.0, None, None, refused="does not load"),
        candidate("slow", 1.1, 3.0, 1.0),
    ]  # fmt: skip

    assert choose(found, Rules()) == 2
    assert choose(found[:2], Rules()) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (percent(1.0), "100 %"), (percent(0.9999), "99.9 %"), (percent(0.995), "99.5 %"), (percent(0.0), "0 %"),
        (times_smaller(3.79), "3.79x smaller"), (times_smaller(0.5), "2.00x LARGER"), (times_smaller(1.001), "as large as the original"),
        (times_faster(0.5), "2.00x faster"), (times_faster(1.5), "1.50x SLOWER"), (times_faster(0.999), "as fast as the original"),
    ],
)  # fmt: skip
def test_figures_read_as_words(text: str, said: str) -> None:
    assert text == said


def test_report_reads_back_and_its_picture_is_well_formed(measured: Measured) -> None:
    measurement, rules = measured(latency=1.5, path="a<b>.onnx"), Rules()
    job, _ = domain.accept(
        id="opt-1", repository="a/b", revision="1" * 40, ref="main", recipe=parse_recipe("int8").state(), actor="x",
        now=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    verdict = judge(measurement, rules, recipe="int8")

    report = report_of(job, measurement, verdict, rules)

    assert json.loads(as_json(report)) == report
    assert (report["verdict"], report["latency_ratio"]) == ("keep", 1.5)
    text = as_markdown(job, measurement, verdict).decode()
    assert "| latency, batch 8, 1 thread(s), ms | 32.000 | 48.000 | 1.500" in text
    assert "| max_latency_ratio | 1.1 | 1.5 | **no** |" in text
    picture = ElementTree.fromstring(as_svg(measurement))
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}rect")) == 1 + 2 * 4


class TestMachine:
    def test_vnni_is_found(self) -> None:
        machine = read_machine(
            "model name\t: EPYC\nflags\t\t: fpu avx2 avx512f avx_vnni avx512_vnni\n", architecture="x86_64"
        )

        assert (machine.cpu, machine.int8_dot, machine.saturates) == ("EPYC", "avx512_vnni", False)

    def test_x86_without_vnni_saturates(self) -> None:
        machine = read_machine("model name\t: EPYC\nflags\t\t: fpu avx2 vnni_like\n", architecture="x86_64")

        assert (machine.int8_dot, machine.saturates, machine.flags) == (None, True, ("avx2",))

    def test_arm_lists_features(self) -> None:
        machine = read_machine("Features\t: fp asimd asimddp\n", architecture="aarch64")

        assert (machine.int8_dot, machine.saturates) == ("asimddp", False)

    def test_system_that_does_not_say_is_unknown_not_absent(self) -> None:
        assert not read_machine("", architecture="arm64").flags_known
