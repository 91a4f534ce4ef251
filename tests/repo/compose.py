"""`docker-compose.yml` as `docker compose` reads it: merge keys, then variables.

tests/real/test_compose.py holds this reading equal to that of the real loader.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from tests.repo.sources import ROOT

COMPOSE_FILE = ROOT / "docker-compose.yml"
OURS = ("auth", "registry", "optimizer", "inference", "inference-gpu", "audit", "edge")
"""The containers that run a service of this repository."""

_VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?:(?P<kind>:[-?])(?P<rest>[^}]*))?\})")


def load_script(path: str) -> ModuleType:
    """A script of `deploy/`, which is no package, as a module."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Variable:
    """One `${...}`."""

    name: str
    kind: str
    """`:?` required, `:-` with a default, empty for neither."""
    rest: str


def variables_in(value: Any) -> Iterator[Variable]:
    """Every variable of a text, list or mapping."""
    if isinstance(value, str):
        for match in _VARIABLE.finditer(value):
            if match["name"]:
                yield Variable(match["name"], match["kind"] or "", match["rest"] or "")
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from variables_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from variables_in(item)


def raw() -> dict[str, Any]:
    """The file with its merge keys resolved and its variables left as they are."""
    document: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text("utf-8"))
    return document


def resolve(value: Any, environ: Mapping[str, str]) -> Any:
    """With every variable replaced.

    Raises:
        LookupError: a required one is not set.
    """
    if isinstance(value, Mapping):
        return {name: resolve(item, environ) for name, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, environ) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        found = environ.get(match["name"], "")
        if not found and match["kind"] == ":?":
            raise LookupError(match["name"])
        return found or (match["rest"] if match["kind"] == ":-" else "")

    return _VARIABLE.sub(replace, value)


def services(environ: Mapping[str, str]) -> dict[str, Any]:
    """The services, with every variable replaced."""
    found: dict[str, Any] = resolve(raw()["services"], environ)
    return found


def environment_of(service: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What the container's process gets."""
    return {name: str(value) for name, value in services(environ)[service].get("environment", {}).items()}


def read_env(path: Path) -> dict[str, str]:
    """A `.env` file."""
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: "".join(shlex.split(value)) for name, _, value in pairs}


def made_env(folder: Path) -> dict[str, str]:
    """A fresh `.env`, as `make env` writes it."""
    path = folder / ".env"
    assert load_script("deploy/make_env.py").main([str(path)]) == 0
    return read_env(path)


def size_bytes(text: str | int) -> int:
    """`512m` -> 536870912."""
    match = re.fullmatch(r"(\d+)([kmg]?)b?", str(text))
    assert match, text
    return int(match[1]) * {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}[match[2]]
