"""The command's manners: options anywhere, clear lines, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from modelworks.client.cli.main import hoist
from modelworks.client.folders import files_of, read_recipe
from modelworks.kit.errors import InvalidInput


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MODELWORKS_")}
    return subprocess.run(
        [sys.executable, "-m", "modelworks.client", *arguments],
        cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["up", "--data", "d", "--port", "1"], ["--data", "d", "up", "--port", "1"]),
        (["log", "a/b", "--json"], ["--json", "log", "a/b"]),
        (["token", "--url=http://x", "--scope", "audit"], ["--url=http://x", "token", "--scope", "audit"]),
        (["log", "--", "--json"], ["log", "--", "--json"]),
        (["log", "--data"], ["--data", "log"]),
    ],
)
def test_common_options_may_stand_anywhere(given: list[str], wanted: list[str]) -> None:
    assert hoist(given) == wanted


def test_no_suite_is_one_clear_line_and_exit_1(tmp_path: Path) -> None:
    done = run("log", "a/b", cwd=tmp_path)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("modelworks: which suite?")
    assert len(done.stderr.strip().splitlines()) == 1


def test_suite_that_does_not_answer_is_one_clear_line(tmp_path: Path) -> None:
    done = run("log", "a/b", "--url", "http://127.0.0.1:9", "--token", "t", cwd=tmp_path)

    assert done.returncode == 1
    assert "no answer" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("log",), ("log", "not-a-name"), ("log", "a/b@"), ("push", "/nowhere", "a/b"), ("events", "replay"), ("nothing",)],
)
def test_wrong_use_exits_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    ["up", "token", "push", "pull", "log", "optimize", "deploy", "predict", "jobs", "events", "audit", "demo"],
)
def test_every_command_teaches(command: str, tmp_path: Path) -> None:
    done = run(command, "--help", cwd=tmp_path, COLUMNS="200")

    assert done.returncode == 0
    assert "--json" in done.stdout


def test_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("up", "--data", str(tmp_path / "d"), "--port", str(taken.getsockname()[1]), cwd=tmp_path)

    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    done = run("up", "--data", str(tmp_path / "file" / "d"), "--port", "0", cwd=tmp_path)

    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_real_column_without_endpoints_names_them(tmp_path: Path) -> None:
    done = run("up", "--stack", "real", "--port", "0", "--data", str(tmp_path / "d"), cwd=tmp_path)

    assert done.returncode == 1
    assert "STORES_KAFKA_BOOTSTRAP" in done.stderr


def test_folder_is_read_in_path_order_without_hidden_state(tmp_path: Path) -> None:
    for name in ("b.txt", "a/x.bin", ".git/config", "__pycache__/c.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    assert list(files_of(tmp_path)) == ["a/x.bin", "b.txt"]


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret").write_text("s")
    (inside / "link").symlink_to(tmp_path / "secret")

    with pytest.raises(InvalidInput, match="leads out"):
        files_of(inside)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no files"):
        files_of(tmp_path)


@pytest.mark.parametrize(("name", "text"), [("r.yaml", "pass: int8"), ("r.json", json.dumps({"pass": "int8"}))])
def test_recipe_is_read(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)

    assert read_recipe(tmp_path / name) == {"pass": "int8"}


@pytest.mark.parametrize(("name", "text"), [("r.yaml", "a: [1"), ("r.json", "{"), ("r.yaml", "- 1"), ("r.yaml", "")])
def test_damaged_recipe_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)

    with pytest.raises(InvalidInput, match=r"r\."):
        read_recipe(tmp_path / name)
