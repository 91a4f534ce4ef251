"""Messages as Kafka records, and what travels with those that wait for a retry or were given up.

A parked record keeps the message's own key, value and headers; where it came
from and how often it was tried stands beside them in the `x-*` headers of
`Parking`. Publishers must not use these names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from modelworks.stores.bus.port import DEAD_LETTER_SUFFIX, DeadLetter, Delivery, Message

REPLAYED = "x-replayed"
"""On a record of a dead-letter topic that is no letter: the id of the letter that was replayed."""
_GROUP, _ERROR, _ATTEMPTS, _FAILED_AT = "x-group", "x-error", "x-attempts", "x-failed-at"
_TOPIC, _PARTITION, _OFFSET, _PUBLISHED_MS = "x-topic", "x-partition", "x-offset", "x-published-ms"
_ATTEMPT, _NOT_BEFORE_MS = "x-attempt", "x-not-before-ms"
_OURS = frozenset(
    (
        *(_GROUP, _ERROR, _ATTEMPTS, _FAILED_AT, _TOPIC, _PARTITION, _OFFSET, _PUBLISHED_MS),
        *(_ATTEMPT, _NOT_BEFORE_MS, REPLAYED),
    )
)


@dataclass(frozen=True, slots=True)
class Parked:
    """A delivery that waits for its retry."""

    delivery: Delivery
    not_before_ms: int


def retry_topic(group: str, number: int) -> str:
    """Where retries of the group wait: 0 for replays, without a delay; n for the n-th delay of its policy."""
    return f"{group}.retry.{number}"


def retry_group(group: str) -> str:
    """The Kafka group that reads a group's retries: apart from the group, so that neither's rebalance stops both."""
    return f"{group}.retry"


def dead_letter_topic(topic: str) -> str:
    """Where messages of a topic go that were given up."""
    return topic + DEAD_LETTER_SUFFIX


def encoded(headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """Headers as Kafka has them."""
    return [(name, value.encode()) for name, value in headers.items()]


def delivery_of(record: Any) -> Delivery:
    """A consumed record of an ordinary topic."""
    key = record.key
    try:
        message = Message(
            record.topic,
            key.decode() if key else "",
            record.value or b"",
            {name: value.decode() for name, value in record.headers},
        )
    except (UnicodeDecodeError, AttributeError):
        # A foreign producer: bytes that are no UTF-8, or a header without a value.
        message = Message(record.topic, _key(record), record.value or b"", _texts(record.headers))
    return Delivery(message, record.partition, record.offset, 1, datetime.fromtimestamp(record.timestamp / 1000, UTC))


def retry_record(group: str, delivery: Delivery, *, number: int, attempt: int, not_before_ms: int) -> Message:
    """A delivery to try again, as `attempt`, not before the time."""
    more = {**_origin(group, delivery), _ATTEMPT: str(attempt), _NOT_BEFORE_MS: str(not_before_ms)}
    message = delivery.message
    return Message(retry_topic(group, number), message.key, message.value, {**message.headers, **more})


def dead_letter_record(group: str, delivery: Delivery, *, error: str, failed_at: datetime) -> Message:
    """A delivery that is given up."""
    more = {
        **_origin(group, delivery),
        _ATTEMPTS: str(delivery.attempt),
        _ERROR: error,
        _FAILED_AT: failed_at.astimezone(UTC).isoformat(),
    }
    message = delivery.message
    return Message(dead_letter_topic(message.topic), message.key, message.value, {**message.headers, **more})


def replayed_record(letter: DeadLetter) -> Message:
    """The note beside a dead letter that it was replayed."""
    return Message(dead_letter_topic(letter.message.topic), "", b"", {REPLAYED: letter.id})


def parked_of(record: Any) -> Parked:
    """A consumed record of a retry topic.

    Raises:
        ValueError: it is none of ours.
    """
    headers = _texts(record.headers)
    message = Message(headers.get(_TOPIC, ""), _key(record), record.value or b"", _without_ours(headers))
    if not message.topic:
        raise ValueError(f"record {record.topic}:{record.partition}:{record.offset} has no header {_TOPIC}")
    delivery = Delivery(
        message,
        int(headers[_PARTITION]),
        int(headers[_OFFSET]),
        int(headers[_ATTEMPT]),
        datetime.fromtimestamp(int(headers[_PUBLISHED_MS]) / 1000, UTC),
    )
    return Parked(delivery, int(headers[_NOT_BEFORE_MS]))


def letters_of(records: Sequence[Any]) -> tuple[list[tuple[DeadLetter, Delivery]], set[str]]:
    """The letters among records of dead-letter topics, oldest first, and the ids of those that were replayed."""
    replayed = {value.decode() for record in records for name, value in record.headers if name == REPLAYED}
    letters = []
    for record in records:
        headers = _texts(record.headers)
        if REPLAYED in headers or _GROUP not in headers:
            continue
        message = Message(
            record.topic.removesuffix(DEAD_LETTER_SUFFIX), _key(record), record.value or b"", _without_ours(headers)
        )
        id = f"{record.topic}:{record.partition}:{record.offset}"
        letter = DeadLetter(
            id=id,
            message=message,
            group=headers[_GROUP],
            error=headers.get(_ERROR, ""),
            attempts=int(headers.get(_ATTEMPTS, "1")),
            failed_at=datetime.fromisoformat(headers[_FAILED_AT]),
            replayed=id in replayed,
        )
        published = datetime.fromtimestamp(int(headers[_PUBLISHED_MS]) / 1000, UTC)
        letters.append((letter, Delivery(message, int(headers[_PARTITION]), int(headers[_OFFSET]), 1, published)))
    return letters, replayed


def _origin(group: str, delivery: Delivery) -> dict[str, str]:
    return {
        _GROUP: group,
        _TOPIC: delivery.message.topic,
        _PARTITION: str(delivery.partition),
        _OFFSET: str(delivery.offset),
        _PUBLISHED_MS: str(round(delivery.published_at.timestamp() * 1000)),
    }


def _key(record: Any) -> str:
    # Foreign producers may send bytes that are no UTF-8, or no key at all.
    return "" if record.key is None else record.key.decode(errors="backslashreplace")


def _texts(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    return {name: "" if value is None else value.decode(errors="backslashreplace") for name, value in headers}


def _without_ours(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in _OURS}
