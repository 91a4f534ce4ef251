"""What the suite answers, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """A file of a revision."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Revision:
    """A commit with its whole tree."""

    repository: str
    revision: str
    parents: Sequence[str]
    message: str
    author: str
    created_at: str
    tree: Sequence[TreeEntry]
    lineage: Mapping[str, Any] | None = None

    def entry(self, path: str) -> TreeEntry | None:
        """The file at `path`, or None."""
        return next((entry for entry in self.tree if entry.path == path), None)


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit as it was just made, or as the log lists it."""

    revision: str
    parents: Sequence[str]
    branch: str | None = None
    message: str = ""
    author: str = ""
    created_at: str = ""
    lineage: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Ref:
    """A branch or tag and where it points."""

    kind: str
    name: str
    revision: str


@dataclass(frozen=True, slots=True)
class SearchPage:
    """A page of JSON items."""

    items: Sequence[Mapping[str, Any]]
    total: int
    cursor: str | None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else the answer held, for example the audit's `checkpoint`."""
