"""The README cannot lie about the code: every file and function it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PLACES = sorted(set(re.findall(r"`([a-z_0-9]+(?:/[a-z_0-9]+)+\.py)(?::([A-Za-z_.0-9]+))?`", README)))
TARGETS = sorted(set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M)))


def names_in(path: Path) -> set[str]:
    """All functions and classes of a file, methods as `Class.method`, nested functions by their own name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{part.name}"
                for part in node.body
                if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
    return found


@pytest.mark.parametrize(("file", "name"), PLACES)
def test_place_that_the_readme_names_exists(file: str, name: str) -> None:
    package = file.partition("/")[0]
    roots = [ROOT / "services" / package, ROOT / "libs" / package]
    found = [root / "src" / "modelworks" / file for root in roots if (root / "src" / "modelworks" / file).is_file()]

    assert found, f"{file} does not exist"
    assert not name or name in names_in(found[0]), f"{file} has no {name}"


@pytest.mark.parametrize("target", TARGETS)
def test_make_target_that_the_readme_names_exists(target: str) -> None:
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text("utf-8"), re.M)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_link_of_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_walk_is_found() -> None:
    assert len(PLACES) > 20
    assert {"demo", "test"} <= set(TARGETS)
