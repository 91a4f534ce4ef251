"""Settings of the optimizer (prefix `OPTIMIZER_`)."""

from __future__ import annotations

import tempfile
from pathlib import Path

from modelworks.kit.settings import Settings
from modelworks.optimizer.order import Effort
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict


class OptimizerSettings(Settings):
    """Where the registry is, what happens by itself, and how much a job may take."""

    model_config = SettingsConfigDict(env_prefix="OPTIMIZER_", frozen=True, extra="ignore", hide_input_in_errors=True)

    registry_url: str = Field("http://127.0.0.1:8080", description="Base URL of the registry, or of the edge.")
    token_url: str = Field("", description="Token endpoint. Empty: `<registry_url>/oauth/token`.")
    client_id: str = Field("optimizer", description="OAuth client of this service.")
    client_secret: SecretStr = Field(description="Its secret.")
    timeout_seconds: float = Field(60, ge=1, le=3600, description="Most wait for one answer of the registry.")

    branches: tuple[str, ...] = Field(
        ("main",), description="Branches whose commits are optimised; shell patterns, as a JSON list.", max_length=64
    )
    recipes: tuple[str, ...] = Field(
        ("int8",), description="Recipes that a commit is optimised with, as a JSON list; empty: none.", max_length=8
    )
    in_flight_max: int = Field(1, ge=1, le=64, description="Jobs that run at once in this process.")
    crashes_max: int = Field(3, ge=1, le=100, description="Starts without an end after which a job is given up.")

    work_folder: Path = Field(
        Path(tempfile.gettempdir()) / "modelworks-optimizer", description="Where models are handled; emptied after use."
    )
    download_bytes_max: int = Field(8 << 30, ge=1024, description="Most bytes of a revision that a job downloads.")
    worker_memory_bytes_max: int = Field(4 << 30, ge=128 << 20, description="Most memory of a worker process.")
    worker_seconds_max: float = Field(1800, ge=1, le=86_400, description="Most wall time of a worker process.")

    evaluation_threads: int = Field(1, ge=1, le=256, description="Threads inside an operator while timing.")
    evaluation_batches: tuple[int, ...] = Field(
        (1, 8),
        min_length=1,
        max_length=8,
        description="Batch sizes that are timed, as a JSON list; rules see the first.",
    )
    evaluation_rounds: int = Field(15, ge=5, le=1000, description="Rounds of paired timing a batch size.")
    evaluation_seconds_max: float = Field(4, gt=0, le=3600, description="Wall time of the rounds of one batch size.")
    evaluation_compare_seconds_max: float = Field(
        20,
        gt=0,
        le=86_400,
        description="Wall time of the original's answers; then those so far (64 at least) are compared.",
    )
    evaluation_samples_max: int = Field(600, ge=1, le=100_000, description="Inputs on which answers are compared.")

    progress_ms_min: int = Field(
        1000, ge=10, le=60_000, description="Least time between two saves of a job's progress."
    )
    watch_ms: int = Field(500, ge=10, le=60_000, description="How often a running or awaited job is read again.")
    waiters_max: int = Field(
        256, ge=1, le=100_000, description="Callers that may wait for jobs at once; more are answered at once."
    )

    @property
    def effort(self) -> Effort:
        """How much measuring a job may do."""
        return Effort(
            threads=self.evaluation_threads, batches=self.evaluation_batches, rounds=self.evaluation_rounds,
            seconds_max=self.evaluation_seconds_max, samples_max=self.evaluation_samples_max,
            seconds_compare_max=self.evaluation_compare_seconds_max,
        )  # fmt: skip
