"""What the door decides."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelworks.edge.domain import RateLimiter, decode_position, encode_position, events_of, route
from modelworks.kit.errors import InvalidInput

TENSOR = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}
PREDICTION = {"model": "a/b", "inputs": [TENSOR]}


@pytest.mark.parametrize(
    ("path", "upstream", "public"),
    [
        ("/oauth/token", "auth", True),
        ("/.well-known/jwks.json", "auth", True),
        ("/api/v1/repositories", "registry", False),
        ("/api/v1/repositories/a/b/blobs/00", "registry", False),
        ("/api/v1/jobs/1", "inference", False),
        ("/oip/v2/models/a/b/infer", "inference", False),
        ("/oip", "inference", False),
        ("/oip/v2/health/ready", "inference", True),
        ("/api/v1/audit/events", "audit", False),
        ("/api/v1/events/stream", "edge", False),
        ("/metrics", "edge", False),
        ("/healthz", "edge", True),
    ],
)
def test_path_leads_to_its_service(path: str, upstream: str, public: bool) -> None:
    found = route(path)

    assert found is not None
    assert (found.upstream, found.public) == (upstream, public)


@pytest.mark.parametrize(
    "path", ["/", "/api/v1", "/api/v1/repositoriesx", "/healthzz", "/oauth", "/openapi.json", "/docs"]
)
def test_unknown_path_leads_nowhere(path: str) -> None:
    assert route(path) is None


def test_caller_who_spent_the_burst_waits_for_the_refill() -> None:
    limiter = RateLimiter(per_second=10, burst=2)

    first, second, third = (limiter.take("a", 0.0) for _ in range(3))
    later = limiter.take("a", 0.1)

    assert (first, second) == (0, 0)
    assert third == pytest.approx(0.1)
    assert later == 0


def test_one_caller_does_not_spend_anothers_tokens() -> None:
    limiter = RateLimiter(per_second=1, burst=1)

    limiter.take("greedy", 0.0)

    assert limiter.take("other", 0.0) == 0


def test_limiter_remembers_a_bounded_number_of_callers() -> None:
    limiter = RateLimiter(per_second=1, burst=1, callers_max=10)

    for number in range(1000):
        limiter.take(f"caller-{number}", 0.0)

    assert len(limiter._buckets) == 10


def binary(**changes: str) -> dict[str, str]:
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/up", "ce-type": "ingest.prediction-requested.v1"}
    return {**headers, "content-type": "application/json", **changes}


def read(headers: dict[str, str], body: object) -> list[str]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = events_of(headers, raw, actor="me", events_max=3, event_bytes_max=1000)
    assert all(envelope.actor == "me" for envelope in found)
    return [envelope.id for envelope in found]


def test_binary_mode_is_read() -> None:
    assert read(binary(), PREDICTION) == ["1"]


def test_sender_cannot_speak_in_anothers_name() -> None:
    assert read(binary(**{"ce-actor": "somebody-else"}), PREDICTION) == ["1"]


def test_structured_mode_is_read() -> None:
    event = {
        "specversion": "1.0",
        "id": "7",
        "source": "/up",
        "type": "ingest.prediction-requested.v1",
        "data": PREDICTION,
    }

    assert read({"content-type": "application/cloudevents+json; charset=utf-8"}, event) == ["7"]


def test_structured_mode_reads_base64_data() -> None:
    data = base64.b64encode(json.dumps(PREDICTION).encode()).decode()
    event = {
        "specversion": "1.0",
        "id": "7",
        "source": "/up",
        "type": "ingest.prediction-requested.v1",
        "data_base64": data,
    }

    assert read({"content-type": "application/cloudevents+json"}, event) == ["7"]


def test_batch_is_taken_whole_or_not_at_all() -> None:
    good = {
        "specversion": "1.0",
        "id": "1",
        "source": "/up",
        "type": "ingest.prediction-requested.v1",
        "data": PREDICTION,
    }
    bad = {**good, "id": "2", "data": {"model": "not a name"}}

    assert read({"content-type": "application/cloudevents-batch+json"}, [good, {**good, "id": "2"}]) == ["1", "2"]
    with pytest.raises(InvalidInput, match="model"):
        read({"content-type": "application/cloudevents-batch+json"}, [good, bad])


@pytest.mark.parametrize(
    ("headers", "body", "message"),
    [
        (binary(**{"ce-specversion": "0.3"}), PREDICTION, "specversion"),
        (binary(**{"ce-type": "registry.revision-committed.v1"}), PREDICTION, "unknown"),
        (binary(**{"ce-id": ""}), PREDICTION, "'id' is missing"),
        (binary(**{"ce-time": "yesterday"}), PREDICTION, "RFC 3339"),
        (binary(), b"{", "ingest.prediction-requested.v1"),
        (binary(), b"\xff\xfe", "ingest.prediction-requested.v1"),
        (binary(), {**PREDICTION, "lane": "express"}, "lane"),
        (binary(), {**PREDICTION, "inputs": [{**TENSOR, "name": "x" * 2000}]}, "at most 1000"),
        ({"content-type": "application/cloudevents+json"}, b"[1", "not JSON"),
        ({"content-type": "application/cloudevents+json"}, [1], "JSON object"),
        ({"content-type": "application/cloudevents-batch+json"}, [], "1 to 3"),
        ({"content-type": "application/cloudevents-batch+json"}, [{}] * 4, "1 to 3"),
        ({"content-type": "application/cloudevents+json"}, b"[" * 100_000, "not JSON"),
    ],
)
def test_malformed_event_is_refused_with_its_reason(headers: dict[str, str], body: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(headers, body)


@given(
    st.dictionaries(
        st.sampled_from(["a.b.v1", "c.d.v1"]),
        st.dictionaries(st.integers(0, 50), st.integers(0, 2**53), max_size=5),
        max_size=2,
    )
)
def test_position_survives_the_way_through_the_client(position: dict[str, dict[int, int]]) -> None:
    assert decode_position(encode_position(position)) == position


@pytest.mark.parametrize(
    "text", ["", "!!", "e30x", "W10", base64.urlsafe_b64encode(b'{"a": 1}').decode(), "A" * 20_000]
)
def test_foreign_position_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="Last-Event-ID"):
        decode_position(text)
