"""The HTTP shell: `/api/v1/optimizations`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from modelworks.events.values import RefName, RepositoryName
from modelworks.kit.http import Authenticated
from modelworks.optimizer.access import READ, RUN, Access
from modelworks.optimizer.domain import Job
from modelworks.optimizer.handlers import Handlers
from pydantic import BaseModel, ConfigDict, Field

_WAIT_SECONDS_MAX = 60

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class OptimizationWish(BaseModel):
    """What to optimise, and how."""

    model_config = ConfigDict(extra="forbid")

    model: RepositoryName
    ref: RefName = "main"
    recipe: Annotated[str, Field(min_length=1, max_length=65_536)] | dict[str, Any] = "int8"
    """Name of a recipe, or a recipe."""
    again: bool = False
    """Run it once more although it has succeeded."""


class VariantShown(BaseModel):
    """Where the variant is."""

    branch: str
    revision: str


class ErrorShown(BaseModel):
    """Why there is none."""

    code: str
    message: str


class OptimizationShown(BaseModel):
    """A job."""

    id: str
    repository: str
    revision: str
    ref: str
    recipe: str
    status: JobStatus
    progress: float
    stage: str | None
    variant: VariantShown | None
    verdict: Literal["promote", "keep"] | None
    report: dict[str, Any] | None
    error: ErrorShown | None
    created_at: str
    updated_at: str


class OptimizationPage(BaseModel):
    """Some jobs, newest first. `total` counts those the caller may not see, too; they are left out of `items`."""

    items: list[OptimizationShown]
    total: int
    cursor: str | None


def router(handlers: Handlers, access: Access) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/api/v1/optimizations", tags=["optimizations"])

    @routes.post("", status_code=202)
    async def create(wish: OptimizationWish, principal: Authenticated, response: Response) -> OptimizationShown:
        """Ask for a variant. 202 and a new job, or 200 and the job that does the same already."""
        await access.require(principal, RUN, wish.model, missing=f"repository {wish.model!r} does not exist")
        job, new = await handlers.request(
            wish.model, ref=wish.ref, recipe=wish.recipe, again=wish.again, actor=principal.id
        )
        response.status_code = 202 if new else 200
        response.headers["Location"] = f"/api/v1/optimizations/{job.id}"
        return shown(job)

    @routes.get("")
    async def find(
        principal: Authenticated,
        model: Annotated[RepositoryName | None, Query()] = None,
        status: JobStatus | None = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, Query(max_length=2000)] = None,
    ) -> OptimizationPage:
        """Jobs, newest first."""
        access.require_any(principal, READ)
        page = await handlers.find(repository=model, status=status, limit=limit, cursor=cursor)
        items = [shown(job) for job in page.jobs if await access.may(principal, READ, job.repository)]
        return OptimizationPage(items=items, total=page.total, cursor=page.cursor)

    @routes.get("/{id}")
    async def get(
        id: str, principal: Authenticated, response: Response, prefer: Annotated[str, Header()] = ""
    ) -> OptimizationShown:
        """A job. `Prefer: wait=N` waits up to N seconds (at most 60) for its end (RFC 7240)."""
        access.require_any(principal, READ)
        job = await handlers.get(id)
        await access.require(principal, READ, job.repository, missing=f"optimization {id!r} does not exist")
        wanted = re.search(r"(?:^|[,;\s])wait\s*=\s*(\d{1,6})", prefer)
        if wanted and not job.ended:
            seconds = min(int(wanted.group(1)), _WAIT_SECONDS_MAX)
            response.headers["Preference-Applied"] = f"wait={seconds}"
            job = await handlers.get(id, wait_seconds=seconds)
        return shown(job)

    @routes.delete("/{id}")
    async def cancel(id: str, principal: Authenticated) -> OptimizationShown:
        """Cancel a job that waits or runs."""
        access.require_any(principal, RUN)
        job = await handlers.get(id)
        await access.require(principal, RUN, job.repository, missing=f"optimization {id!r} does not exist")
        return shown(await handlers.cancel(id, actor=principal.id))

    return routes


def shown(job: Job) -> OptimizationShown:
    """A job as a caller sees it. The verdict and report appear with the variant they are about."""
    outcome = job.outcome if job.status == "succeeded" else None
    state = job.model_dump(mode="json")
    return OptimizationShown(
        **{name: state[name] for name in OptimizationShown.model_fields if name in state and name != "recipe"},
        recipe=job.recipe_name,
        verdict=outcome.verdict if outcome else None,
        report=outcome.report if outcome else None,
    )
