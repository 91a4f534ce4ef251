"""Which suite is meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from modelworks.client.connection import connect
from modelworks.client.credentials import ClientCredentials
from modelworks.kit.errors import InvalidInput

ADMIN = {
    "url": "http://127.0.0.1:1",
    "token_url": "http://127.0.0.1:1/oauth/token",
    "client_id": "admin",
    "client_secret": "s",
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MODELWORKS_URL", "MODELWORKS_TOKEN", "MODELWORKS_CLIENT_ID", "MODELWORKS_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def suite(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "admin.json").write_text(json.dumps({**ADMIN, **changes}))
    return folder


async def test_flags_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELWORKS_URL", "http://other")
    monkeypatch.setenv("MODELWORKS_TOKEN", "other")

    found = connect(url="http://here/", token="mine", data=None)

    assert (found.url, await found.token()) == ("http://here", "mine")


def test_folder_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODELWORKS_URL", "http://other")

    found = connect(url=None, token=None, data=suite(tmp_path / "data"))

    assert found.url == ADMIN["url"]
    assert isinstance(found.token, ClientCredentials)


def test_default_folder_is_found(tmp_path: Path) -> None:
    suite(tmp_path / "modelworks-data")

    assert connect(url=None, token=None, data=None).url == ADMIN["url"]


def test_without_anything_the_ways_are_named() -> None:
    with pytest.raises(InvalidInput, match=r"--data.*--url.*MODELWORKS_URL"):
        connect(url=None, token=None, data=None)


def test_address_without_credentials_is_refused() -> None:
    with pytest.raises(InvalidInput, match="MODELWORKS_CLIENT_SECRET"):
        connect(url="http://here", token=None, data=None)


def test_folder_without_a_suite_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="modelworks up --data"):
        connect(url=None, token=None, data=tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"url": 1'])
def test_damaged_admin_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "admin.json").write_text(content)

    with pytest.raises(InvalidInput, match=r"admin\.json"):
        connect(url=None, token=None, data=tmp_path)


def test_other_client_needs_its_secret(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="MODELWORKS_CLIENT_SECRET"):
        connect(url=None, token=None, data=suite(tmp_path / "d"), client_id="ci")
