"""The edge's own paths: events in, events out, dead letters."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from modelworks.edge.domain import decode_position, events_of
from modelworks.edge.handlers import Events, StreamedEvent
from modelworks.edge.settings import EdgeSettings
from modelworks.kit.errors import ModelworksError, RateLimited
from modelworks.kit.http import Authenticated, Renderer
from modelworks.kit.platform import Platform
from modelworks.stores import DeadLetter


def _v2_error(error: ModelworksError) -> Response:
    return JSONResponse({"error": error.message}, status_code=error.status)


RENDERERS: Mapping[str, Renderer] = {"/oip": _v2_error}
"""Refusals at the door in the form of the protocol whose path was asked for (Open Inference Protocol, error response)."""


def router(events: Events, settings: EdgeSettings, platform: Platform) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/api/v1", tags=["events"])
    streams = asyncio.Semaphore(settings.streams_max)

    @routes.post("/events", status_code=202)
    async def ingest(request: Request, principal: Authenticated) -> JSONResponse:
        """Take CloudEvents from an upstream system: binary, structured or batch mode; types `ingest.*`."""
        platform.policy.require(principal, "event:publish")
        envelopes = events_of(
            request.headers, await request.body(), actor=principal.id,
            events_max=settings.events_max, event_bytes_max=settings.event_bytes_max,
        )  # fmt: skip
        events.require_asked_for(principal, envelopes)
        return JSONResponse({"accepted": await events.ingest(envelopes)}, status_code=202)

    @routes.get("/events/stream", response_class=StreamingResponse)
    async def stream(
        request: Request, principal: Authenticated, topic: Annotated[list[str], Query()]
    ) -> StreamingResponse:
        """Follow topics as server-sent events. `Last-Event-ID` goes on after that event."""
        own_only = events.narrow(principal, topic)
        last = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
        after = decode_position(last) if last else {}
        if streams.locked():
            raise RateLimited("too many event streams are open: try again later", retry_after_seconds=10)
        source = events.follow(principal, topic, own_only, after)
        body = _sse(source, streams, ping_seconds=settings.stream_ping_seconds)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(body, media_type="text/event-stream", headers=headers)

    @routes.get("/dead-letters")
    async def dead_letters(principal: Authenticated, topic: str | None = None, limit: int = 100) -> dict[str, Any]:
        """Messages that their consumers gave up on, newest first."""
        platform.policy.require(principal, "event:read")
        items = [_letter(letter) for letter in await events.dead_letters(topic=topic, limit=limit)]
        return {"items": items, "total": len(items), "cursor": None}

    @routes.get("/dead-letters/{id}")
    async def dead_letter(principal: Authenticated, id: str) -> dict[str, Any]:
        """One of them, with its headers and body."""
        platform.policy.require(principal, "event:read")
        return _letter(await events.dead_letter(id), whole=True)

    @routes.post("/dead-letters/{id}/replay", status_code=202)
    async def replay(principal: Authenticated, id: str) -> dict[str, Any]:
        """Hand it to its consumer again."""
        platform.policy.require(principal, "event:replay")
        return _letter(await events.replay(id))

    return routes


async def _sse(
    source: AsyncIterator[StreamedEvent], streams: asyncio.Semaphore, *, ping_seconds: float
) -> AsyncIterator[bytes]:
    """Server-sent events (WHATWG HTML, section 9.2) with a comment now and then, so that proxies keep the line open."""
    async with streams:
        # In place before the first byte: what a client sends after it sees the stream open is not missed.
        upcoming = asyncio.ensure_future(anext(source))
        await asyncio.sleep(0)
        yield b": open\n\n"
        try:
            while True:
                done, _ = await asyncio.wait({upcoming}, timeout=ping_seconds)
                if not done:
                    yield b": ping\n\n"
                    continue
                event = upcoming.result()
                yield _format(event)
                upcoming = asyncio.ensure_future(anext(source))
        except StopAsyncIteration:
            return
        finally:
            upcoming.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await upcoming


def _format(event: StreamedEvent) -> bytes:
    message = event.delivery.message
    attributes = {name[3:]: value for name, value in message.headers.items() if name.startswith("ce_")}
    # CloudEvents JSON format, one line: no property of it can break out of the `data:` field.
    line = json.dumps({**attributes, "datacontenttype": "application/json", "data": json.loads(message.value)})
    return f"id: {event.position}\nevent: {message.topic}\ndata: {line}\n\n".encode()


def _letter(letter: DeadLetter, *, whole: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": letter.id,
        "topic": letter.message.topic,
        "key": letter.message.key,
        "group": letter.group,
        "error": letter.error,
        "attempts": letter.attempts,
        "failed_at": letter.failed_at.isoformat(),
        "replayed": letter.replayed,
    }
    if whole:
        body["headers"] = dict(letter.message.headers)
        try:
            body["body"] = letter.message.value.decode()
        except UnicodeDecodeError:
            body["body_base64"] = base64.b64encode(letter.message.value).decode()
    return body
