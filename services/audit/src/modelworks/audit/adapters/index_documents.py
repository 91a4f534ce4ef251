"""The index in the document store: one collection, `audit-events`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from modelworks.audit.ports import Found, Indexed, Question
from modelworks.stores import Documents, Field, FieldType, Filter, Query, Schema, Sort

SCHEMA = Schema(
    "audit-events",
    (
        Field("event.index", FieldType.INTEGER),
        Field("event.key", FieldType.KEYWORD),
        Field("event.id", FieldType.KEYWORD),
        Field("event.type", FieldType.KEYWORD),
        Field("event.source", FieldType.KEYWORD),
        Field("event.subject", FieldType.KEYWORD),
        Field("actor.user.name", FieldType.KEYWORD),
        Field("resource.name", FieldType.KEYWORD),
        Field("resource.type", FieldType.KEYWORD),
        Field("outcome", FieldType.KEYWORD),
        Field("status_detail", FieldType.KEYWORD),
        Field("class_name", FieldType.KEYWORD),
        Field("severity_id", FieldType.INTEGER),
        Field("time_dt", FieldType.TIME),
        Field("message", FieldType.TEXT),
        Field("text", FieldType.TEXT),
    ),
)


class DocumentIndex:
    """`Index` over `Documents`."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    async def ensure(self) -> None:
        await self._documents.ensure(SCHEMA)

    async def create(self, documents: Sequence[tuple[str, Mapping[str, Any]]]) -> Sequence[str]:
        return await self._documents.create_many(SCHEMA.collection, documents)

    async def get(self, id: str) -> Indexed | None:
        document = await self._documents.get(SCHEMA.collection, id)
        return None if document is None else Indexed(document.id, document.body, document.version)

    async def replace(self, id: str, body: Mapping[str, Any], *, version: str) -> None:
        await self._documents.save(SCHEMA.collection, id, body, expected=version)

    async def indexes(self, keys: Sequence[str]) -> Mapping[str, Sequence[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for at in range(0, len(keys), 500):
            wanted = Filter("event.key", "in", list(keys[at : at + 500]))
            page = await self._documents.search(SCHEMA.collection, Query(filters=(wanted,), limit=1000))
            for hit in page.hits:
                event = hit.document.body["event"]
                if isinstance(event.get("index"), int):
                    found[event["key"]].append(event["index"])
        return found

    async def search(self, question: Question, *, size: int, cursor: str | None) -> Found:
        page = await self._documents.search(
            SCHEMA.collection,
            Query(
                filters=_filters(question, size),
                text=question.text,
                sort=Sort("event.index", descending=True),
                limit=question.limit,
                cursor=cursor,
            ),
        )
        return Found([hit.document.body for hit in page.hits], page.total, page.cursor)

    async def count(self) -> int:
        return (await self._documents.search(SCHEMA.collection, Query(limit=1))).total

    async def page(self, *, cursor: str | None, limit: int) -> tuple[Sequence[Indexed], str | None]:
        page = await self._documents.search(SCHEMA.collection, Query(limit=limit, cursor=cursor))
        found = [Indexed(hit.document.id, hit.document.body, hit.document.version) for hit in page.hits]
        return found, page.cursor


def _filters(question: Question, size: int) -> tuple[Filter, ...]:
    filters = [Filter("event.index", "gte", 0), Filter("event.index", "lt", size)]
    if question.type.endswith("*"):
        filters.append(Filter("event.type", "prefix", question.type[:-1]))
    elif question.type:
        filters.append(Filter("event.type", "eq", question.type))
    for path, value in (
        ("actor.user.name", question.actor),
        ("resource.name", question.resource),
        ("outcome", question.outcome),
    ):
        if value:
            filters.append(Filter(path, "eq", value))
    if question.since is not None:
        filters.append(Filter("time_dt", "gte", _time(question.since)))
    if question.until is not None:
        filters.append(Filter("time_dt", "lt", _time(question.until)))
    return tuple(filters)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
