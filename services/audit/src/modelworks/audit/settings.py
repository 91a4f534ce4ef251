"""Settings of audit."""

from __future__ import annotations

from modelworks.kit.settings import Settings
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict


class AuditSettings(Settings):
    """Prefix `AUDIT_`."""

    model_config = SettingsConfigDict(env_prefix="AUDIT_", frozen=True, extra="ignore", hide_input_in_errors=True)

    signing_key: SecretStr = Field(
        description="Signs the log's head: PRIVATE+KEY+name+hash+key. `python -m modelworks.audit keygen` makes one."
    )
    origin: str = Field(
        "", max_length=200, description="Name the log must have; refuses another key's. Empty: the key's name."
    )
    batch_max: int = Field(500, ge=1, le=5000, description="Most events in one step of the log.")
    batch_bytes_max: int = Field(
        8 * 1024**2, ge=64 * 1024, le=32 * 1024**2, description="Most bytes of events in one step."
    )
    window: int = Field(
        10_000,
        ge=256,
        le=1_000_000,
        description="Newest leaves whose event ids are kept in memory, to drop duplicates.",
    )
    tiles_max: int = Field(1024, ge=16, le=100_000, description="Most tiles kept to build proofs; 8 KiB each.")
    lease_ms: int = Field(15_000, ge=500, le=300_000, description="How long a silent sequencer keeps its place.")
    check_seconds: float = Field(60, ge=0.05, le=86_400, description="Pause between samples of the index.")
    check_leaves: int = Field(64, ge=0, le=10_000, description="Leaves compared with their documents in each sample.")
