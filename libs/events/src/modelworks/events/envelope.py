"""CloudEvents 1.0 around an event, to and from message headers.

Kafka binary mode (CloudEvents Kafka protocol binding, section 3.2): attributes
are `ce_*` headers, the message value is the event's own JSON. The HTTP binding
differs only in the prefix (`ce-`), so both are read by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from modelworks.events.event import Event
from pydantic import ValidationError

CLOUDEVENTS_VERSION = "1.0"
_REQUIRED = ("specversion", "id", "source", "type")
_MAX_ATTRIBUTE = 1000


class EnvelopeError(ValueError):
    """The message is not a CloudEvent of ours; the text names the attribute and the way out."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """An event with what the bus must know of it."""

    event: Event
    id: str
    """Deterministic where the event comes from saved state: publishing twice is harmless, consumers drop known ids."""
    source: str
    """URI reference of the producer, for example `/services/registry`."""
    time: datetime
    """When it happened, with time zone."""
    actor: str = "system"
    """Who caused it: a principal's id (extension attribute `actor`)."""
    trace: Mapping[str, str] = field(default_factory=dict)
    """W3C trace context headers (`traceparent`, `tracestate`)."""

    @property
    def topic(self) -> str:
        """Topic and CloudEvents type."""
        return self.event.topic

    @property
    def key(self) -> str:
        """Message key and CloudEvents subject."""
        return self.event.key

    def headers(self) -> dict[str, str]:
        """Message headers: `ce_*` attributes, content type and trace context."""
        return {
            "ce_specversion": CLOUDEVENTS_VERSION,
            "ce_id": self.id,
            "ce_source": self.source,
            "ce_type": self.topic,
            "ce_subject": self.key,
            "ce_time": self.time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "ce_actor": self.actor,
            "content-type": "application/json",
            **self.trace,
        }

    def body(self) -> bytes:
        """The event's JSON; optional properties that are not set are absent, never null."""
        return self.event.model_dump_json(exclude_none=True).encode()

    @classmethod
    def parse(
        cls, headers: Mapping[str, str], body: bytes, classes: Mapping[str, type[Event]], *, prefix: str = "ce_"
    ) -> Envelope:
        """Read a message.

        Args:
            headers: message headers; names are compared in lower case.
            body: the event's JSON.
            classes: type to class, usually `modelworks.events.BY_TOPIC`.
            prefix: `ce_` on the bus, `ce-` over HTTP.

        Raises:
            EnvelopeError: an attribute is missing or wrong, the type is unknown, or the body fails its schema.
        """
        lower = {name.lower(): value for name, value in headers.items()}
        attributes = {name: lower.get(prefix + name, "") for name in (*_REQUIRED, "time", "actor")}
        for name in _REQUIRED:
            if not attributes[name]:
                raise EnvelopeError(f"CloudEvents attribute {name!r} is missing: send it as header {prefix + name!r}")
        for name, value in attributes.items():
            if len(value) > _MAX_ATTRIBUTE:
                raise EnvelopeError(f"CloudEvents attribute {name!r} has {len(value)} characters, at most 1000 allowed")
        if attributes["specversion"] != CLOUDEVENTS_VERSION:
            raise EnvelopeError(f"specversion {attributes['specversion']!r} is not supported: send '1.0'")
        event_class = classes.get(attributes["type"])
        if event_class is None:
            raise EnvelopeError(
                f"event type {attributes['type']!r} is unknown; known are: {', '.join(sorted(classes))}"
            )
        return cls(
            event=_parse_body(event_class, body),
            id=attributes["id"],
            source=attributes["source"],
            time=_parse_time(attributes["time"]),
            actor=attributes["actor"] or "system",
            trace={name: lower[name] for name in ("traceparent", "tracestate") if name in lower},
        )


def _parse_body(event_class: type[Event], body: bytes) -> Event:
    try:
        # Strict: what the schema refuses (a number for a time, text for a number) is not coerced here either.
        return event_class.model_validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise EnvelopeError(f"{event_class.topic}: property {where!r}: {first['msg']}") from error


def _parse_time(text: str) -> datetime:
    if not text:
        return datetime.now(UTC)
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise EnvelopeError(
            f"CloudEvents attribute 'time' is {text!r}: send RFC 3339, as 2026-01-31T12:00:00Z"
        ) from error
    if time.tzinfo is None:
        raise EnvelopeError(f"CloudEvents attribute 'time' is {text!r}, without a time zone: append 'Z'")
    return time
