"""What the door decides, without I/O: where a path leads, whether a caller has gone too fast, what an event may be.

A route is chosen by the longest prefix. Paths are forwarded as they came,
percent-encoding included, because names may hold encoded slashes.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelworks.events import BY_TOPIC, Envelope, EnvelopeError, Event
from modelworks.kit.errors import InvalidInput

OWN = "edge"
"""Upstream name of what the edge serves itself."""


@dataclass(frozen=True, slots=True)
class Route:
    """A prefix of paths and where it leads."""

    prefix: str
    upstream: str
    public: bool = False
    """No token is asked for."""
    upload: bool = False
    """Bodies may be as large as the upload limit."""


ROUTES: tuple[Route, ...] = (
    Route("/oauth/", "auth", public=True),
    Route("/.well-known/", "auth", public=True),
    Route("/api/v1/clients", "auth"),
    Route("/api/v1/keys", "auth"),
    Route("/api/v1/repositories", "registry", upload=True),
    Route("/api/v1/optimizations", "optimizer"),
    Route("/api/v1/deployments", "inference"),
    Route("/api/v1/jobs", "inference"),
    Route("/oip/v2/health/", "inference", public=True),
    Route("/oip/", "inference"),
    Route("/oip", "inference"),
    Route("/objects/", "registry", public=True, upload=True),
    Route("/api/v1/audit", "audit"),
    Route("/api/v1/events", OWN),
    Route("/api/v1/dead-letters", OWN),
    Route("/metrics", OWN),
    Route("/healthz", OWN, public=True),
    Route("/readyz", OWN, public=True),
)


def route(path: str, routes: Sequence[Route] = ROUTES) -> Route | None:
    """The route of a path, or None. A prefix ends at a path segment's end."""
    best: Route | None = None
    for candidate in routes:
        prefix = candidate.prefix
        whole = path == prefix or path.startswith(prefix if prefix.endswith("/") else prefix + "/")
        if whole and (best is None or len(prefix) > len(best.prefix)):
            best = candidate
    return best


class RateLimiter:
    """A token bucket for each caller; the least recently seen callers are forgotten first."""

    def __init__(self, *, per_second: float, burst: int, callers_max: int = 10_000) -> None:
        """`per_second`: refill; `burst`: size of the bucket."""
        self._per_second = per_second
        self._burst = float(burst)
        self._callers_max = callers_max
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str, now: float) -> float:
        """Take one token; returns 0, or the seconds until one is there."""
        left, then = self._buckets.pop(caller, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._per_second)
        wait = 0.0 if left >= 1 else (1 - left) / self._per_second
        self._buckets[caller] = (left - 1 if wait == 0 else left, now)
        if len(self._buckets) > self._callers_max:
            self._buckets.popitem(last=False)
        return wait


INGEST: Mapping[str, type[Event]] = {topic: kind for topic, kind in BY_TOPIC.items() if topic.startswith("ingest.")}
"""What upstream systems may send."""

_ATTRIBUTES = ("specversion", "id", "source", "type", "time", "subject", "actor", "traceparent", "tracestate")


def events_of(
    headers: Mapping[str, str], body: bytes, *, actor: str, events_max: int, event_bytes_max: int
) -> list[Envelope]:
    """Read CloudEvents over HTTP in binary, structured or batch mode (CloudEvents HTTP binding 1.0, section 3).

    The actor is who sent the request, whatever the event says.

    Raises:
        InvalidInput: an event is malformed, not one of INGEST, or too large; none of them is taken.
    """
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "application/cloudevents-batch+json":
        items = _json(body)
        if not isinstance(items, list) or not 1 <= len(items) <= events_max:
            raise InvalidInput(f"a batch is a JSON list of 1 to {events_max} events")
        parsed = [_structured(item) for item in items]
    elif content_type == "application/cloudevents+json":
        parsed = [_structured(_json(body))]
    else:
        parsed = [(dict(headers), body)]
    return [_envelope(attributes, data, actor, event_bytes_max) for attributes, data in parsed]


def _envelope(headers: Mapping[str, str], body: bytes, actor: str, bytes_max: int) -> Envelope:
    if len(body) > bytes_max:
        raise InvalidInput(
            f"the event has {len(body)} bytes, at most {bytes_max} allowed: send large inputs by reference"
        )
    try:
        envelope = Envelope.parse(headers, body, INGEST, prefix="ce-")
    except EnvelopeError as error:
        raise InvalidInput(str(error)) from error
    # Not set by the sender, so that nobody speaks in another's name.
    return Envelope(envelope.event, envelope.id, envelope.source, envelope.time, actor, envelope.trace)


def _structured(item: Any) -> tuple[dict[str, str], bytes]:
    if not isinstance(item, dict):
        raise InvalidInput("a structured CloudEvent is a JSON object")
    headers = {f"ce-{name}": item[name] for name in _ATTRIBUTES if isinstance(item.get(name), str)}
    headers |= {name: item[name] for name in ("traceparent", "tracestate") if isinstance(item.get(name), str)}
    if "data_base64" in item:
        try:
            return headers, base64.b64decode(str(item["data_base64"]), validate=True)
        except binascii.Error as error:
            raise InvalidInput(f"data_base64 of event {item.get('id')!r} is not base64") from error
    return headers, json.dumps(item.get("data")).encode()


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}") from error


def encode_position(position: Mapping[str, Mapping[int, int]]) -> str:
    """Where a stream of several topics stands, as an SSE event id: offsets by topic and partition."""
    text = json.dumps({topic: {str(p): o for p, o in parts.items()} for topic, parts in position.items()},
                      separators=(",", ":"))  # fmt: skip
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_position(text: str) -> dict[str, dict[int, int]]:
    """The reverse of `encode_position`.

    Raises:
        InvalidInput: the text is not one of our event ids.
    """
    try:
        if len(text) > 16_384:
            raise ValueError("too long")
        decoded = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        return {str(t): {int(p): int(o) for p, o in parts.items()} for t, parts in decoded.items()}
    except (ValueError, AttributeError, TypeError, binascii.Error) as error:
        raise InvalidInput("Last-Event-ID is not an id of this stream: leave it out to start now") from error
