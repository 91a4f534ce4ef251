"""The text of the BERT demo: first sentences of docstrings, of a folder and of Python's own library. Only parsed, never run."""

from __future__ import annotations

import ast
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_WORDS_MIN, _WORDS_MAX = 6, 40
_FILE_BYTES_MAX = 1 << 20

STDLIB_MODULES = (
    "base64", "bisect", "calendar", "contextlib", "csv", "fnmatch", "fractions", "functools", "glob", "gzip", "heapq",
    "json/__init__", "queue", "random", "secrets", "shutil", "statistics", "tempfile", "textwrap", "threading", "uuid",
    "zipfile", "zipfile/__init__",
)  # fmt: skip
"""Those whose sentences say what a function does; a module that is a package in some versions stands in both forms."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence and where it stands."""

    text: str
    where: str
    """Module and name, as `statistics.median`."""


def read_corpus(folder: Path, *, sentences_max: int) -> Sequence[Sentence]:
    """At most `sentences_max` sentences, in a fixed order: all of the library first, then the folder's, spread over it."""
    library = list(_distinct(_library()))[:sentences_max]
    own = [sentence for sentence in _distinct(_folder(folder)) if sentence.text not in {one.text for one in library}]
    room = sentences_max - len(library)
    step = max(1, len(own) // room) if room else 1
    return [*library, *own[::step][:room]]


def _library() -> Iterator[Sentence]:
    root = Path(os.__file__).parent
    for module in STDLIB_MODULES:
        file = root / f"{module}.py"
        if file.is_file():
            yield from _sentences(file, module.removesuffix("/__init__").lstrip("_").replace("/", "."))


def _folder(folder: Path) -> Iterator[Sentence]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if not any(part.startswith(".") or part in ("tests", "node_modules", "build") for part in parts):
            yield from _sentences(path, path.stem)


def _sentences(file: Path, module: str) -> Iterator[Sentence]:
    if file.stat().st_size > _FILE_BYTES_MAX:
        return
    try:
        with warnings.catch_warnings():
            # Other people's escapes are not our business.
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    yield from _of_node(tree, module)


def _of_node(node: ast.Module | ast.ClassDef, name: str) -> Iterator[Sentence]:
    yield from _of(ast.get_docstring(node), name)
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _of_node(child, f"{name}.{child.name}")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from _of(ast.get_docstring(child), f"{name}.{child.name}")


def _of(docstring: str | None, where: str) -> Iterator[Sentence]:
    paragraph = " ".join((docstring or "").split("\n\n", 1)[0].split())
    first = re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph, maxsplit=1)[0]
    if _WORDS_MIN <= len(first.split()) <= _WORDS_MAX:
        yield Sentence(first, where)


def _distinct(sentences: Iterator[Sentence]) -> Iterator[Sentence]:
    seen: set[str] = set()
    for sentence in sentences:
        if sentence.text not in seen:
            seen.add(sentence.text)
            yield sentence
