"""What an image needs of this repository: which members, and which third parties these ask for.

    python members.py auth real              the requirements, one a line, for `uv pip compile`
    python members.py --folders auth real    the members' folders, in the order of their installation

Standard library only. The Dockerfile repeats the folders; tests/repo/test_deploy.py holds the two equal.
"""

# ruff: noqa: T201 - a command speaks on its standard output

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "modelworks-"


def _project(folder: Path) -> Mapping[str, Any]:
    table: Mapping[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def _folder(member: str) -> Path:
    for kind in ("libs", "services"):
        if (folder := ROOT / kind / member).is_dir():
            return folder
    raise SystemExit(f"there is no member {member!r} in libs or services")


def _requirements(member: str, extras: Sequence[str]) -> list[str]:
    table = _project(_folder(member))
    optional = table.get("optional-dependencies", {})
    return [*table["dependencies"], *(line for extra in extras for line in optional.get(extra, []))]


def closure(service: str, extras: Sequence[str] = ()) -> list[str]:
    """The service and every member it needs, each after those it needs."""
    found: list[str] = []

    def visit(member: str) -> None:
        for line in _requirements(member, extras):
            if line.startswith(PREFIX):
                visit(line.removeprefix(PREFIX))
        if member not in found:
            found.append(member)

    visit(service)
    return found


def folders(service: str, extras: Sequence[str] = ()) -> list[str]:
    """The members' folders below the root."""
    return [str(_folder(member).relative_to(ROOT)) for member in closure(service, extras)]


def requirements(service: str, extras: Sequence[str] = ()) -> list[str]:
    """What the members ask of third parties."""
    lines = {line for member in closure(service, extras) for line in _requirements(member, extras)}
    return sorted(line for line in lines if not line.startswith(PREFIX))


if __name__ == "__main__":
    words = sys.argv[1:]
    tell = folders if "--folders" in words else requirements
    service, *extras = [word for word in words if word != "--folders"]
    print("\n".join(tell(service, extras)))
