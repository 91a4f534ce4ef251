"""Where a run's time goes, by kind of operator: the reason for a slow variant is measured, never guessed."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from modelworks.optimizer.evaluation.latency import Feed
from modelworks.optimizer.evaluation.session import Session
from modelworks.optimizer.measurement import OperatorTime

_RUNS = 5
_LISTED = 5


def operator_times(path: Path, feed: Feed, *, threads: int, folder: Path) -> tuple[OperatorTime, ...]:
    """The operators that take the longest, in milliseconds a run; the first run, which allocates, is left out."""
    model = Session(path, threads=threads, profile_prefix=folder / "profile")
    for _ in range(_RUNS + 1):
        model.run(feed)
    file = model.end_profiling()
    events = json.loads(file.read_text("utf-8"))
    file.unlink()
    warm = next((event["ts"] + event["dur"] for event in events if event.get("name") == "model_run"), 0)
    totals: dict[str, int] = defaultdict(int)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= warm:
            totals[event["args"]["op_name"]] += event["dur"]
    longest = sorted(totals.items(), key=lambda pair: -pair[1])[:_LISTED]
    return tuple(OperatorTime(operator=name, ms=round(total / 1000 / _RUNS, 4)) for name, total in longest)
