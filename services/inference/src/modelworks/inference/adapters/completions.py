"""Events of online predictions, published in batches behind the answers.

What is recorded and not yet published is lost when the process is killed: at
most what one flush interval, or one outage of the bus, has gathered. A stop
publishes all of it. Predictions that must never go untold belong into the queue.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

from modelworks.events import Envelope, PredictionCompleted
from modelworks.kit.clock import Clock
from modelworks.kit.errors import StoreUnavailable, Unavailable
from modelworks.kit.logging import get_logger
from modelworks.kit.tasks import end
from modelworks.kit.telemetry import inject
from modelworks.stores.bus.port import Bus
from modelworks.stores.outbox import message_of

log = get_logger("completions")

_BATCH_MAX = 200
"""Building an envelope takes some 20 us: a batch must not hold the event loop up for more than a few milliseconds."""
_PAUSE_MAX_SECONDS = 5.0


class BufferedCompletions:
    """A bounded buffer and the task that empties it."""

    def __init__(self, bus: Bus, *, source: str, clock: Clock, events_max: int, flush_seconds: float) -> None:
        self._bus = bus
        self._source = source
        self._clock = clock
        self._events_max = events_max
        self._flush_seconds = flush_seconds
        self._waiting: deque[tuple[PredictionCompleted, datetime, dict[str, str]]] = deque()
        self._wake = asyncio.Event()

    def check_room(self) -> None:
        """See Completions."""
        if len(self._waiting) >= self._events_max:
            raise Unavailable(
                f"{len(self._waiting)} predictions could not be told to the audit, since the bus does not answer: "
                "try again later",
                retry_after_seconds=5,
            )

    def record(self, event: PredictionCompleted) -> None:
        """See Completions."""
        self.check_room()
        self._waiting.append((event, self._clock(), inject()))
        self._wake.set()

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        """Publish while the body runs; on leaving, what is left."""
        task = asyncio.create_task(self._publish_forever(), name="publish completions")
        try:
            yield
        finally:
            await end(task)
            try:
                while self._waiting:
                    await self._publish()
            except StoreUnavailable as error:
                log.error("completions.lost", events=len(self._waiting), error=str(error))

    async def _publish_forever(self) -> None:
        pause = self._flush_seconds
        while True:
            await self._wake.wait()
            await asyncio.sleep(pause)
            try:
                while self._waiting:
                    await self._publish()
                    # Others get the loop between batches.
                    await asyncio.sleep(0)
                self._wake.clear()
                pause = self._flush_seconds
            except StoreUnavailable as error:
                pause = min(max(2 * pause, 0.1), _PAUSE_MAX_SECONDS)
                log.warning("completions.postponed", events=len(self._waiting), error=str(error))

    async def _publish(self) -> None:
        batch = [self._waiting[number] for number in range(min(_BATCH_MAX, len(self._waiting)))]
        messages = [
            message_of(
                Envelope(
                    event=event, id=event.job, source=self._source, time=time, actor=event.principal, trace=trace
                )
            )
            for event, time, trace in batch
        ]  # fmt: skip
        await self._bus.publish(messages)
        for _ in batch:
            self._waiting.popleft()


def new_request_id() -> str:
    """The id of an online prediction: its event's id and key."""
    return uuid.uuid4().hex
