"""The repository as the rules about it see it: members, their sources, what these import, and all tracked files."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("auth", "registry", "optimizer", "inference", "audit", "edge")
LIBS = ("events", "kit", "stores", "client")
NAMESPACE = "modelworks"


@dataclass(frozen=True)
class Import:
    """One imported module, dotted; `from a import b` gives `a` with `names` (b,)."""

    file: Path
    line: int
    module: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.module}"

    @property
    def targets(self) -> tuple[str, ...]:
        """Every dotted name that this may bring in."""
        return (self.module, *(f"{self.module}.{name}" for name in self.names))

    @property
    def member(self) -> str | None:
        """The member of this repository that it reaches, None for a third party."""
        parts = self.module.split(".")
        if parts[0] != NAMESPACE:
            return None
        return parts[1] if len(parts) > 1 else (self.names[0] if self.names else None)


def folder_of(member: str) -> Path:
    """`libs/kit`, `services/auth`."""
    return ROOT / ("libs" if member in LIBS else "services") / member


def package_of(member: str) -> Path:
    """The folder with the member's modules."""
    return folder_of(member) / "src" / NAMESPACE / member


def files_of(member: str) -> list[Path]:
    """The member's modules."""
    return sorted(package_of(member).rglob("*.py"))


def module_of(file: Path) -> str:
    """`libs/kit/src/modelworks/kit/http.py` -> `modelworks.kit.http`."""
    parts = file.with_suffix("").parts
    parts = parts[parts.index(NAMESPACE, parts.index("src")) :]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports_of(file: Path) -> tuple[Import, ...]:
    """All imports of a file, also those inside functions; relative ones are made absolute."""
    return tuple(_walk(file))


def _walk(file: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"), filename=str(file))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, ())
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = module_of(file).split(".")
                package = package if file.name == "__init__.py" else package[:-1]
                base = package[: len(package) - node.level + 1]
                module = ".".join([*base, *([module] if module else [])])
            yield Import(file, node.lineno, module, tuple(alias.name for alias in node.names))
        elif isinstance(node, ast.Call) and (name := _imported_by_call(node)):
            yield Import(file, node.lineno, name, ())


def _imported_by_call(call: ast.Call) -> str | None:
    """The module of `import_module("x")`, `__import__("x")` and of either handed on, as to a thread."""
    words = [call.func, *call.args]
    for function, argument in pairwise(words):
        named = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        if named in ("__import__", "import_module") and isinstance(argument, ast.Constant):
            return str(argument.value)
    return None


def member_imports(member: str) -> Iterator[Import]:
    """All imports of all modules of a member."""
    for file in files_of(member):
        yield from imports_of(file)


def is_stdlib(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] in sys.stdlib_module_names


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return metadata.packages_distributions()


def normalised(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def distribution_of(module: str) -> str:
    """The installed distribution that an import comes from; for a shared namespace the one that has the file.

    Raises:
        LookupError: nothing installed provides it.
    """
    top = module.split(".", maxsplit=1)[0]
    candidates = sorted({normalised(name) for name in _distributions().get(top, ())})
    if len(candidates) == 1:
        return candidates[0]
    best: tuple[int, str] | None = None
    for candidate in candidates:
        files = {str(path) for path in metadata.files(candidate) or ()}
        parts = module.split(".")
        for length in range(len(parts), 1, -1):
            stem = "/".join(parts[:length])
            if f"{stem}.py" in files or f"{stem}/__init__.py" in files or any(f.startswith(stem + "/") for f in files):
                best = max(best or (0, ""), (length, candidate))
                break
    if best is None:
        raise LookupError(f"no installed distribution provides {module!r}")
    return best[1]


@functools.cache
def project(folder: Path) -> Mapping[str, Any]:
    """The `[project]` table of a folder's pyproject.toml."""
    table: Mapping[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def requirement_name(requirement: str) -> str:
    """`fakeredis[lua]>=2.40; marker` -> `fakeredis`."""
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    assert match, requirement
    return normalised(match.group(1))


@functools.cache
def tracked() -> tuple[Path, ...]:
    """Every file that git tracks, where there is a checkout; deleted ones left out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return tuple(path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file())


def text_of(file: Path) -> str | None:
    """A file's text; None for a binary one."""
    raw = file.read_bytes()
    if b"\0" in raw[:8192]:
        return None
    return raw.decode("utf-8", "replace")
