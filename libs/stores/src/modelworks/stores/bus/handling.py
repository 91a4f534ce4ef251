"""One handling of one batch: what the handler's errors mean.

Both adapters call `Handling.run`, then park its failures somewhere durable, and
only then acknowledge.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

from modelworks.kit.errors import InvalidInput, ModelworksError, TooLarge
from modelworks.kit.logging import get_logger
from modelworks.stores.bus.port import Delivery, Message, PermanentFailure, Subscription

MESSAGE_BYTES_MAX = 1024 * 1024
"""Kafka's default `message.max.bytes` is a little above; the rest is for the record's own fields."""

_PAUSE_FIRST_SECONDS = 0.1
_PAUSE_MAX_SECONDS = 10.0
_ERROR_CHARACTERS_MAX = 1000

log = get_logger("bus")


@dataclass(frozen=True, slots=True)
class Failure:
    """A delivery that was not handled well."""

    index: int
    """In the batch."""
    delivery: Delivery
    error: str
    delay: timedelta | None
    """Until its retry; None: it is given up."""
    retry_number: int = 0
    """Index into the policy's delays."""


@dataclass(frozen=True, slots=True)
class Handled:
    """What became of a batch."""

    count: int
    """Deliveries from its start that are decided. A stop cuts off the rest: they must not be acknowledged."""
    failures: Sequence[Failure] = ()
    """Those of them that must be parked before they are acknowledged; the others are done."""


class Handling:
    """Calls a subscription's handler. Safe to run several times at once."""

    def __init__(self, subscription: Subscription, stopping: asyncio.Event) -> None:
        self._subscription = subscription
        self._stopping = stopping
        self._held: dict[int, str] = {}
        self._runs = 0

    @property
    def held(self) -> str | None:
        """The transient error that holds work up right now, or None."""
        return next(iter(self._held.values()), None)

    async def run(self, batch: Sequence[Delivery]) -> Handled:
        """Handle a batch."""
        self._runs += 1
        run = self._runs
        deadline = time.monotonic() + self._subscription.retry.unavailable_max.total_seconds()
        try:
            error = await self._attempt(batch, run, deadline)
            if error is None:
                return Handled(len(batch))
            if isinstance(error, _CutOff):
                return Handled(0)
            if len(batch) == 1:
                return Handled(1, [self._failed(0, batch[0], error)])
            failures: list[Failure] = []
            for index, delivery in enumerate(batch):
                error = await self._attempt([delivery], run, deadline)
                if isinstance(error, _CutOff):
                    return Handled(index, failures)
                if error is not None:
                    failures.append(self._failed(index, delivery, error))
            return Handled(len(batch), failures)
        finally:
            self._held.pop(run, None)

    async def _attempt(self, batch: Sequence[Delivery], run: int, deadline: float) -> Exception | None:
        """Call the handler, again and again while the failure is transient; the error that counts, or None."""
        pause = _PAUSE_FIRST_SECONDS
        while True:
            try:
                await self._subscription.handler(batch)
            except ModelworksError as error:
                if not error.transient or time.monotonic() + pause > deadline:
                    return error
                if run not in self._held:
                    log.warning("delivery.held-up", group=self._subscription.group, error=str(error))
                self._held[run] = _text(error)
            except Exception as error:
                return error
            else:
                self._held.pop(run, None)
                return None
            if await self._stopped_within(pause):
                return _CutOff()
            pause = min(2 * pause, _PAUSE_MAX_SECONDS)

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _failed(self, index: int, delivery: Delivery, error: Exception) -> Failure:
        delays = self._subscription.retry.delays
        number = delivery.attempt - 1
        dead = isinstance(error, PermanentFailure) or number >= len(delays)
        # A mistake in the handler's code needs its traceback; a refusal on purpose does not.
        expected = isinstance(error, (ModelworksError, PermanentFailure))
        log.warning(
            "delivery.dead" if dead else "delivery.failed",
            group=self._subscription.group,
            topic=delivery.message.topic,
            partition=delivery.partition,
            offset=delivery.offset,
            attempt=delivery.attempt,
            error=_text(error),
            exc_info=None if expected else error,
        )
        return Failure(index, delivery, _text(error), None if dead else delays[number], number)


class _CutOff(Exception):
    """A stop ended the wait for something transient."""


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS_MAX]


@lru_cache(maxsize=1024)
def check_topic(topic: str) -> None:
    """Kafka's rule for topic names, with room for what retries and dead letters append.

    Raises:
        InvalidInput: it is broken.
    """
    if not 1 <= len(topic) <= 200 or not _TOPIC_CHARACTERS.issuperset(topic) or topic in {".", ".."}:
        raise InvalidInput(f"topic {topic!r} is no topic name: use 1 to 200 of a-z A-Z 0-9 . _ -")


def checked(subscription: Subscription) -> tuple[str, ...]:
    """The topics of a subscription, each once.

    Raises:
        InvalidInput: a name or a bound is wrong.
    """
    topics = tuple(dict.fromkeys(subscription.topics))
    if not topics:
        raise InvalidInput(f"the subscription of group {subscription.group!r} names no topic")
    for topic in topics:
        check_topic(topic)
    if not 1 <= len(subscription.group) <= 150 or not _TOPIC_CHARACTERS.issuperset(subscription.group):
        raise InvalidInput(f"group {subscription.group!r} is no group name: use 1 to 150 of a-z A-Z 0-9 . _ -")
    if not 1 <= subscription.batch_max <= 10_000 or not 1 <= subscription.in_flight_max <= 1000:
        raise InvalidInput(
            f"group {subscription.group!r}: batch_max {subscription.batch_max} must be 1 to 10000 and"
            f" in_flight_max {subscription.in_flight_max} 1 to 1000"
        )
    return topics


def positions(topic: str, cursors: str, partitions: Collection[int]) -> dict[int, int]:
    """Where a tail goes on, a partition: the offset after each cursor of `<partition>:<offset>,...`.

    Raises:
        InvalidInput: a cursor is malformed, names a partition that the topic has not, or stands twice.
    """
    found: dict[int, int] = {}
    for cursor in cursors.split(","):
        partition, _, offset = cursor.partition(":")
        numbers = [int(text) for text in (partition, offset) if text.isascii() and text.isdigit() and len(text) <= 15]
        if len(numbers) != 2 or numbers[0] not in partitions or numbers[0] in found:
            raise InvalidInput(
                f"cursor {cursor!r} of topic {topic!r} is not one of this bus: give what deliveries have as `cursor`, "
                "one a partition, joined by commas"
            )
        found[numbers[0]] = numbers[1] + 1
    return found


def measured(message: Message) -> int:
    """Size of a message in bytes.

    Raises:
        TooLarge: above 1 MiB.
        InvalidInput: the topic is no topic name, or a text is no Unicode.
    """
    check_topic(message.topic)
    texts = "".join((message.key, *message.headers, *message.headers.values()))
    try:
        # Knowing that it is ASCII costs nothing; encoding makes a copy.
        size = len(message.value) + (len(texts) if texts.isascii() else len(texts.encode()))
    except UnicodeEncodeError as error:
        raise InvalidInput(f"a message to {message.topic!r} holds text that is no Unicode: {error.reason}") from error
    if size > MESSAGE_BYTES_MAX:
        raise TooLarge(
            f"a message to {message.topic!r} has {size} bytes, at most {MESSAGE_BYTES_MAX} allowed: "
            "put the bytes into the object store and send a reference"
        )
    return size


_TOPIC_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
