"""Events onto the bus, many waiting callers in one publish."""

from __future__ import annotations

import asyncio

from modelworks.events import Envelope, Event
from modelworks.kit.clock import Clock
from modelworks.kit.errors import Unavailable
from modelworks.kit.telemetry import inject
from modelworks.stores import Bus, Message
from modelworks.stores.outbox import message_of

_BATCH_MAX = 500


class BusJournal:
    """See `ports.Journal`. What arrives while a publish is under way goes out together in the next one."""

    def __init__(self, bus: Bus, *, source: str, clock: Clock, waiting_max: int) -> None:
        self._bus = bus
        self._source = source
        self._clock = clock
        self._waiting_max = waiting_max
        self._waiting: list[tuple[Message, asyncio.Future[None]]] = []
        self._publishing: asyncio.Task[None] | None = None

    async def record(self, event: Event, *, actor: str, id: str) -> None:
        if len(self._waiting) >= self._waiting_max:
            raise Unavailable(f"{self._waiting_max} events wait for the bus already: try again in a moment")
        envelope = Envelope(event=event, id=id, source=self._source, time=self._clock(), actor=actor, trace=inject())
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((message_of(envelope), done))
        if self._publishing is None:
            self._publishing = asyncio.create_task(self._publish_waiting(), name="auth journal")
        await done

    async def _publish_waiting(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_BATCH_MAX], self._waiting[_BATCH_MAX:]
                failure = await self._publish([message for message, _ in batch])
                for _, done in batch:
                    if done.done():
                        continue  # its caller went away
                    if failure is None:
                        done.set_result(None)
                    else:
                        done.set_exception(failure)
        finally:
            self._publishing = None

    async def _publish(self, messages: list[Message]) -> Exception | None:
        try:
            await self._bus.publish(messages)
        except Exception as error:  # the callers must hear of it, whatever it is
            return error
        return None
