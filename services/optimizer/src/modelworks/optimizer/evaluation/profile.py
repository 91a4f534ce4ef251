"""Where a run's time goes, by kind of operator: the reason for a slow variant is measured, never guessed."""

from __future__ import annotations

import json
import statistics
from bisect import bisect_left
from collections import defaultdict
from pathlib import Path

from modelworks.optimizer.evaluation.latency import Feed
from modelworks.optimizer.evaluation.session import Session
from modelworks.optimizer.measurement import OperatorTime

_RUNS = 7
_LISTED = 5


def operator_times(path: Path, feed: Feed, *, threads: int, folder: Path) -> tuple[OperatorTime, ...]:
    """The operators that take the longest, in milliseconds a run: the median run; the first, which allocates, is left out."""
    model = Session(path, threads=threads, profile_prefix=folder / "profile")
    for _ in range(_RUNS + 1):
        model.run(feed)
    file = model.end_profiling()
    events = json.loads(file.read_text("utf-8"))
    file.unlink()
    ends = [event["ts"] + event["dur"] for event in events if event.get("name") == "model_run"]
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(ends))
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            run = bisect_left(ends, event["ts"] + event["dur"])
            spent[event["args"]["op_name"]][min(run, len(ends) - 1)] += event["dur"] / 1000
    median = {operator: statistics.median(runs[1:]) for operator, runs in spent.items()}
    longest = sorted(median.items(), key=lambda pair: -pair[1])[:_LISTED]
    return tuple(OperatorTime(operator=operator, ms=round(ms, 4)) for operator, ms in longest)
