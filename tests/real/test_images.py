"""Every image's install steps, as `deploy/Dockerfile` writes them, run in clean environments of this machine.

No engine is needed: an image is the interpreter and one virtual environment, and what makes that environment is read
from the Dockerfile here, so that the two cannot drift. What is not run: the stage with the user and the signals,
which tests/repo/test_deploy_images.py reads.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.repo.compose import OURS, load_script
from tests.repo.dockerfile import Instruction, chain
from tests.repo.sources import NAMESPACE, ROOT, SERVICES

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]

members = load_script("deploy/requirements/members.py")

WITH_CUDA = os.environ.get("MODELWORKS_TEST_CUDA_WHEELS") == "1"
"""Also install the 2 GB of CUDA's wheels, which no import of ours needs."""
COPYLEFT = re.compile(r"\bA?GPL|GNU (Affero )?General Public", re.IGNORECASE)
# Licences that offer another choice, or an exception that suits us: name and why.
CHOSEN: dict[str, str] = {}


class Builder:
    """Runs the instructions of stages below one folder: `/opt/modelworks` becomes `<folder>/<stage>/opt/modelworks`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[str, Path] = {}

    def build(self, stage: str) -> Path:
        """The stage's root folder, built once."""
        if stage not in self._built:
            root = self._folder / stage
            root.mkdir(parents=True)
            subprocess.run([sys.executable, "-m", "venv", str(root / "usr")], check=True)
            environment = self._environment(root)
            work = root
            for part in chain(stage):
                for item in part.instructions:
                    if item.word == "WORKDIR":
                        work = self._inside(root, item.arguments)
                        work.mkdir(parents=True, exist_ok=True)
                    elif item.word == "ENV":
                        environment |= self._variables(item, root)
                    elif item.word == "COPY":
                        self._copy(item, work)
                    elif item.word == "RUN":
                        self._run(item, root, work, environment)
            self._built[stage] = root
        return self._built[stage]

    @staticmethod
    def _inside(root: Path, path: str) -> Path:
        return root / path.lstrip("/")

    @staticmethod
    def _environment(root: Path) -> dict[str, str]:
        """The caller's settings of package registries, and otherwise what an image has."""
        kept = {name: value for name, value in os.environ.items() if re.match(r"(PIP|UV|SSL)_|HOME$", name)}
        return {**kept, "PATH": f"{root / 'usr' / 'bin'}:/usr/bin:/bin", "LANG": "C.UTF-8"}

    @staticmethod
    def _variables(item: Instruction, root: Path) -> dict[str, str]:
        found = dict(word.split("=", 1) for word in item.arguments.split())
        # Of the builder's own comfort only: the cache of this machine is used, and bytecode would only cost time.
        for name in ("UV_CACHE_DIR", "UV_LINK_MODE", "UV_COMPILE_BYTECODE"):
            found.pop(name, None)
        return {name: f"{root}{value}" if value.startswith("/") else value for name, value in found.items()}

    @staticmethod
    def _copy(item: Instruction, work: Path) -> None:
        source, target = item.arguments.split()
        origin, goal = ROOT / source, work / target
        goal.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, goal, ignore=shutil.ignore_patterns("__pycache__", "tests", "*.egg-info"))
        elif "-gpu" in source and not WITH_CUDA:
            text = re.sub(r"^nvidia-[^\n]*\\\n(    --hash[^\n]*\n)+", "", origin.read_text("utf-8"), flags=re.MULTILINE)
            assert "nvidia-" not in text
            goal.write_text(text)
        else:
            shutil.copyfile(origin, goal)

    def _run(self, item: Instruction, root: Path, work: Path, environment: dict[str, str]) -> None:
        command = item.arguments
        for mount in item.mounts:
            if mount["type"] == "bind":
                source = self._inside(self.build(mount["from"]), mount["source"])
                command = command.replace(mount["target"], str(source))
        command = re.sub(r"(?<![\w/.])/(opt|wheels)\b", rf"{root}/\1", command)
        ended = subprocess.run(
            ["sh", "-c", command], cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, f"{item.arguments}\n{ended.stdout}{ended.stderr}"


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module", params=OURS)
def image(request: pytest.FixtureRequest, builder: Builder) -> tuple[str, Path]:
    """An image's name, and the interpreter of its environment."""
    name: str = request.param
    return name, builder.build(f"{name}-install") / "opt" / "modelworks" / "bin" / "python"


def service_of(name: str) -> str:
    return name.removesuffix("-gpu")


def ask(python: Path, script: str, *, module: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run in the environment, isolated from this checkout and its variables."""
    what = [*module] if module else ["-c", script]
    return subprocess.run(
        [str(python), "-I", *what], cwd=python.parent, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_service_can_be_composed_in_its_image(image: tuple[str, Path]) -> None:
    name, python = image

    ended = ask(python, f"import {NAMESPACE}.{service_of(name)}.app, {NAMESPACE}.{service_of(name)}.settings")

    assert ended.returncode == 0, ended.stderr


def test_both_columns_can_be_imported_in_the_image(image: tuple[str, Path]) -> None:
    """The real column's clients are imported late: an image without one would fail at its first use."""
    _, python = image
    ports = ("bus.kafka", "documents.opensearch", "objects.s3", "keyvalue.redis")

    ended = ask(python, "; ".join(f"import {NAMESPACE}.stores.{port}" for port in ports))

    assert ended.returncode == 0, ended.stderr


def test_traces_can_be_exported_from_the_image(image: tuple[str, Path]) -> None:
    _, python = image

    ended = ask(
        python, f"from {NAMESPACE}.kit.telemetry import make_telemetry; make_telemetry(process='x', otlp_endpoint='http://127.0.0.1:9')"
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr


def test_no_other_service_is_in_the_image(image: tuple[str, Path]) -> None:
    name, python = image
    service = service_of(name)

    ended = ask(
        python, f"import pkgutil, {NAMESPACE}; print(*sorted(m.name for m in pkgutil.iter_modules({NAMESPACE}.__path__)))"
    )  # fmt: skip

    found = ended.stdout.split()
    assert set(found) & set(SERVICES) == {service}, ended.stderr
    assert found == sorted(members.closure(service, ("real",)))


def test_engines_are_only_where_they_run(image: tuple[str, Path]) -> None:
    name, python = image
    script = "from importlib.util import find_spec; print(*[n for n in ('torch', 'onnx', 'onnxruntime', 'pytest') if find_spec(n)])"

    ended = ask(python, script)

    wanted = {"optimizer": ["onnx", "onnxruntime"], "inference": ["onnxruntime"]}
    assert ended.stdout.split() == wanted.get(service_of(name), []), ended.stderr


def test_unconfigured_service_says_what_it_needs_and_ends(image: tuple[str, Path]) -> None:
    """The image's command runs, and a user's mistake is one line."""
    name, python = image

    ended = ask(python, "", module=["-m", f"{NAMESPACE}.{service_of(name)}"])

    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert re.search(r"[A-Z]+_[A-Z_]+", last), last


def test_no_part_of_an_image_is_under_a_strong_copyleft_licence(image: tuple[str, Path]) -> None:
    _, python = image
    script = """
from importlib.metadata import distributions
for d in distributions():
    m = d.metadata
    texts = [m.get("License-Expression") or "", (m.get("License") or "").splitlines()[0] if m.get("License") else ""]
    texts += [c for c in m.get_all("Classifier") or [] if c.startswith("License")]
    print(m["Name"], "|".join(texts).replace(chr(10), " "), sep="\\t")
"""

    ended = ask(python, script)

    lines = [line.split("\t", 1) for line in ended.stdout.splitlines()]
    found = [f"{name}: {text}" for name, text in lines if COPYLEFT.search(text) and name.lower() not in CHOSEN]
    assert len(lines) > 30
    assert found == []
