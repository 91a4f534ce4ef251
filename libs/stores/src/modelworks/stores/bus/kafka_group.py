"""What all reading of a subscription shares on Kafka: one handling of its messages.

`control` and `long` consumers, and the group's retries, call the same `Worker`:
it keeps the handler's own order (one at a time, or one a key and so many at
once) across all of them, and parks what failed before anything is acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Protocol

from modelworks.kit.errors import StoreUnavailable
from modelworks.kit.logging import get_logger
from modelworks.stores.bus.handling import Failure, Handling
from modelworks.stores.bus.kafka_admin import now_ms
from modelworks.stores.bus.kafka_producer import Producer
from modelworks.stores.bus.kafka_records import dead_letter_record, retry_record
from modelworks.stores.bus.port import Delivery, Message, Subscription

_PARK_PAUSE_SECONDS = 1.0

log = get_logger("bus")


class Slots:
    """So many at once, and one a key."""

    def __init__(self, limit: int) -> None:
        self._limit = asyncio.Semaphore(limit)
        self._keys: dict[Hashable, tuple[asyncio.Lock, list[None]]] = {}

    @asynccontextmanager
    async def take(self, key: Hashable) -> AsyncIterator[None]:
        """Hold a slot for the key."""
        lock, users = self._keys.setdefault(key, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock, self._limit:
                yield
        finally:
            users.pop()
            if not users:
                del self._keys[key]


class ParkingPlace(Protocol):
    """The topics where a group's failed messages wait."""

    async def prepare(self) -> None:
        """Make them, before something is published there."""

    def soon(self) -> None:
        """Something was: see that it is read."""


class Worker:
    """Handles deliveries of one subscription."""

    def __init__(self, subscription: Subscription, producer: Producer, parking: ParkingPlace) -> None:
        self.subscription = subscription
        self.stopping = asyncio.Event()
        self._producer = producer
        self._place = parking
        self._handling = Handling(subscription, self.stopping)
        self._parking: str | None = None
        long = subscription.work == "long"
        self._by_key = long
        self._slots = Slots(subscription.in_flight_max if long else 1)

    @property
    def held(self) -> str | None:
        """What holds work up right now, or None."""
        return self._handling.held or self._parking

    async def work(self, batch: Sequence[Delivery]) -> int:
        """Handle a batch, and park what failed; how many of its first deliveries may be acknowledged."""
        key = (batch[0].message.topic, batch[0].message.key) if self._by_key else None
        async with self._slots.take(key):
            if self.stopping.is_set():
                return 0
            handled = await self._handling.run(batch)
        if handled.failures and not await self._park(handled.failures):
            return handled.failures[0].index
        return handled.count

    def _message(self, failure: Failure) -> Message:
        group = self.subscription.group
        delivery = failure.delivery
        if failure.delay is None:
            return dead_letter_record(group, delivery, error=failure.error, failed_at=datetime.now(UTC))
        return retry_record(
            group,
            delivery,
            number=failure.retry_number + 1,
            attempt=delivery.attempt + 1,
            not_before_ms=now_ms() + round(failure.delay.total_seconds() * 1000),
        )

    async def _park(self, failures: Sequence[Failure]) -> bool:
        """Publish failures to where they wait, however long that takes; False when a stop came first."""
        messages = [self._message(failure) for failure in failures]
        retried = any(failure.delay is not None for failure in failures)
        while True:
            try:
                if retried:
                    await self._place.prepare()
                await self._producer.publish(messages)
            except StoreUnavailable as error:
                if self._parking is None:
                    log.warning("bus.parking-held-up", group=self.subscription.group, error=str(error))
                self._parking = str(error)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), _PARK_PAUSE_SECONDS)
                if self.stopping.is_set():
                    return False
            else:
                self._parking = None
                if retried:
                    self._place.soon()
                return True
