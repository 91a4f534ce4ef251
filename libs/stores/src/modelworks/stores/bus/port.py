"""The bus: topics of messages, read by groups, at least once.

The one idea: a message is acknowledged only when its handler is done with it or
it has been parked somewhere durable. A handler that raises sends the message to
a delayed retry of its own group, and after the last retry to
`<topic>.dead-letter` with the error in headers; the partition moves on. Nothing
outside this package acknowledges.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, Protocol

DEAD_LETTER_SUFFIX = ".dead-letter"


@dataclass(frozen=True, slots=True)
class Message:
    """What is published."""

    topic: str
    key: str
    """Messages of one topic and key are delivered in the order of their publication."""
    value: bytes
    """At most 1 MiB (Kafka's default `message.max.bytes`); larger things go by reference."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a handler receives."""

    message: Message
    """With the topic it was first published to, also when it comes from a retry."""
    partition: int
    offset: int
    """Position in its partition; together with the topic and partition a stable name of this message."""
    attempt: int
    """1 for the first delivery; grows with each retry."""
    published_at: datetime

    @property
    def cursor(self) -> str:
        """`<partition>:<offset>`: where a `tail` may go on after this message."""
        return f"{self.partition}:{self.offset}"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how late a failed message is tried again."""

    delays: tuple[timedelta, ...] = (timedelta(seconds=1), timedelta(seconds=10), timedelta(seconds=60))
    """Wait before each retry. Empty: straight to the dead letters."""
    unavailable_max: timedelta = timedelta(minutes=10)
    """How long a `transient` ModelworksError (a store is down) is retried in place, with growing pauses and without
    counting as an attempt, before it counts as an ordinary failure."""


class PermanentFailure(Exception):
    """Raised by a handler: no retry can help (the message breaks its schema); straight to the dead letters."""


Handler = Callable[[Sequence[Delivery]], Awaitable[None]]
"""Handles a batch, in order; one message when the subscription's `batch_max` is 1. Must be idempotent.

If it raises and the batch has more than one message, each is handed over again
alone, so that only the guilty one is retried.
"""


@dataclass(frozen=True)
class Subscription:
    """A group's interest in topics."""

    group: str
    """Members of a group share the topics' partitions; each message is handled by one of them."""
    topics: tuple[str, ...]
    handler: Handler
    work: Literal["control", "long"] = "control"
    """`control`: handlers take milliseconds; handled in order a partition, acknowledged by batch.
    `long`: handlers take seconds to hours. Up to `in_flight_max` run at once, out of order across keys but in order
    within a key; the group is kept alive meanwhile, and the contiguous watermark of what is finished is committed."""
    batch_max: int = 1
    """Most messages in one call of the handler. Only for `control`."""
    in_flight_max: int = 1
    """Most handlers running at once in this member. Only for `long`."""
    retry: RetryPolicy = RetryPolicy()


class Consumer(Protocol):
    """A running subscription."""

    async def stop(self) -> None:
        """Start no new handler, wait for those running (bounded by the adapter's drain time), acknowledge, leave."""

    def check(self) -> None:
        """Readiness.

        Raises:
            Unavailable: the consumer is not connected, or has been held up by a transient failure.
        """


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a group is behind in one topic, retries included."""

    topic: str
    messages: int
    """Not yet acknowledged, so work in flight counts."""
    oldest: datetime | None
    """Publication time of the oldest of them; None when there is none, or when the adapter cannot tell cheaply."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that its group gave up on."""

    id: str
    """Stable name, for `show` and `replay`."""
    message: Message
    """As first published, with its own topic and headers."""
    group: str
    error: str
    """Class and text of the last error."""
    attempts: int
    failed_at: datetime
    replayed: bool
    """A replay was asked for since."""


class Bus(Protocol):
    """Publish and subscribe."""

    async def publish(self, messages: Sequence[Message]) -> None:
        """Append messages; returns when all are durable. Order within a topic and key is kept.

        Raises:
            TooLarge: a message is above 1 MiB; nothing was written.
            StoreUnavailable: some may have been written; publish the same again (consumers drop known ids).
        """

    async def subscribe(self, subscription: Subscription) -> Consumer:
        """Start consuming. A new group starts at the oldest message of each topic; topics are made when missing.

        Raises:
            StoreUnavailable: the bus cannot be reached.
        """

    def tail(self, topics: Sequence[str], *, after: Mapping[str, str] | None = None) -> AsyncIterator[Delivery]:
        """Follow topics without a group: nothing is acknowledged, every reader sees everything.

        Args:
            after: per topic the `Delivery.cursor`s to go on after, one a partition, joined by commas
                (`0:17,3:9`); topics and partitions without one start at what is published from now on. The reader is in place when the first `__anext__` is awaited.
        """

    async def lag(self, group: str) -> Sequence[Lag]:
        """How far the group is behind, one entry a topic it has subscribed to (in any process)."""

    async def dead_letters(self, *, topic: str | None = None, limit: int = 100) -> Sequence[DeadLetter]:
        """Newest first, at most `limit` (1 to 1000). `topic` is the original topic."""

    async def replay(self, dead_letter_id: str) -> DeadLetter:
        """Hand the message to its group again, as a first attempt. Replaying twice delivers twice.

        Raises:
            NotFound: no such dead letter.
        """

    async def check(self) -> None:
        """Readiness.

        Raises:
            StoreUnavailable: the bus cannot be reached.
        """

    async def close(self) -> None:
        """Stop all consumers and let go of connections."""
