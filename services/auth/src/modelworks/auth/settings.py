"""Settings of auth."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated

from modelworks.auth.domain import SECRET_CHARACTERS_MAX, SECRET_CHARACTERS_MIN
from modelworks.kit.settings import Settings
from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, field_validator
from pydantic_settings import SettingsConfigDict

Secret = Annotated[SecretStr, Field(min_length=SECRET_CHARACTERS_MIN, max_length=SECRET_CHARACTERS_MAX)]
Audience = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._:/-]{0,199}$")]


class ServiceClient(BaseModel):
    """A client that the settings make."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    secret: Secret
    roles: tuple[str, ...] = ("service",)
    scopes: tuple[str, ...] | None = None


class AuthSettings(Settings):
    """Clients of the first hour, keys, tokens and limits."""

    model_config = SettingsConfigDict(env_prefix="AUTH_", frozen=True, extra="ignore", hide_input_in_errors=True)

    master_key: Secret = Field(
        description="Encrypts the signing keys at rest: 32 random characters or more, as `openssl rand -base64 32` prints."
    )
    admin_client_id: str = Field("admin", description="Client id of the administrator that is made at start.")
    admin_client_secret: SecretStr = Field(
        SecretStr(""), description="Secret of that administrator, 32 characters or more. Empty: none is made."
    )
    service_clients: dict[str, ServiceClient] = Field(
        default_factory=dict,
        description='Clients made or brought up to date at start, JSON: {"optimizer": {"secret": "...", "roles": ["service"]}}.',
    )
    audiences: tuple[Audience, ...] = Field(
        ("api", "kafka", "objects"), min_length=1, max_length=32,
        description="Audiences a token may be asked for (`resource`), JSON; the first is the default.",
    )  # fmt: skip
    token_lifetime_seconds: int = Field(600, ge=30, le=3600, description="How long a token is valid.")
    key_rotation_hours: float = Field(720, ge=1, le=8760, description="How long a key signs before its successor does.")
    jwks_cache_seconds: int = Field(
        600, ge=600, le=86400, description="How long verifiers may keep the keys; ours keep them for 600 s."
    )
    keys_reload_seconds: float = Field(5, ge=0.05, le=60, description="How far replicas may lag behind a rotation.")
    body_bytes_max: int = Field(16 * 1024, ge=1024, le=1024**2, description="Largest body of a token request.")
    failures_per_minute_max: int = Field(10, ge=1, description="Failed logins of one client from one address.")
    address_failures_per_minute_max: int = Field(
        60,
        ge=1,
        description="Failed logins from one address; above it, only clients that were in lately get in from there.",
    )
    client_failures_per_minute_max: int = Field(
        200, ge=1, description="Failed logins of one client; above it, it gets in only from where it was in lately."
    )
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Networks whose `X-Forwarded-For` is believed, JSON: the edge's, when it runs elsewhere."
    )
    refusals_per_minute_max: int = Field(
        60, ge=1, description="Refusals of one client id that are told to the audit; ten times as many over all."
    )
    signing_threads: int = Field(2, ge=1, le=64, description="Threads that check and sign.")
    waiting_max: int = Field(512, ge=1, le=100_000, description="Token requests that wait for a thread or the bus.")

    @field_validator("admin_client_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        length = len(value.get_secret_value())
        if length and not SECRET_CHARACTERS_MIN <= length <= SECRET_CHARACTERS_MAX:
            raise ValueError(f"has {length} characters: give {SECRET_CHARACTERS_MIN} to {SECRET_CHARACTERS_MAX}")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ip_network(network)
        return value
