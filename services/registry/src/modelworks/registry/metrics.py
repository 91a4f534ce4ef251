"""What the registry counts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class Metrics:
    """Counters of one registry service, on its process's metrics registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.commits = Counter("modelworks_registry_commits", "Commits made", registry=registry)
        self.ref_moves = Counter(
            "modelworks_registry_ref_moves", "Branches and tags made, moved or deleted", ["kind"], registry=registry
        )
        self.move_conflicts = Counter(
            "modelworks_registry_move_conflicts", "Ref moves that found another writer first", registry=registry
        )
        self.uploads = Counter(
            "modelworks_registry_uploads", "Uploads by outcome: stored, or the reason of the refusal", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self.uploaded_bytes = Counter("modelworks_registry_uploaded_bytes", "Bytes received", registry=registry)
        self.downloaded_bytes = Counter("modelworks_registry_downloaded_bytes", "Bytes sent", registry=registry)
        self.damaged_reads = Counter(
            "modelworks_registry_damaged_reads",
            "Downloads cut off because the bytes lack their digest",
            registry=registry,
        )
        self.hidden = Counter(
            "modelworks_registry_hidden", "Private repositories answered as if they did not exist", registry=registry
        )
