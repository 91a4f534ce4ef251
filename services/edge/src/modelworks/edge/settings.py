"""Settings of the edge."""

from __future__ import annotations

from modelworks.kit.settings import Settings
from pydantic import Field
from pydantic_settings import SettingsConfigDict


class EdgeSettings(Settings):
    """What the door lets through, and where it leads."""

    model_config = SettingsConfigDict(env_prefix="EDGE_", frozen=True, extra="ignore", hide_input_in_errors=True)

    auth_url: str = Field("", description="Base URL of auth. Empty: auth runs in this process.")
    registry_url: str = Field("", description="Base URL of registry. Empty: in this process.")
    optimizer_url: str = Field("", description="Base URL of optimizer. Empty: in this process.")
    inference_url: str = Field("", description="Base URL of inference. Empty: in this process.")
    audit_url: str = Field("", description="Base URL of audit. Empty: in this process.")
    body_bytes_max: int = Field(64 * 1024**2, ge=1024, description="Largest request body, uploads aside.")
    upload_bytes_max: int = Field(64 * 1024**3, ge=1024, description="Largest upload.")
    event_bytes_max: int = Field(256 * 1024, ge=1024, le=900 * 1024, description="Largest body of one event.")
    events_max: int = Field(100, ge=1, le=1000, description="Most events in one batch.")
    streams_max: int = Field(256, ge=1, description="Most event streams open at once.")
    stream_ping_seconds: float = Field(
        15, ge=0.1, le=300, description="Pause between comments that keep a stream open."
    )
    rate_per_second: float = Field(500, gt=0, description="Requests a second a caller may send for long, per replica.")
    rate_burst: int = Field(2000, ge=1, description="Requests a caller may send at once, per replica.")
    connections_max: int = Field(256, ge=1, description="Connections to each service over HTTP.")
    timeout_seconds: float = Field(300, ge=1, description="Most silence of a service over HTTP.")
