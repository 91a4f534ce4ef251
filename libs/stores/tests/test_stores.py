"""Opening a column: what is refused, what is named, what is never printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from modelworks.kit.errors import InvalidInput
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import Stores, open_stores, opened

REAL: dict[str, Any] = {
    "column": "real",
    "kafka_bootstrap": "127.0.0.1:1",
    "opensearch_url": "http://127.0.0.1:1",
    "opensearch_user": "admin",
    "opensearch_password": "hunter2-search",
    "s3_endpoint": "http://127.0.0.1:1",
    "s3_access_key": "access",
    "s3_secret_key": "hunter2-objects",
    "redis_url": "redis://:hunter2-redis@127.0.0.1:1/0",
}
SECRETS = ("hunter2-search", "hunter2-objects", "hunter2-redis")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in StoresSettings.model_fields:
        monkeypatch.delenv(f"STORES_{name.upper()}", raising=False)


def test_production_refuses_the_embedded_column(tmp_path: Path) -> None:
    settings = StoresSettings(column="embedded", data=tmp_path / "data")

    with pytest.raises(InvalidInput, match=r"MODELWORKS_ENVIRONMENT=production.*STORES_COLUMN=real"):
        open_stores(settings, environment="production")

    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("environment", ["development", "production"])
def test_the_real_column_names_each_endpoint_that_is_missing(environment: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        open_stores(StoresSettings(column="real", opensearch_url="http://127.0.0.1:1"), environment=environment)

    assert str(refused.value) == (
        "the real column needs STORES_KAFKA_BOOTSTRAP, STORES_S3_ENDPOINT, STORES_S3_ACCESS_KEY, "
        "STORES_S3_SECRET_KEY, STORES_REDIS_URL: set them in the environment"
    )


@pytest.mark.parametrize("name", ["kafka_bootstrap", "opensearch_url", "s3_endpoint", "s3_secret_key", "redis_url"])
def test_one_missing_endpoint_is_enough_to_refuse(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"needs STORES_{name.upper()}: set"):
        open_stores(StoresSettings(**{**REAL, name: ""}), environment="production")


@pytest.mark.parametrize("name", ["opensearch_url", "s3_endpoint", "redis_url"])
def test_an_endpoint_that_is_no_url_is_named_without_its_value(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"STORES_{name.upper()} is not a") as refused:
        open_stores(StoresSettings(**{**REAL, name: "hunter2-redis"}), environment="development")

    assert "hunter2" not in str(refused.value)


async def test_opening_the_embedded_column_touches_nothing(tmp_path: Path) -> None:
    async with opened(StoresSettings(column="embedded", data=tmp_path / "data")):
        assert not (tmp_path / "data").exists()


async def test_opening_the_real_column_connects_to_nothing() -> None:
    # Nobody listens at port 1: a connection would fail here.
    stores = open_stores(StoresSettings(**REAL), environment="production")

    await stores.close()


async def test_both_columns_hold_all_four_ports(stores: Stores) -> None:
    await stores.bus.check()
    await stores.objects.check()
    await stores.documents.check()
    await stores.keyvalue.check()


async def test_secrets_are_not_printed() -> None:
    settings = StoresSettings(**REAL)
    stores = open_stores(settings, environment="production")

    printed = f"{settings} {settings!r} {settings.public()} {stores} {stores!r}"

    assert not [secret for secret in SECRETS if secret in printed]
    assert settings.public()["s3_secret_key"] == "set"
    assert settings.public()["redis_url"] == "set"
    await stores.close()


def test_a_wrong_value_is_named_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in REAL.items():
        monkeypatch.setenv(f"STORES_{name.upper()}", value)
    monkeypatch.setenv("STORES_TIMEOUT_MS", "soon")

    with pytest.raises(ValueError, match="timeout_ms") as refused:
        StoresSettings()

    assert not [secret for secret in SECRETS if secret in str(refused.value)]


def test_the_embedded_column_imports_no_client_of_a_server() -> None:
    """INVARIANT: the light profile installs none of them."""
    script = (
        "import sys; from modelworks.stores.settings import StoresSettings; from modelworks.stores.stores import open_stores; "
        "open_stores(StoresSettings(column='embedded'), environment='development'); "
        "print(sorted({'minio', 'opensearchpy', 'aiokafka', 'faststream', 'aiohttp'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
