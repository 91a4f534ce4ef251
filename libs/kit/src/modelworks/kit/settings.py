"""The base of every service's settings: read once, frozen, printable without secrets."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from modelworks.kit.errors import InvalidInput
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

Environment = Literal["development", "production"]


class Settings(BaseSettings):
    """Base class. Subclasses set `env_prefix` and describe each field with its unit and bounds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    def public(self) -> dict[str, Any]:
        """All values for the start-up log; secrets read `set` or `unset`."""
        values: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                values[name] = "set" if value.get_secret_value() else "unset"
            else:
                values[name] = value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
        return values


S = TypeVar("S", bound=Settings)


def load_settings(kind: type[S]) -> S:
    """The settings from the environment.

    Raises:
        InvalidInput: variables are missing or wrong; names each in one line, without its value.
    """
    prefix = str(kind.model_config.get("env_prefix", ""))
    try:
        return kind()
    except ValidationError as error:
        raise InvalidInput(explain(error, prefix=prefix)) from error
    except SettingsError as error:
        # A list or mapping that is no JSON; pydantic-settings names the field in its text only.
        field = next((name for name in kind.model_fields if f'"{name}"' in str(error)), "a variable")
        raise InvalidInput(f"{prefix}{field}".upper() + " is not valid JSON") from error


def explain(error: ValidationError, *, prefix: str = "") -> str:
    """A validation error of settings in one line: variables and what is wrong, never values (they may be secrets)."""
    problems = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        first, *inner = [str(part) for part in item["loc"]] or [""]
        name = (prefix + first).upper() + "".join(f".{part}" for part in inner)
        problems.append(f"{name} is not set" if item["type"] == "missing" else f"{name}: {item['msg']}")
    return "; ".join(problems)


class PlatformSettings(Settings):
    """What every process of the suite reads, whatever service it runs (prefix `MODELWORKS_`)."""

    model_config = SettingsConfigDict(env_prefix="MODELWORKS_", frozen=True, extra="ignore", hide_input_in_errors=True)

    environment: Environment = Field("development", description="`production` refuses the embedded adapters.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    issuer: str = Field("", description="Issuer that tokens must carry: the URL of the public door.")
    jwks_url: str = Field("", description="Where the issuer's keys are read. Empty: `<issuer>/.well-known/jwks.json`.")
    audience: str = Field("api", description="Audience that tokens must carry.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="`auto`: text on a terminal, JSON elsewhere."
    )
    otlp_endpoint: str = Field(
        "", description="OpenTelemetry collector (OTLP over HTTP). Empty: spans are not exported."
    )
    trace_file: str = Field("", description="File that gets one JSON line a finished span, for development and tests.")
