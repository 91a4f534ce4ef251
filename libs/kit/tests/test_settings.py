"""Settings: read once, frozen, shown without secrets; mistakes named without values."""

from __future__ import annotations

import pytest
from modelworks.kit.errors import InvalidInput
from modelworks.kit.settings import PlatformSettings, Settings, load_settings
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict


class ProbeSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="PROBE_", frozen=True, extra="ignore", hide_input_in_errors=True)

    password: SecretStr = Field(description="Required.", min_length=8)
    token: SecretStr = SecretStr("")
    size_bytes: int = Field(1, ge=1, le=10)
    names: tuple[str, ...] = ()


@pytest.fixture(autouse=True)
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE_PASSWORD", "correct horse")


def test_values_come_from_the_environment_under_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE_SIZE_BYTES", "7")
    monkeypatch.setenv("PROBE_NAMES", '["a", "b"]')
    monkeypatch.setenv("SIZE_BYTES", "9")

    settings = load_settings(ProbeSettings)

    assert (settings.size_bytes, settings.names) == (7, ("a", "b"))


def test_settings_are_frozen() -> None:
    settings = load_settings(ProbeSettings)

    with pytest.raises(ValidationError):
        setattr(settings, "size_bytes", 2)  # noqa: B010 - the type checker knows it is frozen


def test_secrets_are_shown_as_set_or_unset_only() -> None:
    settings = load_settings(ProbeSettings)

    assert settings.public() == {"password": "set", "token": "unset", "size_bytes": 1, "names": "()"}
    for shown in (repr(settings), str(settings), str(settings.model_dump())):
        assert "correct horse" not in shown


def test_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROBE_PASSWORD")

    with pytest.raises(InvalidInput, match=r"^PROBE_PASSWORD is not set$"):
        load_settings(ProbeSettings)


def test_wrong_variables_are_named_in_one_line_without_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE_PASSWORD", "hunter2")
    monkeypatch.setenv("PROBE_SIZE_BYTES", "1234567")

    with pytest.raises(InvalidInput) as refused:
        load_settings(ProbeSettings)

    message = refused.value.message
    assert "PROBE_PASSWORD: " in message
    assert "PROBE_SIZE_BYTES: Input should be less than or equal to 10" in message
    assert "hunter2" not in message
    assert "1234567" not in message
    assert "\n" not in message


def test_value_that_is_no_json_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE_NAMES", "[hunter2")

    with pytest.raises(InvalidInput, match="PROBE_NAMES") as refused:
        load_settings(ProbeSettings)

    assert "hunter2" not in refused.value.message


def test_platform_listens_on_loopback_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODELWORKS_HOST", "MODELWORKS_ENVIRONMENT", "MODELWORKS_AUDIENCE"):
        monkeypatch.delenv(name, raising=False)
    settings = load_settings(PlatformSettings)

    assert (settings.host, settings.environment, settings.audience) == ("127.0.0.1", "development", "api")


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "65536"), ("PORT", "-1"), ("ENVIRONMENT", "prod"), ("LOG_LEVEL", "x")]
)
def test_platform_refuses_what_cannot_be(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"MODELWORKS_{name}", value)

    with pytest.raises(InvalidInput, match=f"MODELWORKS_{name}"):
        load_settings(PlatformSettings)


def test_every_field_of_the_platform_is_described() -> None:
    for name, field in PlatformSettings.model_fields.items():
        assert field.description, name
