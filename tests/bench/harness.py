"""Pairs a figure with its baseline: alternating rounds, the ratio of each pair, its median and its spread.

These machines are shared, so a rate alone says little; a ratio of two things
measured within the same seconds says more. Nothing here passes or fails.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

Measure = Callable[[], Awaitable[float]]
"""Does the work once and returns its figure."""


@dataclass(frozen=True)
class Result:
    """One figure and its baseline."""

    name: str
    unit: str
    ours: float
    """Median."""
    baseline_name: str
    baseline: float
    """Median."""
    ratio: float
    """Median over the rounds of ours / baseline."""
    ratio_low: float
    ratio_high: float
    rounds: int
    goal: str = ""
    notes: dict[str, float | str] = field(default_factory=dict)


async def paired(
    name: str,
    *,
    unit: str,
    ours: Measure,
    baseline_name: str,
    baseline: Measure,
    rounds: int = 5,
    goal: str = "",
) -> Result:
    """Measure both in alternating order (A B, B A, ...), after one discarded round."""
    await ours()
    await baseline()
    pairs: list[tuple[float, float]] = []
    for number in range(rounds):
        if number % 2:
            base = await baseline()
            mine = await ours()
        else:
            mine = await ours()
            base = await baseline()
        pairs.append((mine, base))
    return summarize(name, unit, pairs, baseline_name, goal)


def summarize(name: str, unit: str, pairs: Sequence[tuple[float, float]], baseline_name: str, goal: str) -> Result:
    """Medians of the figures and of their ratios."""
    ratios = [mine / base if base else float("inf") for mine, base in pairs]
    return Result(
        name=name, unit=unit, ours=statistics.median(mine for mine, _ in pairs), baseline_name=baseline_name,
        baseline=statistics.median(base for _, base in pairs), ratio=statistics.median(ratios),
        ratio_low=min(ratios), ratio_high=max(ratios), rounds=len(pairs), goal=goal,
    )  # fmt: skip


def machine() -> dict[str, str | float]:
    """What the figures were taken on."""
    model = "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "commit": commit.stdout.strip(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def resident_mb(pid: int) -> float:
    """Resident memory of a process, MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def document(results: Sequence[Result]) -> dict[str, object]:
    """Everything, for the JSON file."""
    return {"machine": machine(), "results": [asdict(result) for result in results]}
