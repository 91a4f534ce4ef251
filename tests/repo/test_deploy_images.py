"""`deploy/Dockerfile` and the pins it installs: only what a service imports, as nobody, stopped and asked properly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.version import Version

from tests.repo.compose import OURS, load_script, raw
from tests.repo.dockerfile import DOCKERFILE, chain, stages
from tests.repo.sources import NAMESPACE, ROOT, normalised, project

EXTRAS: Mapping[str, tuple[str, ...]] = {"inference": ("cpu",), "optimizer": ("cpu",), "inference-gpu": ("gpu",)}
REQUIREMENTS = ROOT / "deploy" / "requirements"
LINUX: dict[str, Any] = {
    **default_environment(),
    "sys_platform": "linux",
    "platform_system": "Linux",
    "python_full_version": "3.11.14",
}

members = load_script("deploy/requirements/members.py")


def pins(image: str) -> dict[str, Version]:
    """The versions of an image's requirements that hold on Linux with Python 3.11."""
    return pinned(REQUIREMENTS / "images" / f"{image}.txt")


def pinned(file: Path) -> dict[str, Version]:
    text = file.read_text("utf-8")
    found = {}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        requirement = Requirement(line.split(" --hash")[0].strip())
        if requirement.marker is None or requirement.marker.evaluate(LINUX):
            (specifier,) = requirement.specifier
            found[normalised(requirement.name)] = Version(specifier.version)
    return found


@pytest.mark.parametrize("image", OURS)
def test_an_image_installs_its_service_and_what_that_imports(image: str) -> None:
    """INVARIANT: no image carries another service. Broken by a member in the Dockerfile that nobody imports."""
    install = stages()[f"{image}-install"]
    text = " ".join(run.arguments for run in install.all("RUN"))
    service = image.removesuffix("-gpu")

    wanted = {f"{NAMESPACE}-{name}" for name in members.closure(service, ("real", *EXTRAS.get(image, ())))}

    assert set(re.findall(rf"\b{NAMESPACE}-[a-z]+\b", text)) == wanted
    assert "--no-index" in text
    assert "uv pip check" in text


@pytest.mark.parametrize("image", OURS)
def test_an_image_installs_pinned_and_hashed_requirements(image: str) -> None:
    install = stages()[f"{image}-install"]
    (copied,) = install.all("COPY")

    assert copied.arguments.split()[0] == f"deploy/requirements/images/{image}.txt"
    assert any("--require-hashes" in run.arguments for run in install.all("RUN"))


@pytest.mark.parametrize("image", OURS)
def test_the_pins_satisfy_what_the_members_ask_for(image: str) -> None:
    """A member that asks for something new needs `make requirements`."""
    wanted = members.requirements(image.removesuffix("-gpu"), ("real", *EXTRAS.get(image, ())))

    assert unmet(wanted, pins(image)) == [], "run `make requirements`"


def unmet(wanted: Iterable[str], found: Mapping[str, Version]) -> list[str]:
    """What no pin satisfies."""
    missing = []
    for line in wanted:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate(LINUX):
            continue
        version = found.get(normalised(requirement.name))
        if version is None or version not in requirement.specifier:
            missing.append(f"{line} (pinned: {version})")
    return missing


@pytest.mark.parametrize(
    ("profile", "extras"), [("light", ("cpu",)), ("dev", ("cpu", "real")), ("torch", ("cpu", "torch"))]
)
def test_the_pins_of_a_checkout_satisfy_the_root(profile: str, extras: tuple[str, ...]) -> None:
    table = project(ROOT)
    wanted = [*table["dependencies"], *(line for extra in extras for line in table["optional-dependencies"][extra])]

    assert unmet(wanted, pinned(REQUIREMENTS / f"{profile}.txt")) == [], "run `make requirements`"


@pytest.mark.parametrize("image", OURS)
def test_no_image_carries_torch_or_the_tools_of_developers(image: str) -> None:
    names = pins(image)

    assert {"torch", "transformers", "pytest", "mypy", "ruff", "hypothesis"} & set(names) == set()
    assert ("onnxruntime" in names or "onnxruntime-gpu" in names) == (image.startswith(("inference", "optimizer")))
    assert ("onnx" in names) == (image == "optimizer")
    assert not {"onnxruntime", "onnxruntime-gpu"} <= set(names), "they own the same import name"


@pytest.mark.parametrize(
    "requirements", sorted(set(REQUIREMENTS.rglob("*.txt")) - {REQUIREMENTS / "constraints.txt"}), ids=lambda p: p.name
)
def test_every_requirement_is_pinned_with_hashes(requirements: Path) -> None:
    text = re.sub(r"\\\n\s*", " ", requirements.read_text("utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]

    assert lines
    assert [line for line in lines if "==" not in line or "--hash=sha256:" not in line] == []


@pytest.mark.parametrize("image", OURS)
def test_an_image_runs_as_nobody(image: str) -> None:
    last = [item for stage in chain(image) for item in stage.all("USER")][-1]
    user = last.arguments.split(":")[0]

    assert user.isdigit()
    assert int(user) >= 10_000


@pytest.mark.parametrize("image", OURS)
def test_an_image_can_be_stopped_and_asked(image: str) -> None:
    items = [item for stage in chain(image) for item in stage.instructions]
    (stop,) = [item for item in items if item.word == "STOPSIGNAL"]
    (check,) = [item for item in items if item.word == "HEALTHCHECK"]
    (command,) = [item for item in items if item.word == "CMD"]

    assert stop.arguments == "SIGTERM"
    assert command.words[0] == "python", "exec form: the service itself gets the signal, not a shell"
    assert not any(item.word == "ENTRYPOINT" for item in items)
    assert "/readyz" in check.arguments


def test_image_and_compose_ask_for_health_in_the_same_words() -> None:
    (check,) = stages()["runtime"].all("HEALTHCHECK")
    asked = raw()["services"]["edge"]["healthcheck"]["test"]

    assert all(word in check.arguments for word in asked[1:])


def test_the_image_carries_no_secret_and_nothing_is_fetched_unpinned() -> None:
    text = DOCKERFILE.read_text("utf-8")

    assert not re.search(r"(?i)^\s*(ARG|ENV)\b.*(secret|password|token|_key)", text, re.MULTILINE)
    assert not re.search(r"\b(curl|wget|git clone|apt-get|ADD)\b", text)
    for line in re.findall(r"^.*\bpip install\b.*$", text, re.MULTILINE):
        assert "--require-hashes" in line or "--no-index" in line


def test_only_what_is_copied_is_sent_to_the_builder() -> None:
    ignore = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}

    assert "*" in ignore
    for stage in stages().values():
        for copy in stage.all("COPY"):
            if "from" not in copy.flags:
                source = copy.arguments.split()[0]
                assert any(source == root or source.startswith(f"{root}/") for root in allowed), source
                assert (ROOT / source).exists(), source
