"""Jobs as documents that carry their pending events."""

from __future__ import annotations

from collections.abc import Sequence

from modelworks.events import Event
from modelworks.optimizer.domain import Job
from modelworks.optimizer.ports import JobPage, StoredJob
from modelworks.stores import Documents, Field, FieldType, Filter, Query, Schema, Sort
from modelworks.stores.outbox import Outbox, Stored, stored

SCHEMA = Schema(
    "optimizer-jobs",
    (
        Field("repository", FieldType.KEYWORD),
        Field("status", FieldType.KEYWORD),
        Field("recipe.name", FieldType.KEYWORD),
        Field("created_at", FieldType.TIME),
        Field("updated_at", FieldType.TIME),
    ),
)


class OutboxJobs:
    """See `ports.Jobs`."""

    def __init__(self, outbox: Outbox, documents: Documents) -> None:
        self._outbox = outbox
        self._documents = documents

    async def get(self, id: str) -> StoredJob | None:
        """See `ports.Jobs.get`."""
        found = await self._outbox.get(id)
        return None if found is None else _job(found)

    async def save(self, job: Job, events: Sequence[Event], *, expected: str | None, actor: str) -> StoredJob:
        """See `ports.Jobs.save`."""
        state = job.model_dump(mode="json")
        return _job(await self._outbox.save(job.id, state, events, expected=expected, actor=actor))

    async def find(self, *, repository: str | None, status: str | None, limit: int, cursor: str | None) -> JobPage:
        """See `ports.Jobs.find`."""
        given = (("repository", repository), ("status", status))
        query = Query(
            filters=tuple(Filter(path, "eq", value) for path, value in given if value is not None),
            sort=Sort("created_at", descending=True),
            limit=limit,
            cursor=cursor,
        )
        page = await self._documents.search(SCHEMA.collection, query)
        return JobPage([_job(stored(hit.document)).job for hit in page.hits], page.total, page.cursor)


def _job(found: Stored) -> StoredJob:
    return StoredJob(Job.model_validate(found.state), found.version)
