"""Repositories in the document store, with their events in the same write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any

from modelworks.events import Event
from modelworks.kit.clock import Clock
from modelworks.kit.errors import TooLarge, Unavailable
from modelworks.registry.domain import Repository
from modelworks.registry.ports import Find, Found, Loaded
from modelworks.stores import Bus, Documents, Field, FieldType, Filter, Query, Schema, Sort
from modelworks.stores.outbox import Outbox, stored

COLLECTION = "registry-repositories"
SOURCE = "/services/registry"
SCHEMA = Schema(
    COLLECTION,
    (
        Field("name", FieldType.KEYWORD),
        Field("index.namespace", FieldType.KEYWORD),
        Field("index.readers", FieldType.KEYWORD),
        Field("index.words", FieldType.TEXT),
        Field("kind", FieldType.KEYWORD),
        Field("owner", FieldType.KEYWORD),
        Field("description", FieldType.TEXT),
        Field("created_at", FieldType.TIME),
        Field("updated_at", FieldType.TIME),
        Field("card.text", FieldType.TEXT),
        Field("card.tags", FieldType.KEYWORD),
        Field("card.library", FieldType.KEYWORD),
        Field("card.task", FieldType.KEYWORD),
        Field("card.license", FieldType.KEYWORD),
    ),
)
_PUBLIC = "public"
_SORTS = {"name": "name", "created": "created_at", "updated": "updated_at"}


class DocumentRepositories:
    """The `Repositories` port."""

    def __init__(self, *, documents: Documents, bus: Bus, clock: Clock) -> None:
        self._documents = documents
        self._outbox = Outbox(documents=documents, bus=bus, schema=SCHEMA, source=SOURCE, clock=clock)

    async def ensure(self) -> None:
        """Make the collection."""
        await self._outbox.ensure()

    def announcing(self, *, every: timedelta) -> AbstractAsyncContextManager[None]:
        """While open: events that a crash left unpublished are published."""
        return self._outbox.sweeping(every=every)

    async def get(self, name: str) -> Loaded | None:
        found = await self._outbox.get(name.lower())
        if found is None or found.state["name"] != name:
            return None
        return Loaded(repository_of(found.state), found.version)

    async def spelled(self, name: str) -> str | None:
        found = await self._outbox.get(name.lower())
        return None if found is None else str(found.state["name"])

    async def save(self, repository: Repository, events: Sequence[Event], *, expected: str | None, actor: str) -> None:
        try:
            await self._outbox.save(
                repository.name.lower(), body_of(repository), events, expected=expected, actor=actor
            )
        except TooLarge as error:
            raise Unavailable(
                f"{repository.name} cannot be changed now: its earlier events are not published yet, is the bus down?"
            ) from error

    async def search(self, find: Find, *, reader: str | None) -> Found:
        filters = [
            Filter(path, "eq", value)
            for path, value in (
                ("kind", find.kind), ("index.namespace", find.namespace), ("owner", find.owner),
                ("card.library", find.library), ("card.task", find.task), ("card.license", find.license),
                *(("card.tags", tag) for tag in find.tags),
            )
            if value is not None
        ]  # fmt: skip
        if reader is not None:
            filters.append(Filter("index.readers", "in", [_PUBLIC, _owner(reader)]))
        query = Query(
            filters=tuple(filters), text=find.text, sort=_sort(find.order), limit=find.limit, cursor=find.cursor
        )
        page = await self._documents.search(COLLECTION, query)
        return Found([repository_of(stored(hit.document).state) for hit in page.hits], page.total, page.cursor)


def body_of(repository: Repository) -> dict[str, Any]:
    """The document of a repository: its state, and an `index` that follows from it."""
    namespace, _, rest = repository.name.partition("/")
    return {
        **repository.model_dump(mode="json"),
        "index": {
            "namespace": namespace,
            "readers": [_owner(repository.owner)] if repository.private else [_PUBLIC],
            # `resnet-50` is found by `resnet`, too.
            "words": " ".join(dict.fromkeys([namespace, rest, *re.split(r"[._-]+", f"{namespace}-{rest}")])),
        },
    }


def repository_of(state: Mapping[str, Any]) -> Repository:
    """The repository of a document."""
    return Repository.model_validate(state)


def _owner(principal: str) -> str:
    # Apart from `_PUBLIC`, whatever a principal is called.
    return f"owner:{principal}"


def _sort(order: str) -> Sort | None:
    if order == "relevance":
        return None
    return Sort(_SORTS[order.removeprefix("-")], descending=order.startswith("-"))
