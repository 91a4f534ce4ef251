"""Counts and nanoseconds of one loaded model, in the terms of the V2 statistics extension."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

_EWMA_WEIGHT = 0.2
"""Of the newest sample: about ten batches decide."""


@dataclass(slots=True)
class Duration:
    """A count and the nanoseconds of all of them together."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Add `count` events that took `seconds` together."""
        self.count += count
        self.ns += int(seconds * 1e9)

    def described(self) -> dict[str, int]:
        """As V2 writes it."""
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class BatchStatistics:
    """Executions of one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class Statistics:
    """One loaded model's figures since it was loaded."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    inference_count: int = 0
    """Rows."""
    execution_count: int = 0
    """Batches."""
    last_inference: float = 0.0
    """Wall clock, seconds since the epoch; 0 before the first."""
    batches: dict[int, BatchStatistics] = field(default_factory=dict)
    """By rows; at most as many keys as rows fit a batch."""

    def ran(self, rows: int, *, prepare_seconds: float, infer_seconds: float, split_seconds: float) -> None:
        """A batch ended well."""
        self.execution_count += 1
        self.inference_count += rows
        self.last_inference = time.time()
        batch = self.batches.setdefault(rows, BatchStatistics())
        for name, seconds in (
            ("compute_input", prepare_seconds), ("compute_infer", infer_seconds), ("compute_output", split_seconds)
        ):  # fmt: skip
            getattr(self, name).add(seconds)
            getattr(batch, name).add(seconds)

    def described(self, name: str, version: str, memory_bytes: int) -> dict[str, Any]:
        """One entry of V2's `model_stats`."""
        none = Duration().described()
        return {
            "name": name,
            "version": version,
            "last_inference": int(self.last_inference * 1000),
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            "inference_stats": {
                "success": self.success.described(),
                "fail": self.fail.described(),
                "queue": self.queue.described(),
                "compute_input": self.compute_input.described(),
                "compute_infer": self.compute_infer.described(),
                "compute_output": self.compute_output.described(),
                "cache_hit": none,
                "cache_miss": none,
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": batch.compute_input.described(),
                    "compute_infer": batch.compute_infer.described(),
                    "compute_output": batch.compute_output.described(),
                }
                for rows, batch in sorted(self.batches.items())
            ],
            "memory_usage": [{"type": "CPU", "id": 0, "byte_size": memory_bytes}],
        }


class ServiceTime:
    """Seconds that a row takes, learned from batches (exponentially weighted)."""

    def __init__(self) -> None:
        self._seconds_a_row = 0.0

    @property
    def known(self) -> bool:
        """At least one batch was seen."""
        return self._seconds_a_row > 0

    def learn(self, rows: int, seconds: float) -> None:
        """A batch of `rows` took `seconds`."""
        sample = seconds / max(rows, 1)
        self._seconds_a_row = sample if not self.known else (
            (1 - _EWMA_WEIGHT) * self._seconds_a_row + _EWMA_WEIGHT * sample
        )  # fmt: skip

    def of(self, rows: int) -> float:
        """Expected seconds; 0 before anything was learned."""
        return self._seconds_a_row * rows
