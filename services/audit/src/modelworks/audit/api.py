"""HTTP: parse, ask, render."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse, Response
from modelworks.audit.handlers import Auditing
from modelworks.audit.ports import Question
from modelworks.audit.watch import Watch
from modelworks.kit.http import Authenticated
from modelworks.kit.platform import Platform

LIMIT_MAX = 200
"""Hits a page: each has a proof to be built."""

_Text = Annotated[str, Query(max_length=1000)]


def router(auditing: Auditing, watch: Watch, vkey: str, platform: Platform) -> APIRouter:
    """The routes. All need `audit:read`."""
    routes = APIRouter(prefix="/api/v1/audit", tags=["audit"])

    @routes.get("/events")
    async def search(
        principal: Authenticated,
        q: _Text = "",
        actor: _Text = "",
        type: _Text = "",
        resource: _Text = "",
        outcome: Literal["", "success", "failure", "denied"] = "",
        since: datetime | None = None,
        until: datetime | None = None,
        limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = 50,
        cursor: Annotated[str | None, Query(max_length=8192)] = None,
    ) -> dict[str, Any]:
        """Who did what, newest first; each hit with its leaf and the proof to the checkpoint in the answer."""
        platform.policy.require(principal, "audit:read")
        question = Question(
            text=q, actor=actor, type=type, resource=resource, outcome=outcome, since=_utc(since), until=_utc(until),
            limit=limit,
        )  # fmt: skip
        return await auditing.search(question, cursor or None)

    @routes.get("/entries/{index}")
    async def entry(principal: Authenticated, index: int) -> dict[str, Any]:
        """A leaf as the log has it, with its proof and the checkpoint."""
        platform.policy.require(principal, "audit:read")
        return await auditing.entry(index)

    @routes.get("/proof/consistency")
    async def consistency(principal: Authenticated, old: int, new: int) -> dict[str, Any]:
        """The proof that nothing among the first `old` leaves was changed when there were `new`."""
        platform.policy.require(principal, "audit:read")
        return await auditing.consistency(old, new)

    @routes.get("/checkpoint")
    async def checkpoint(principal: Authenticated) -> PlainTextResponse:
        """The log's head as a signed note (C2SP tlog-checkpoint)."""
        platform.policy.require(principal, "audit:read")
        return PlainTextResponse(await auditing.checkpoint(), headers={"Cache-Control": "no-store"})

    @routes.get("/key")
    async def key(principal: Authenticated) -> PlainTextResponse:
        """The log's public key (C2SP signed-note vkey): pin it before you need it."""
        platform.policy.require(principal, "audit:read")
        return PlainTextResponse(vkey)

    @routes.get("/health")
    async def health(principal: Authenticated) -> dict[str, Any]:
        """What the last look found: how far the log is behind, and documents that differ from their leaves."""
        platform.policy.require(principal, "audit:read")
        return watch.health()

    @routes.get("/tile/{path:path}")
    async def tile(principal: Authenticated, path: str) -> Response:
        """A tile or entry bundle (C2SP tlog-tiles), for verifiers that read the whole log."""
        platform.policy.require(principal, "audit:read")
        data = await auditing.file(f"tile/{path}")
        return Response(
            data,
            media_type="application/octet-stream",
            headers={"Cache-Control": "private, max-age=31536000, immutable"},
        )

    return routes


def _utc(moment: datetime | None) -> datetime | None:
    """A time without a zone is meant in UTC, as all times in the answers are."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment
