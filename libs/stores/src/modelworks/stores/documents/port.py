"""The document store: JSON documents by id, saved only if nobody else saved since, found by typed filters and text.

Read by id sees every completed save. Search is near-real-time on the real
column (a save shows within a second), so nothing that must be exact is decided
by a search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

Version = str
"""Opaque; changes with each save of a document."""


class FieldType(StrEnum):
    """How a field of a document is indexed."""

    KEYWORD = "keyword"
    """Exact value; at most 1000 characters are indexed. May be a list: a filter matches any element."""
    TEXT = "text"
    """Full text, split into lower-cased words."""
    INTEGER = "integer"
    FLOAT = "float"
    BOOLEAN = "boolean"
    TIME = "time"
    """RFC 3339 in UTC with six fractional digits and `Z`, so that text order is time order."""


@dataclass(frozen=True, slots=True)
class Field:
    """An indexed field; fields that are not declared are stored and returned, but cannot be searched."""

    path: str
    """Name, or dotted path into nested objects."""
    type: FieldType


@dataclass(frozen=True, slots=True)
class Schema:
    """A collection and its indexed fields."""

    collection: str
    """`[a-z][a-z0-9-]*`, unique in the suite."""
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A stored document."""

    id: str
    body: Mapping[str, Any]
    version: Version


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on one KEYWORD, INTEGER, FLOAT, BOOLEAN or TIME field."""

    path: str
    op: Literal["eq", "in", "gt", "gte", "lt", "lte", "prefix", "exists"]
    value: Any = None
    """A list for `in`; True or False for `exists`."""


@dataclass(frozen=True, slots=True)
class Sort:
    """An order. Ties are broken by id, so that pages never overlap."""

    path: str
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """What to find: all filters hold, and all words of `text` occur in one of the TEXT fields."""

    filters: tuple[Filter, ...] = ()
    text: str = ""
    """Words; matched whole, any case. Never a query language: what a user typed can be passed as it is."""
    sort: Sort | None = None
    """None: by relevance when there is text, by id otherwise."""
    limit: int = 50
    """1 to 1000."""
    cursor: str | None = None
    """From the page before."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that was found."""

    document: Document
    score: float | None = None
    """Relevance when there was text; comparable only within one answer."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of hits."""

    hits: Sequence[Hit]
    total: int
    """Hits in all pages together."""
    cursor: str | None
    """For the next page; None when this is the last."""
    facets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class Documents(Protocol):
    """Collections of documents."""

    async def ensure(self, schema: Schema) -> None:
        """Make the collection, or add fields to it. Idempotent, and safe when several processes do it at once.

        Raises:
            InvalidInput: a field exists with another type.
            StoreUnavailable: the store cannot be reached.
        """

    async def get(self, collection: str, id: str) -> Document | None:
        """The newest save of the document, or None.

        Raises:
            StoreUnavailable: the store did not answer.
        """

    async def save(self, collection: str, id: str, body: Mapping[str, Any], *, expected: Version | None) -> Document:
        """Write the document if nobody else did since `expected` was read; None: if it does not exist.

        Raises:
            VersionConflict: somebody else saved, created or deleted it; nothing was written.
            InvalidInput: a declared field has a value of another type; nothing was written.
            TooLarge: the body has more than 4 MiB as JSON.
            StoreUnavailable: the store did not answer. It may have written: read before trying again.
        """

    async def create_many(self, collection: str, documents: Sequence[tuple[str, Mapping[str, Any]]]) -> Sequence[str]:
        """Create documents in bulk; returns the ids that existed already, which are left as they are.

        Raises:
            InvalidInput, TooLarge, StoreUnavailable: as `save`; some documents may have been written.
        """

    async def delete(self, collection: str, id: str, *, expected: Version) -> None:
        """Delete the document if nobody saved since.

        Raises:
            VersionConflict: somebody did, or it is gone already.
        """

    async def search(self, collection: str, query: Query, *, facets: Sequence[str] = ()) -> Page:
        """Find documents.

        Args:
            facets: KEYWORD fields to count the values of, over all hits; the 50 most frequent each.

        Raises:
            InvalidInput: a field is not declared or of the wrong type, the limit is out of bounds, or the cursor
                belongs to another query.
            StoreUnavailable: the store did not answer.
        """

    async def refresh(self, collection: str) -> None:
        """Make every completed save visible to search now: for tests and tools, not for request paths."""

    async def check(self) -> None:
        """Readiness.

        Raises:
            StoreUnavailable: the store cannot be reached or written.
        """

    async def close(self) -> None:
        """Let go of connections."""
