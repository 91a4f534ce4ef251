"""The door, as callers meet it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from modelworks.edge.app import build
from modelworks.edge.settings import EdgeSettings
from modelworks.events import AccessDenied, Envelope, PredictionCompleted
from modelworks.kit.clock import utc_now
from modelworks.kit.platform import Platform
from modelworks.kit.service import Service
from modelworks.stores import PermanentFailure, RetryPolicy, Subscription
from modelworks.stores.outbox import envelope_of, message_of
from modelworks.stores.stores import Stores
from starlette.requests import Request
from starlette.responses import JSONResponse

from conftest import Issuer

PREDICTION = {"model": "a/b", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
CE = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/up", "ce-type": "ingest.prediction-requested.v1"}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """A service that says what reached it."""
    request = Request(scope, receive)
    body = await request.body()
    answer = {
        "path": scope["raw_path"].decode(), "query": scope["query_string"].decode(), "bytes": len(body),
        "headers": dict(request.headers), "state": sorted(scope.get("state", {})),
    }  # fmt: skip
    await JSONResponse(answer)(scope, receive, send)


@pytest.fixture
def settings() -> EdgeSettings:
    return EdgeSettings(body_bytes_max=2000, upload_bytes_max=5000, rate_burst=50, rate_per_second=0.5)


@pytest.fixture
async def http(stores: Stores, platform: Platform, settings: EdgeSettings) -> AsyncIterator[httpx.AsyncClient]:
    local = {name: Service(name, echo) for name in ("auth", "registry", "inference")}
    service = build(stores, settings, platform, local=local)
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge.test") as client:
        yield client


async def published(stores: Stores, topic: str, count: int) -> list[Envelope]:
    found: list[Envelope] = []
    enough = asyncio.Event()

    async def collect(batch: Any) -> None:
        found.extend(envelope_of(delivery.message) for delivery in batch)
        if len(found) >= count:
            enough.set()

    consumer = await stores.bus.subscribe(Subscription("test", (topic,), collect, batch_max=100))
    await asyncio.wait_for(enough.wait(), 10)
    await consumer.stop()
    return found


async def test_request_reaches_the_service_as_it_came(http: httpx.AsyncClient, issuer: Issuer) -> None:
    answer = await http.put(
        "/api/v1/repositories/a/b/files/x%2Fy?ref=d%2Fe", content=b"12345", headers=issuer.headers("me")
    )

    seen = answer.json()
    assert (seen["path"], seen["query"], seen["bytes"]) == ("/api/v1/repositories/a/b/files/x%2Fy", "ref=d%2Fe", 5)
    assert "authorization" in seen["headers"]
    assert seen["state"] == []


async def test_trace_of_the_request_goes_on_in_the_service(http: httpx.AsyncClient, issuer: Issuer) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    answer = await http.get("/api/v1/jobs", headers={**issuer.headers(), "traceparent": trace})

    seen = answer.json()["headers"]["traceparent"]
    assert seen.split("-")[1] == "0af7651916cd43dd8448eb211c80319c"
    assert seen.split("-")[2] != "b7ad6b7169203331"


@pytest.mark.parametrize(
    "path", ["/api/v1/repositories", "/api/v1/jobs", "/api/v1/dead-letters", "/metrics", "/oip/v2"]
)
async def test_without_a_token_nothing_is_reached(path: str, http: httpx.AsyncClient, stores: Stores) -> None:
    answer = await http.get(path)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    event = (await published(stores, AccessDenied.topic, 1))[0].event
    assert isinstance(event, AccessDenied)
    assert (event.principal, event.reason, event.resource) == ("anonymous", "token-missing", path)


async def test_refusal_on_a_protocol_path_has_the_protocols_form(http: httpx.AsyncClient) -> None:
    answer = await http.get("/oip/v2/models/a/b")

    assert answer.status_code == 401
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("path", ["/oauth/token", "/.well-known/jwks.json", "/healthz"])
async def test_public_paths_need_no_token(path: str, http: httpx.AsyncClient) -> None:
    assert (await http.get(path)).status_code == 200


async def test_unknown_path_is_not_found(http: httpx.AsyncClient, issuer: Issuer) -> None:
    answer = await http.get("/api/v1/nothing", headers=issuer.headers())

    assert answer.status_code == 404
    assert answer.json()["code"] == "not-found"


async def test_announced_body_above_the_limit_is_refused(http: httpx.AsyncClient, issuer: Issuer) -> None:
    answer = await http.post("/api/v1/jobs", content=b"x" * 2001, headers=issuer.headers())

    assert answer.status_code == 413
    assert "2000" in answer.json()["detail"]


async def test_unannounced_body_above_the_limit_is_refused(http: httpx.AsyncClient, issuer: Issuer) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 100

    answer = await http.post("/api/v1/jobs", content=chunks(), headers=issuer.headers())

    assert answer.status_code == 413


async def test_upload_has_its_own_limit(http: httpx.AsyncClient, issuer: Issuer) -> None:
    small = await http.put("/api/v1/repositories/a/b/blobs/0", content=b"x" * 5000, headers=issuer.headers())
    large = await http.put("/api/v1/repositories/a/b/blobs/0", content=b"x" * 5001, headers=issuer.headers())

    assert (small.status_code, large.status_code) == (200, 413)


async def test_caller_who_is_too_fast_is_told_when_to_come_back(http: httpx.AsyncClient, issuer: Issuer) -> None:
    greedy, other = issuer.headers("greedy"), issuer.headers("other")

    codes = [(await http.get("/api/v1/jobs", headers=greedy)).status_code for _ in range(60)]
    refused = await http.get("/api/v1/jobs", headers=greedy)
    served = await http.get("/api/v1/jobs", headers=other)

    assert 429 in codes
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert served.status_code == 200


async def test_event_is_published_in_the_senders_name(http: httpx.AsyncClient, issuer: Issuer, stores: Stores) -> None:
    answer = await http.post(
        "/api/v1/events", json=PREDICTION, headers={**issuer.headers("up", "consumer"), **CE, "ce-actor": "root"}
    )

    assert (answer.status_code, answer.json()) == (202, {"accepted": ["1"]})
    envelope = (await published(stores, CE["ce-type"], 1))[0]
    assert (envelope.id, envelope.source, envelope.actor) == ("1", "/up", "up")
    assert envelope.trace["traceparent"]


async def test_event_that_breaks_its_schema_is_refused(http: httpx.AsyncClient, issuer: Issuer) -> None:
    answer = await http.post("/api/v1/events", json={"model": "a/b", "lane": "x"}, headers={**issuer.headers(), **CE})

    assert answer.status_code == 400
    assert "lane" in answer.json()["detail"]


async def test_role_without_the_right_may_not_send_events(http: httpx.AsyncClient, issuer: Issuer) -> None:
    answer = await http.post("/api/v1/events", json=PREDICTION, headers={**issuer.headers("a", "auditor"), **CE})

    assert answer.status_code == 403


@pytest.mark.parametrize("topic", ["nothing.known.v1", ""])
async def test_stream_of_an_unknown_topic_is_refused(topic: str, http: httpx.AsyncClient, issuer: Issuer) -> None:
    answer = await http.get("/api/v1/events/stream", params={"topic": topic}, headers=issuer.headers())

    assert answer.status_code == 400
    assert "known are" in answer.json()["detail"]


async def test_consumer_may_not_follow_what_concerns_others(http: httpx.AsyncClient, issuer: Issuer) -> None:
    answer = await http.get(
        "/api/v1/events/stream", params={"topic": "auth.token-issued.v1"}, headers=issuer.headers("c", "consumer")
    )

    assert answer.status_code == 403


async def test_dead_letter_is_listed_shown_and_replayed(
    http: httpx.AsyncClient, issuer: Issuer, stores: Stores, eventually: Any
) -> None:
    calls: list[bytes] = []

    async def fail(batch: Any) -> None:
        calls.extend(delivery.message.value for delivery in batch)
        raise PermanentFailure("cannot read this")

    await stores.bus.subscribe(Subscription("g", ("a.b.v1",), fail, retry=RetryPolicy(delays=())))
    event = PredictionCompleted(
        job="j", model="a/b", mouth="queued", principal="p", status="failed", batch_rows=1, input_bytes=1,
        output_bytes=0, queue_ms=0, compute_ms=0,
    )  # fmt: skip
    message = message_of(Envelope(event, "1", "/test", utc_now()))
    await stores.bus.publish([type(message)("a.b.v1", "k", message.value, message.headers)])
    admin = issuer.headers()

    async def letters() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await http.get("/api/v1/dead-letters", headers=admin)).json()["items"]
        return found

    listed = (await eventually(letters))[0]
    whole = (await http.get(f"/api/v1/dead-letters/{listed['id']}", headers=admin)).json()
    replayed = await http.post(f"/api/v1/dead-letters/{listed['id']}/replay", headers=admin)

    assert "cannot read this" in listed["error"]
    assert json.loads(whole["body"])["job"] == "j"
    assert replayed.status_code == 202
    await eventually(lambda: len(calls) == 2)


async def test_unknown_dead_letter_is_not_found(http: httpx.AsyncClient, issuer: Issuer) -> None:
    assert (await http.get("/api/v1/dead-letters/none", headers=issuer.headers())).status_code == 404
    assert (await http.post("/api/v1/dead-letters/none/replay", headers=issuer.headers())).status_code == 404
