"""Audit's metrics."""

from __future__ import annotations

from modelworks.audit.sequencer import Sequencer
from prometheus_client import CollectorRegistry, Gauge, Histogram


class Metrics:
    """All of them; made once a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.leaves = Gauge("modelworks_audit_leaves", "Leaves of the signed log", registry=registry)
        self.lag = Gauge("modelworks_audit_lag_messages", "Events that are not in the log yet", registry=registry)
        self.leading = Gauge("modelworks_audit_leading", "1 where this process sequences", registry=registry)
        self.duplicates = Gauge(
            "modelworks_audit_duplicates", "Events that were in the log already, since start", registry=registry
        )
        self.foreign = Gauge(
            "modelworks_audit_foreign_documents", "Documents found where a new leaf's belongs, since start",
            registry=registry,
        )  # fmt: skip
        self.differing = Gauge(
            "modelworks_audit_index_differences", "Differences between index and log in the last sample",
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "modelworks_audit_batch_seconds", "From a batch's arrival to its signed checkpoint", registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )  # fmt: skip

    def note(self, sequencer: Sequencer) -> None:
        """Take over the sequencer's counts."""
        self.leaves.set(sequencer.size)
        self.duplicates.set(sequencer.duplicates)
        self.foreign.set(sequencer.foreign)
