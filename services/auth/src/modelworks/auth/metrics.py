"""What the token endpoint counts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram


class TokenMetrics:
    """Counters of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.issued = Counter("modelworks_auth_tokens_issued", "Tokens issued", ["audience"], registry=registry)
        self.refused = Counter(
            "modelworks_auth_tokens_refused", "Token requests refused, by OAuth error", ["error"], registry=registry
        )
        self.seconds = Histogram(
            "modelworks_auth_token_seconds", "Time to decide a token request, its audit event included",
            registry=registry, buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
        )  # fmt: skip
