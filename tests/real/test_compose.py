"""`docker-compose.yml` read by the loader that `docker compose` is built on, fetched and built by Go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.repo.compose import COMPOSE_FILE, load_script, raw, services
from tests.stack.plugin import unavailable

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300)]

MODULE = Path(__file__).with_name("compose")
CONTAINERS = sorted(raw()["services"])


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("go"):
        unavailable("`go` is not on PATH: install Go 1.24 or newer")
    program = tmp_path_factory.mktemp("loader") / "load"
    built = subprocess.run(
        ["go", "build", "-mod=readonly", "-o", str(program), "."],
        cwd=MODULE,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        unavailable(f"the loader of compose files cannot be built: {built.stderr.strip()}")
    return program


@pytest.fixture(scope="module")
def env_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("env") / "env"
    load_script("deploy/make_env.py").main([str(path)])
    return path


def load(loader: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        [str(loader), *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def project(loader: Path, env_file: Path) -> Mapping[str, Any]:
    ended = load(loader, COMPOSE_FILE, env_file)
    assert ended.returncode == 0, ended.stderr
    document: Mapping[str, Any] = json.loads(ended.stdout)
    return document


def test_compose_accepts_the_file(project: Mapping[str, Any]) -> None:
    assert sorted(project["services"]) == CONTAINERS
    assert project["services"]["inference-gpu"]["profiles"] == ["gpu"]


def test_compose_refuses_to_start_without_make_env(loader: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")

    ended = load(loader, COMPOSE_FILE, tmp_path / "empty")

    assert ended.returncode == 1
    assert "run make env first" in ended.stderr


def test_compose_refuses_a_file_that_is_none(loader: Path, env_file: Path, tmp_path: Path) -> None:
    """The loader checks the schema: what it accepts is worth something."""
    (tmp_path / "compose.yml").write_text("services: {a: {image: x, restrat: always}}\n")

    ended = load(loader, tmp_path / "compose.yml", env_file)

    assert ended.returncode == 1
    assert "restrat" in ended.stderr


@pytest.mark.parametrize("container", CONTAINERS)
def test_our_reading_of_the_file_is_that_of_compose(container: str, project: Mapping[str, Any], env_file: Path) -> None:
    """The rules in tests/repo/test_deploy_compose.py rest on our own reading."""
    values = dict(line.split("=", 1) for line in env_file.read_text().splitlines() if not line.startswith("#"))
    theirs = project["services"][container]
    ours = services(values)[container]

    assert {name: str(value) for name, value in ours.get("environment", {}).items()} == theirs.get("environment", {})
    assert sorted(ours.get("depends_on", {})) == sorted(theirs.get("depends_on", {}))
    assert sorted(ours["networks"]) == sorted(theirs["networks"])
    assert ours["image"] == theirs["image"]
    # The loader keeps `$$`, which compose turns into `$` when it makes the container.
    assert ours["healthcheck"].get("test") == _unescaped(theirs["healthcheck"].get("test"))
    assert ours.get("command") == _unescaped(theirs.get("command"))


def _unescaped(words: list[str] | None) -> list[str] | None:
    return words and [word.replace("$$", "$") for word in words]
