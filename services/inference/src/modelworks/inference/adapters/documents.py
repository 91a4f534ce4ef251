"""Deployments and jobs as documents that carry their pending events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from modelworks.inference.domain import FINAL, Change, Deployment, Job
from modelworks.inference.ports import JobPage, Versioned
from modelworks.kit.clock import Clock
from modelworks.kit.errors import VersionConflict
from modelworks.stores.bus.port import Bus
from modelworks.stores.documents.port import Documents, Field, FieldType, Filter, Query, Schema, Sort
from modelworks.stores.outbox import PENDING, Outbox, Stored, stored

DEPLOYMENTS = Schema(
    "inference-deployments",
    (Field("model", FieldType.KEYWORD), Field("ref", FieldType.KEYWORD), Field("removed", FieldType.BOOLEAN)),
)
JOBS = Schema(
    "inference-jobs",
    (
        Field("model", FieldType.KEYWORD),
        Field("owner", FieldType.KEYWORD),
        Field("status", FieldType.KEYWORD),
        Field("lane", FieldType.KEYWORD),
        Field("created_at", FieldType.TIME),
        Field("completed_at", FieldType.TIME),
    ),
)
SOURCE = "/services/inference"
_PAGE = 500


class DocumentDeployments:
    """Deployments over an outbox."""

    def __init__(self, documents: Documents, bus: Bus, clock: Clock) -> None:
        self._documents = documents
        self.outbox = Outbox(documents=documents, bus=bus, schema=DEPLOYMENTS, source=SOURCE, clock=clock)

    async def get(self, model: str) -> Versioned[Deployment] | None:
        """See Deployments."""
        found = await self.outbox.get(model)
        return None if found is None else Versioned(_deployment(found), found.version)

    async def save(self, change: Change[Deployment], *, expected: str | None, actor: str) -> Versioned[Deployment]:
        """See Deployments."""
        state = change.state
        body = state.model_dump(mode="json", exclude_none=True)
        saved = await self.outbox.save(state.model, body, change.events, expected=expected, actor=actor)
        return Versioned(state, saved.version)

    async def all(self) -> Sequence[Deployment]:
        """See Deployments."""
        found: list[Deployment] = []
        cursor: str | None = None
        while True:
            query = Query(
                filters=(Filter("removed", "eq", False),), sort=Sort("model"), limit=_PAGE, cursor=cursor
            )  # fmt: skip
            page = await self._documents.search(DEPLOYMENTS.collection, query)
            found.extend(_deployment(stored(hit.document)) for hit in page.hits)
            cursor = page.cursor
            if cursor is None:
                return found


class DocumentJobs:
    """Jobs over an outbox."""

    def __init__(self, documents: Documents, bus: Bus, clock: Clock) -> None:
        self._documents = documents
        self.outbox = Outbox(documents=documents, bus=bus, schema=JOBS, source=SOURCE, clock=clock)

    async def get(self, id: str) -> Versioned[Job] | None:
        """See Jobs."""
        found = await self.outbox.get(id)
        return None if found is None else _job(found)

    async def save(self, change: Change[Job], *, expected: str | None, actor: str) -> Versioned[Job]:
        """See Jobs."""
        job = change.state
        body = job.model_dump(mode="json", exclude_none=True)
        for name in ("created_at", "completed_at"):
            moment = getattr(job, name)
            if moment is not None:
                body[name] = _time(moment)
        saved = await self.outbox.save(job.id, body, change.events, expected=expected, actor=actor)
        return Versioned(job, saved.version)

    async def find(
        self, *, owner: str | None, model: str | None, status: str | None, limit: int, cursor: str | None
    ) -> JobPage:
        """See Jobs."""
        given = (("owner", owner), ("model", model), ("status", status))
        filters = tuple(Filter(path, "eq", value) for path, value in given if value is not None)
        query = Query(filters=filters, sort=Sort("created_at", descending=True), limit=limit, cursor=cursor)
        page = await self._documents.search(JOBS.collection, query)
        jobs = [_job(stored(hit.document)).state for hit in page.hits]
        return JobPage(jobs, page.total, page.cursor)

    async def ended_before(self, moment: datetime, *, limit: int) -> Sequence[Versioned[Job]]:
        """See Jobs."""
        filters = (Filter("status", "in", sorted(FINAL)), Filter("completed_at", "lt", _time(moment)))
        query = Query(filters=filters, sort=Sort("completed_at"), limit=limit)
        page = await self._documents.search(JOBS.collection, query)
        return [_job(stored(hit.document)) for hit in page.hits]

    async def delete(self, job: Versioned[Job]) -> bool:
        """See Jobs."""
        document = await self._documents.get(JOBS.collection, job.state.id)
        if document is None or document.version != job.version or PENDING in document.body:
            return False
        try:
            await self._documents.delete(JOBS.collection, job.state.id, expected=document.version)
        except VersionConflict:
            return False
        return True


def _deployment(found: Stored) -> Deployment:
    return Deployment.model_validate(found.state)


def _job(found: Stored) -> Versioned[Job]:
    return Versioned(Job.model_validate(found.state), found.version)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
