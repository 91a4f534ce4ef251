"""What audit needs from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from modelworks.audit.tlog.tiles import Bundle, Tile


class Log(Protocol):
    """The log's files. Every method raises StoreUnavailable when the store does not answer."""

    async def note(self) -> str | None:
        """The published checkpoint, or None before the first."""

    async def checkpoint(self) -> tuple[str, str] | None:
        """The published checkpoint and its version, or None before the first."""

    async def version(self) -> str | None:
        """Of the published checkpoint, or None before the first."""

    async def publish(self, note: str, *, replaces: str | None) -> str:
        """Replace the checkpoint that has this version (None: there is none); returns the new version.

        Raises:
            Fenced: somebody else replaced it; nothing was written.
        """

    async def read(self, name: Tile | Bundle) -> bytes:
        """A tile or bundle, cut to its width when only a wider one is left.

        Raises:
            NotFound: it was never written.
        """

    async def write(self, name: Tile | Bundle, data: bytes) -> None:
        """Store a tile or bundle. The same name always has the same bytes."""

    async def forget_partials(self, name: Tile | Bundle) -> None:
        """Remove the partial forms of a full tile or bundle."""

    async def plan(self, start: int) -> bytes | None:
        """The plan for the leaves from `start` on, or None."""

    async def write_plan(self, start: int, data: bytes) -> None:
        """Store the plan, if there is none for this place.

        Raises:
            Fenced: there is one.
        """

    async def forget_plans(self, before: int) -> None:
        """Remove the plans for places before this one: they were carried out."""

    async def read_body(self, sha256: str) -> bytes:
        """A body that lies beside the log.

        Raises:
            NotFound: there is none.
        """

    async def write_body(self, sha256: str, data: bytes) -> None:
        """Store a body beside the log."""


@dataclass(frozen=True, slots=True)
class Question:
    """A search of the index; all conditions hold. Empty: any."""

    text: str = ""
    actor: str = ""
    type: str = ""
    """A type; or the beginning of one, when it ends with `*`."""
    resource: str = ""
    outcome: str = ""
    since: datetime | None = None
    until: datetime | None = None
    """Exclusive."""
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Found:
    """A page of documents, newest leaf first."""

    documents: Sequence[Mapping[str, Any]]
    total: int
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Indexed:
    """A document as the index has it."""

    id: str
    body: Mapping[str, Any]
    version: str


class Index(Protocol):
    """The documents, one a leaf. Every method raises StoreUnavailable when the store does not answer."""

    async def ensure(self) -> None:
        """Make the index."""

    async def create(self, documents: Sequence[tuple[str, Mapping[str, Any]]]) -> Sequence[str]:
        """Create documents; returns the ids that existed, which are left as they are."""

    async def get(self, id: str) -> Indexed | None:
        """The document, or None."""

    async def replace(self, id: str, body: Mapping[str, Any], *, version: str) -> None:
        """Overwrite a document that still has this version."""

    async def indexes(self, keys: Sequence[str]) -> Mapping[str, Sequence[int]]:
        """The leaves that documents claim for event keys; a document made in the last seconds may be missing."""

    async def search(self, question: Question, *, size: int, cursor: str | None) -> Found:
        """Documents of leaves below `size`.

        Raises:
            InvalidInput: the cursor belongs to another question.
        """

    async def count(self) -> int:
        """Documents there are."""

    async def page(self, *, cursor: str | None, limit: int) -> tuple[Sequence[Indexed], str | None]:
        """Documents in the order of their ids, and the cursor of the next page."""


class Lease(Protocol):
    """Who sequences. It keeps two from working against each other; that only one can win is the plans' doing."""

    async def acquire(self) -> bool:
        """Take it, if it is free."""

    async def renew(self) -> bool:
        """Keep it; False when it went to somebody else."""

    async def release(self) -> None:
        """Let go of it."""
