"""Settings of inference."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from modelworks.kit.settings import Settings
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

_MIB = 1024 * 1024


class InferenceSettings(Settings):
    """One worker and the doors in front of it."""

    model_config = SettingsConfigDict(env_prefix="INFERENCE_", frozen=True, extra="ignore", hide_input_in_errors=True)

    registry_url: str = Field("http://127.0.0.1:8080", description="Base URL behind which the registry answers.")
    token_url: str = Field("http://127.0.0.1:8080/oauth/token", description="Token endpoint for the service's client.")
    client_id: str = Field("inference", description="OAuth client of this service.")
    client_secret: SecretStr = Field(description="Its secret.")

    worker: str = Field("", max_length=100, description="Name of this worker. Empty: host name and process id.")
    cache: Path = Field(Path("modelworks-data/models"), description="Folder that keeps downloaded model files.")
    cache_bytes_max: int = Field(20 * 1024 * _MIB, ge=_MIB, description="Bytes of that folder; least recently used go.")
    memory_bytes_max: int = Field(
        2 * 1024 * _MIB, ge=_MIB, description="Memory of loaded models; least recently used and not pinned go."
    )
    providers: str = Field(
        "", max_length=200, description="ONNX Runtime providers, comma separated. Empty: CUDA where present, else CPU."
    )
    intra_op_threads: int = Field(1, ge=1, le=256, description="Threads within one batch.")
    slots: int = Field(0, ge=0, le=64, description="Batches that run at once. 0: one a CPU, at most 4.")
    batch_rows: int = Field(32, ge=1, le=4096, description="Most rows of a batch, unless the model's card says less.")
    batch_delay_ms: float = Field(
        2.0, ge=0, le=1000, description="Longest wait for companions while the worker is busy; none when it is idle."
    )

    body_bytes_max: int = Field(64 * _MIB, ge=1024, description="Largest request body, as sent and as inflated.")
    header_bytes_max: int = Field(_MIB, ge=1024, description="Largest JSON header in front of binary tensors.")
    json_bytes_max: int = Field(16 * _MIB, ge=1024, description="Largest body that is all JSON.")
    tensors_max: int = Field(64, ge=1, le=1024, description="Most inputs, and most outputs, of one request.")
    element_bytes_max: int = Field(16 * _MIB, ge=1, description="Largest BYTES element.")
    request_rows_max: int = Field(4096, ge=1, description="Most rows of one request.")
    waiting_max: int = Field(1024, ge=1, description="Requests that wait in the scheduler before more are refused.")
    waiting_bytes_max: int = Field(256 * _MIB, ge=1024, description="Input bytes of those that wait.")
    offload_bytes_min: int = Field(
        128 * 1024, ge=0, description="JSON of at least this size is read and written in a thread."
    )

    in_flight_interactive: int = Field(32, ge=1, le=1024, description="Jobs of lane interactive taken up at once.")
    in_flight_standard: int = Field(16, ge=1, le=1024, description="Jobs of lane standard taken up at once.")
    in_flight_bulk: int = Field(8, ge=1, le=1024, description="Jobs of lane bulk taken up at once.")
    job_attempts_max: int = Field(5, ge=1, le=20, description="Starts of a job before it counts as killing its worker.")
    job_timeout_seconds: int = Field(86_400, ge=1, description="Deadline of a job that names none.")
    model_wait_seconds: int = Field(30, ge=0, le=300, description="How long a job waits for its model to be deployed.")
    cancel_poll_ms: int = Field(
        100, ge=10, le=5000, description="Pause between looks for a running job's cancellation."
    )
    metrics_seconds: float = Field(2, ge=0.1, le=60, description="Pause between looks at the queues' lag for metrics.")
    job_retention_hours: float = Field(72, gt=0, description="Ended jobs and their tensors are deleted after this.")

    reconcile_seconds: float = Field(
        5, ge=0.05, le=600, description="Pause between comparisons of deployments and memory."
    )
    presence_seconds: float = Field(
        15, ge=1, le=600, description="A worker that is silent for this long counts as gone."
    )
    load_retry_seconds_max: int = Field(300, ge=1, description="Longest pause before a failed load is tried again.")
    completions_max: int = Field(
        10_000, ge=1, description="Events of online predictions held for the bus before predictions are refused."
    )
    completions_flush_ms: int = Field(50, ge=1, le=10_000, description="Pause between their batches.")
    drain_seconds: int = Field(10, ge=0, le=600, description="Time to finish what runs when stopping.")

    def worker_name(self) -> str:
        """The name of this worker."""
        return self.worker or f"{socket.gethostname()}-{os.getpid()}"[:100]

    def slot_count(self) -> int:
        """Batches that run at once."""
        return self.slots or min(4, max(1, (os.cpu_count() or 1) // self.intra_op_threads))

    def provider_names(self) -> tuple[str, ...]:
        """Providers in order of preference; empty for the default."""
        return tuple(name.strip() for name in self.providers.split(",") if name.strip())
