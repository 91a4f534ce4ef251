"""The guides of `docs/`, run as a reader would: block after block, in one folder, beside a suite.

    ```console    lines with `$` are commands of a shell, the lines after one are what it must print
    ```python     a script
    ```python kafka   a script that needs Kafka: run beside a suite on the real servers
    ```bash       shown, not run: starts a suite, or needs a container engine

In expected output `...` stands for anything, and the amount of space does not matter.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.repo.sources import ROOT
from tests.stack.stack import Stack

DOCS = ROOT / "docs"
GUIDES = ("getting-started.md", "operate.md", "upstream-events.md")
ADDRESS = "http://127.0.0.1:8080"
"""As the guides write it; the suite of a test has a port of its own."""
_FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_SHOWN_ONLY = re.compile(r"^(docker |make |modelworks up|python3? -m venv|pip install|export |set -a|#|\s*$)")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    guide: str
    line: int
    kind: str
    body: str

    def __str__(self) -> str:
        return f"docs/{self.guide}:{self.line}"


@dataclass(frozen=True)
class Step:
    """A command and the lines it must print."""

    command: str
    expected: tuple[str, ...]


def blocks(guide: str) -> list[Block]:
    text = (DOCS / guide).read_text("utf-8")
    return [
        Block(guide, text.count("\n", 0, match.start()) + 1, match["kind"].strip(), match["body"])
        for match in _FENCE.finditer(text)
    ]


def steps(body: str) -> list[Step]:
    """The commands of a console block; a line that starts with `>` goes on with the command before it."""
    found: list[tuple[list[str], list[str]]] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif line.startswith("> ") and found and not found[-1][1]:
            found[-1][0].append(line[2:])
        elif line.strip():
            assert found, f"output before any command: {line!r}"
            found[-1][1].append(line)
    return [Step("\n".join(command), tuple(expected)) for command, expected in found]


def printed(expected: Sequence[str], output: str) -> bool:
    """Whether the output is what the guide says: line by line, `...` for anything, spaces as they come."""
    words = (" ".join(line.split()) for line in expected)
    pattern = r"\s+".join(re.escape(line).replace(r"\.\.\.", ".*?").replace(r"\ ", r"\s+") for line in words)
    return re.fullmatch(pattern, output.strip(), re.DOTALL) is not None


class Reader:
    """Does what a guide says, in a folder of its own beside a running suite."""

    def __init__(self, folder: Path, *, column: str = "embedded", environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        programs = Path(sys.executable).parent
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MODELWORKS_", "STORES_"))}
        self._environment = {
            **kept, **(environment or {}), "PATH": f"{programs}:{os.environ['PATH']}", "COLUMNS": "200",
        }  # fmt: skip
        # As the guide has it: `modelworks up` in this folder, its data in ./modelworks-data.
        self._log = (folder / "suite.log").open("wb")
        self._suite = subprocess.Popen(
            ["modelworks", "up", "--port", "0", "--json", "--stack", column], cwd=folder, env=self._environment,
            stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        assert self._suite.stdout is not None
        watchdog = threading.Timer(60, self._suite.kill)
        watchdog.start()
        line = self._suite.stdout.readline()
        watchdog.cancel()
        assert line, (folder / "suite.log").read_text("utf-8", "replace")[-3000:]
        self.address = str(json.loads(line)["url"])

    def close(self) -> int:
        self._suite.terminate()
        status = self._suite.wait(40)
        if self._suite.stdout:
            self._suite.stdout.close()
        self._log.close()
        return status

    def follow(self, guide: str, *kinds: str) -> int:
        """Run the guide's blocks of these kinds in order; returns how many there were."""
        count = 0
        for block in blocks(guide):
            if block.kind in kinds:
                self._do(block)
                count += 1
        return count

    def _do(self, block: Block) -> None:
        body = block.body.replace(ADDRESS, self.address)
        if block.kind.startswith("python"):
            self._run(block, [sys.executable, "-c", body])
            return
        for step in steps(body):
            output = self._run(block, ["bash", "-c", f"set -euo pipefail\n{step.command}"])
            assert not step.expected or printed(step.expected, output), f"{block}: $ {step.command}\n{output}"

    def _run(self, block: Block, command: Sequence[str]) -> str:
        ended = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert ended.returncode == 0, f"{block}: {command[-1]}\n{ended.stdout}{ended.stderr}"
        # Prose goes to standard error; the guide shows both, in this order.
        return ended.stdout + ended.stderr


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_guides_do_what_they_say(reader: Reader) -> None:
    """In the order in which they refer to each other, on the embedded column."""
    for guide in ("getting-started.md", "upstream-events.md", "operate.md"):
        assert reader.follow(guide, "console", "python") > 0, guide


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(400, func_only=True)
def test_kafka_example_is_answered_on_the_real_servers(stack: Stack, tmp_path: Path) -> None:
    environment = {**stack.environment(), "STORES_KAFKA_PARTITIONS": "3"}
    reader = Reader(tmp_path, column="real", environment=environment)
    try:
        reader.follow("getting-started.md", "console", "python")
        assert reader.follow("upstream-events.md", "python kafka") == 1
    finally:
        reader.close()


@pytest.mark.parametrize("guide", GUIDES)
def test_every_block_is_of_a_known_kind(guide: str) -> None:
    found = [block for block in blocks(guide) if block.kind not in ("console", "python", "python kafka", "bash")]

    assert found == []


@pytest.mark.parametrize("guide", GUIDES)
def test_what_is_only_shown_is_what_cannot_be_run(guide: str) -> None:
    """A command that a test could run must not hide in a block that is only shown."""
    shown = [line for block in blocks(guide) if block.kind == "bash" for line in block.body.splitlines()]

    assert [line for line in shown if not _SHOWN_ONLY.match(line)] == []


@pytest.mark.parametrize("guide", GUIDES)
def test_links_of_guides_lead_somewhere(guide: str) -> None:
    text = (DOCS / guide).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (DOCS / target).exists(), target


def test_output_is_compared_and_not_only_read() -> None:
    """The checks above would pass with a comparison that always agrees."""
    assert printed(["a  b", "...", "z"], "a b\nsomething\nmore\nz\n")
    assert printed(["id  opt-..."], "id          opt-123\n")
    assert not printed(["a b"], "a c")
    assert not printed(["a"], "a\nb")
    assert steps("$ one\n> two\nout\n$ three\n") == [Step("one\ntwo", ("out",)), Step("three", ())]
