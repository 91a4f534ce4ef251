"""Following topics: in order, after a break, and no further than the listener may."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from modelworks.edge.app import build
from modelworks.edge.settings import EdgeSettings
from modelworks.events import Envelope, PredictionCompleted
from modelworks.kit.clock import utc_now
from modelworks.kit.platform import Platform
from modelworks.stores.outbox import message_of
from modelworks.stores.stores import Stores

from conftest import Issuer
from services.edge.tests.serving import serving

TOPIC = "inference.prediction-completed.v1"


@pytest.fixture
async def door(stores: Stores, platform: Platform) -> AsyncIterator[str]:
    edge = build(stores, EdgeSettings(stream_ping_seconds=0.1, streams_max=1), platform)
    async with edge.run(), serving(edge.app) as url:
        yield url


def completed(job: str, principal: str) -> Envelope:
    event = PredictionCompleted(
        job=job, model="a/b", mouth="queued", principal=principal, status="succeeded", batch_rows=1, input_bytes=1,
        output_bytes=1, queue_ms=0, compute_ms=0,
    )  # fmt: skip
    return Envelope(event, job, "/test", utc_now())


async def follow(
    http: httpx.AsyncClient, stores: Stores, *, publish: list[Envelope], last: str, headers: dict[str, str]
) -> list[tuple[str, str]]:
    """(event id, job) of what a stream tells until job `last`."""
    found: list[tuple[str, str]] = []
    id = ""
    async with http.stream("GET", f"/api/v1/events/stream?topic={TOPIC}", headers=headers) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line == ": open":
                await stores.bus.publish([message_of(envelope) for envelope in publish])
            elif line.startswith("id: "):
                id = line[4:]
            elif line.startswith("data: "):
                job = httpx.Response(200, content=line[6:]).json()["data"]["job"]
                found.append((id, job))
                if job == last:
                    return found
    return found


async def test_listener_hears_what_is_published_and_goes_on_after_a_break(
    door: str, issuer: Issuer, stores: Stores
) -> None:
    admin = issuer.headers()
    async with httpx.AsyncClient(base_url=door, timeout=10) as http:
        first = await follow(http, stores, publish=[completed("1", "a"), completed("2", "b")], last="2", headers=admin)
        await stores.bus.publish([message_of(completed("3", "c"))])
        resumed = await follow(http, stores, publish=[], last="3", headers={**admin, "Last-Event-ID": first[0][0]})

    assert [job for _, job in first] == ["1", "2"]
    assert [job for _, job in resumed] == ["2", "3"]


async def test_consumer_hears_of_its_own_results_only(door: str, issuer: Issuer, stores: Stores) -> None:
    async with httpx.AsyncClient(base_url=door, timeout=10) as http:
        heard = await follow(
            http, stores, publish=[completed("1", "other"), completed("2", "me")], last="2",
            headers=issuer.headers("me", "consumer"),
        )  # fmt: skip

    assert [job for _, job in heard] == ["2"]


async def test_quiet_stream_is_kept_open_by_comments(door: str, issuer: Issuer) -> None:
    async with (
        httpx.AsyncClient(base_url=door, timeout=10, headers=issuer.headers()) as http,
        http.stream("GET", f"/api/v1/events/stream?topic={TOPIC}") as answer,
    ):
        lines = answer.aiter_lines()
        comments = [line async for line, _ in _first(lines, 2)]

    assert comments == [": open", ": ping"]


async def _first(lines: AsyncIterator[str], count: int) -> AsyncIterator[tuple[str, int]]:
    number = 0
    async for line in lines:
        if line:
            number += 1
            yield line, number
        if number == count:
            return


async def test_one_stream_more_than_allowed_is_refused(door: str, issuer: Issuer) -> None:
    async with (
        httpx.AsyncClient(base_url=door, timeout=10, headers=issuer.headers()) as http,
        http.stream("GET", f"/api/v1/events/stream?topic={TOPIC}") as first,
    ):
        await anext(first.aiter_lines())
        second = await http.get(f"/api/v1/events/stream?topic={TOPIC}")

    assert second.status_code == 429
