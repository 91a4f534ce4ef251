"""Settings of the registry (prefix `REGISTRY_`)."""

from __future__ import annotations

from modelworks.kit.settings import Settings
from pydantic import Field
from pydantic_settings import SettingsConfigDict


class RegistrySettings(Settings):
    """Bounds of the registry; each default suits a laptop and a server alike."""

    model_config = SettingsConfigDict(env_prefix="REGISTRY_", frozen=True, extra="ignore", hide_input_in_errors=True)

    upload_bytes_max: int = Field(64 * 1024**3, ge=1, le=5 * 1024**4, description="Largest blob, in bytes.")
    upload_idle_ms_max: int = Field(
        60_000, ge=10, le=3_600_000, description="Longest wait for the next bytes of an upload; then it is refused."
    )
    body_bytes_max: int = Field(
        4 * 1024**2, ge=1024, le=64 * 1024**2, description="Largest JSON body (a commit with its operations), in bytes."
    )
    operations_max: int = Field(10_000, ge=1, le=100_000, description="Most operations in one commit.")
    files_max: int = Field(10_000, ge=1, le=100_000, description="Most files in one revision.")
    refs_max: int = Field(1_000, ge=1, le=5_000, description="Most branches and tags of a repository.")
    idempotency_keys_max: int = Field(
        128, ge=1, le=1_000, description="Newest idempotency keys a repository remembers."
    )
    attempts_max: int = Field(
        64, ge=1, le=1_000, description="Attempts at a ref move without `expected`, when others move the ref meanwhile."
    )
    blob_checks_at_once: int = Field(16, ge=1, le=256, description="Blobs of one commit that are looked at together.")
    card_bytes_max: int = Field(
        256 * 1024, ge=1024, le=4 * 1024**2, description="Bytes of a README.md that are read for search."
    )
    cache_entries_max: int = Field(
        50_000, ge=0, le=10_000_000, description="Directory entries of trees and commits kept in memory."
    )
    page_max: int = Field(100, ge=1, le=1_000, description="Most items on a page.")
    sweep_ms: int = Field(
        5_000, ge=10, le=600_000, description="Pause between sweeps for events that a crash left unpublished."
    )
