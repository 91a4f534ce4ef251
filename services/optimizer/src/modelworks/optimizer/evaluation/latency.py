"""Paired, interleaved run times: both models run in turns, so that a busy neighbour slows both alike.

Each round times both, in alternating order; the ratio is taken a round and its
median over the rounds is reported, with a bootstrap interval over the rounds.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Mapping, Sequence

from modelworks.optimizer.evaluation.session import Array, Runnable
from modelworks.optimizer.measurement import Latency

Feed = Mapping[str, Array]

_ROUND_SECONDS = 0.02
_RUNS_MAX = 200
_ROUNDS_MIN = 5
_RESAMPLES = 1000


def paired_latency(
    original: Runnable,
    variant: Runnable,
    feeds: Sequence[Feed],
    *,
    batch: int,
    threads: int,
    rounds: int,
    seconds_max: float,
) -> Latency:
    """Time both models on the same feeds.

    Args:
        rounds: how many are wanted; fewer, but at least 5, when `seconds_max` is over.
    """
    slowest = 0.0
    for model in (original, variant):
        model.run(feeds[0])
        slowest = max(slowest, _timed(model, feeds, 0, 2))
    runs = max(1, min(_RUNS_MAX, int(_ROUND_SECONDS / max(slowest, 1e-6))))
    load = os.getloadavg()[0]
    left: list[float] = []
    right: list[float] = []
    started, processor = time.perf_counter(), time.process_time()
    for number in range(rounds):
        if number >= _ROUNDS_MIN and time.perf_counter() - started > seconds_max:
            break
        pair = ((original, left), (variant, right))
        for model, times in pair if number % 2 == 0 else reversed(pair):
            times.append(_timed(model, feeds, number * runs, runs))
    wall = time.perf_counter() - started
    ratios = [after / before for before, after in zip(left, right, strict=True)]
    low, high = bootstrap(ratios)
    return Latency(
        batch=batch,
        threads=threads,
        rounds=len(ratios),
        runs=runs,
        original_ms=round(statistics.median(left) * 1000, 4),
        variant_ms=round(statistics.median(right) * 1000, 4),
        ratio=round(statistics.median(ratios), 4),
        ratio_low=round(low, 4),
        ratio_high=round(high, 4),
        spread=round(_spread(left), 4),
        load_average=round(load, 2),
        cpu_share=round((time.process_time() - processor) / max(wall, 1e-9), 3),
    )


def _timed(model: Runnable, feeds: Sequence[Feed], start: int, runs: int) -> float:
    """Median seconds of `runs` runs, going round the feeds."""
    times = []
    for number in range(runs):
        feed = feeds[(start + number) % len(feeds)]
        before = time.perf_counter()
        model.run(feed)
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median, by resampling; seeded, so that the same values give the same interval."""
    source = random.Random(0)  # noqa: S311 - statistics, not secrets
    medians = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES) - 1]


def _spread(values: Sequence[float]) -> float:
    quarters = statistics.quantiles(values, n=4)
    return (quarters[2] - quarters[0]) / statistics.median(values)
