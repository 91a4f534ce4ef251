"""The embedded bus: durable topics in one process, without a server.

One partition a topic. Consumers sleep until a publish in this process or a due
retry wakes them; nothing polls. See `sqlite_log` for what is durable when.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from modelworks.kit.errors import InvalidInput, NotFound, StoreUnavailable
from modelworks.kit.logging import get_logger
from modelworks.stores.bus.handling import check_topic, checked, measured, positions
from modelworks.stores.bus.port import Consumer, DeadLetter, Delivery, Lag, Message, Subscription
from modelworks.stores.bus.sqlite_consumer import Lane, Member
from modelworks.stores.bus.sqlite_log import Retention, SqliteLog

_READ_MAX = 500
"""Messages that a tail reads at once."""
_TRIM_EVERY_SECONDS = 60.0
_LIMIT_MAX = 1000

log = get_logger("bus")


class SqliteBus:
    """The bus in one SQLite file. One process at a time may open it."""

    def __init__(
        self, path: Path, *, retention: Retention = Retention(), drain: timedelta = timedelta(seconds=20)
    ) -> None:
        """Opens nothing yet.

        Args:
            drain: how long a stop waits for handlers that run.
        """
        self._log = SqliteLog(path, retention=retention)
        self._drain = drain
        self._ends: dict[str, int] = {}
        self._wakers: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._members: list[Member] = []
        self._trimmed_at = float("-inf")
        self._trimming: asyncio.Task[None] | None = None
        self._closing = False

    async def publish(self, messages: Sequence[Message]) -> None:
        """See `Bus.publish`."""
        for message in messages:
            measured(message)
        if messages:
            await self._log.run(lambda c: self._log.append(c, messages), durable=True, committed=self._published)
            self._trim_sometimes()

    async def subscribe(self, subscription: Subscription) -> Consumer:
        """See `Bus.subscribe`."""
        if self._closing:
            raise StoreUnavailable("the bus is closed")
        topics = checked(subscription)
        self._published(await self._log.run(lambda c: self._log.ends(c, topics), durable=True))
        lanes = [
            self._lanes.setdefault((subscription.group, topic), Lane(subscription.group, topic)) for topic in topics
        ]
        member = Member(subscription, lanes, log=self._log, ends=self._ends, drain=self._drain, left=self._left)
        await member.start()
        for topic in topics:
            self._wakers[topic].add(member.wake)
        self._members.append(member)
        return member

    async def tail(self, topics: Sequence[str], *, after: Mapping[str, str] | None = None) -> AsyncIterator[Delivery]:
        """See `Bus.tail`."""
        wake = asyncio.Event()
        try:
            nexts = await self._starts(topics, after or {})
            for topic in topics:
                self._wakers[topic].add(wake)
            while not self._closing:
                wake.clear()
                for topic in topics:
                    while nexts[topic] < self._ends[topic]:
                        deliveries = await self._read(topic, nexts[topic])
                        # Empty: the rest was trimmed.
                        nexts[topic] = deliveries[-1].offset + 1 if deliveries else self._ends[topic]
                        for delivery in deliveries:
                            yield delivery
                if not any(nexts[topic] < self._ends[topic] for topic in topics):
                    await wake.wait()
        except StoreUnavailable:
            if not self._closing:
                raise
        finally:
            for topic in topics:
                self._wakers[topic].discard(wake)

    async def _starts(self, topics: Sequence[str], after: Mapping[str, str]) -> dict[str, int]:
        for topic in topics:
            check_topic(topic)
        given = {topic: positions(topic, after[topic], (0,))[0] for topic in topics if topic in after}
        ends = await self._log.run(lambda c: self._log.ends(c, topics), durable=True)
        self._published(ends)
        return {topic: given.get(topic, ends[topic]) for topic in topics}

    async def _read(self, topic: str, offset: int) -> list[Delivery]:
        return await self._log.run(lambda c: self._log.read(c, topic, offset, _READ_MAX))

    async def lag(self, group: str) -> Sequence[Lag]:
        """See `Bus.lag`."""
        for member in self._members:
            if member.group == group:
                await member.flush()
        return await self._log.run(lambda c: self._log.lag(c, group))

    async def dead_letters(self, *, topic: str | None = None, limit: int = 100) -> Sequence[DeadLetter]:
        """See `Bus.dead_letters`."""
        if not 1 <= limit <= _LIMIT_MAX:
            raise InvalidInput(f"limit {limit} is out of bounds: give 1 to {_LIMIT_MAX}")
        return await self._log.run(lambda c: self._log.dead_letters(c, topic, limit))

    async def replay(self, dead_letter_id: str) -> DeadLetter:
        """See `Bus.replay`."""
        missing = NotFound(f"dead letter {dead_letter_id!r} does not exist: list them with `modelworks events list`")
        if not (dead_letter_id.isascii() and dead_letter_id.isdigit() and len(dead_letter_id) < 19):
            raise missing
        found = await self._log.run(lambda c: self._log.replay(c, int(dead_letter_id)), durable=True)
        if found is None:
            raise missing
        letter, retry, due = found
        lane = self._lanes.get((letter.group, letter.message.topic))
        if lane is not None:
            lane.expect(due, retry)
        return letter

    async def check(self) -> None:
        """See `Bus.check`."""
        await self._log.run(lambda c: c.execute("SELECT 1").fetchone())

    async def close(self) -> None:
        """See `Bus.close`."""
        self._closing = True
        await asyncio.gather(*(member.stop() for member in list(self._members)))
        for wakers in self._wakers.values():
            for wake in wakers:
                wake.set()
        if self._trimming is not None:
            with suppress(asyncio.CancelledError):
                await self._trimming
        await self._log.close()

    def _published(self, ends: Mapping[str, int]) -> None:
        """New ends of topics: wake who waits for them."""
        for topic, end in ends.items():
            if end > self._ends.get(topic, -1):
                self._ends[topic] = end
                for wake in self._wakers[topic]:
                    wake.set()

    def _left(self, member: Member) -> None:
        """A member has stopped: the next one of its group takes over."""
        if member in self._members:
            self._members.remove(member)
        for lane in member.lanes:
            self._wakers[lane.topic].discard(member.wake)
            lane.members.remove(member)
            lane.loaded_by = None
            if lane.members:
                lane.members[0].wake.set()
            else:
                self._lanes.pop((lane.group, lane.topic), None)

    def _trim_sometimes(self) -> None:
        now = time.monotonic()
        if now - self._trimmed_at >= _TRIM_EVERY_SECONDS and self._trimming is None:
            self._trimmed_at = now
            self._trimming = asyncio.create_task(self._trim(), name="bus trim")

    async def _trim(self) -> None:
        try:
            # In steps, so that publishers get between them.
            trimmed = 1
            while trimmed:
                trimmed = await self._log.run(self._log.trim)
        except StoreUnavailable as error:
            log.warning("bus.trim-failed", error=str(error))
        finally:
            self._trimming = None
