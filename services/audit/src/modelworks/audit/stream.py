"""Events into the log: one process at a time subscribes, and hands whole batches to the sequencer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from itertools import islice

from modelworks.audit.domain import TOPICS, Candidate, Fenced, LogDamaged, candidate
from modelworks.audit.entry import EntryError
from modelworks.audit.metrics import Metrics
from modelworks.audit.ports import Index, Lease
from modelworks.audit.sequencer import Sequencer
from modelworks.audit.waiting import first_of
from modelworks.events import EnvelopeError
from modelworks.kit.errors import Conflict, Unavailable
from modelworks.kit.logging import get_logger
from modelworks.kit.telemetry import extract, span
from modelworks.stores import Bus, Delivery, PermanentFailure, RetryPolicy, Subscription
from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind, Tracer

GROUP = "audit"
_RETRY = RetryPolicy(unavailable_max=timedelta(days=365))
"""An event is never given up because a store is down or the log waits for a person; the group just falls behind."""
_LINKS_MAX = 32

log = get_logger("audit")


class Intake:
    """Handles deliveries."""

    def __init__(self, sequencer: Sequencer, *, tracer: Tracer, metrics: Metrics) -> None:
        self._sequencer = sequencer
        self._tracer = tracer
        self._metrics = metrics
        self.fenced = asyncio.Event()
        """Set when another process was found to extend the log."""

    async def __call__(self, deliveries: Sequence[Delivery]) -> None:
        """Put a batch into the log.

        Raises:
            PermanentFailure: a message is no event that the log can keep; the others are in the log.
            Unavailable: try again.
        """
        good: list[Candidate] = []
        refused: Exception | None = None
        for number, delivery in enumerate(deliveries):
            try:
                good.append(_candidate(delivery))
            except (EnvelopeError, EntryError) as error:
                refused = error
            if number % 16 == 15:
                await asyncio.sleep(0)
        if good:
            await self._append(good, deliveries)
        if refused is not None:
            # The bus hands each message over again alone; those that are in the log are dropped as duplicates.
            raise PermanentFailure(str(refused)) from refused

    async def _append(self, good: Sequence[Candidate], deliveries: Sequence[Delivery]) -> None:
        started = time.perf_counter()
        first, links = deliveries[0].message, _links(deliveries[1:])
        with span(
            self._tracer, f"process {first.topic}", kind=SpanKind.CONSUMER, parent=first.headers, links=links,
            batch=len(deliveries),
        ):  # fmt: skip
            try:
                await self._sequencer.append(good)
            except Fenced as error:
                self.fenced.set()
                raise Unavailable(error.message) from error
            except LogDamaged as error:
                log.error("audit.log-damaged", error=error.message)
                raise Unavailable(error.message) from error
        self._metrics.seconds.observe(time.perf_counter() - started)
        self._metrics.note(self._sequencer)


def _candidate(delivery: Delivery) -> Candidate:
    message = delivery.message
    return candidate(message.headers, message.value, at=delivery.cursor, published_at=delivery.published_at)


def _links(deliveries: Sequence[Delivery]) -> list[Link]:
    traced = (each.message.headers for each in deliveries if "traceparent" in each.message.headers)
    contexts = [trace.get_current_span(extract(headers)).get_span_context() for headers in islice(traced, _LINKS_MAX)]
    return [Link(context) for context in contexts if context.is_valid]


class Turn:
    """Takes turns with other audit processes: whoever holds the lease subscribes, the others wait."""

    def __init__(
        self,
        *,
        bus: Bus,
        index: Index,
        lease: Lease,
        sequencer: Sequencer,
        intake: Intake,
        batch_max: int,
        every: timedelta,
    ) -> None:
        """`every`: pause between renewals; a third of the lease."""
        self._bus = bus
        self._index = index
        self._lease = lease
        self._sequencer = sequencer
        self._intake = intake
        self._subscription = Subscription(GROUP, TOPICS, intake, batch_max=batch_max, retry=_RETRY)
        self._every = every.total_seconds()
        self._stopping = asyncio.Event()
        self._trouble: str | None = "the log is not opened yet"
        self.leading = False
        """This process sequences."""

    def check(self) -> None:
        """Readiness: sequencing, or waiting for its turn.

        Raises:
            Unavailable: the log could not be opened, or the consumer is held up.
        """
        if self._trouble:
            raise Unavailable(self._trouble)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take turns while the body runs; on leaving, finish the batch under way and give the lease back."""
        task = asyncio.create_task(self._forever(), name="audit turns")
        try:
            yield
        finally:
            self._stopping.set()
            await task

    async def _forever(self) -> None:
        ensured = False
        while not self._stopping.is_set():
            try:
                if not ensured:
                    await self._index.ensure()
                    ensured = True
                if await self._lease.acquire():
                    await self._lead()
                else:
                    self._trouble = None
            except (Unavailable, Conflict, LogDamaged) as error:
                self._trouble = error.message
                log.warning("audit.turn-failed", error=error.message)
            except Exception as error:
                # A mistake in the code must not end the turns unnoticed: readiness tells of it, and it is tried again.
                self._trouble = f"{type(error).__name__}: {error}"
                log.error("audit.turn-crashed", exc_info=error)
            await first_of(self._stopping, within=self._every)

    async def _lead(self) -> None:
        """Sequence until the lease is lost or another process is found at work."""
        self._intake.fenced.clear()
        try:
            size = await self._sequencer.start()
            consumer = await self._bus.subscribe(self._subscription)
            log.info("audit.sequencing", size=size)
            self.leading = True
            try:
                while await self._renewed():
                    self._trouble = None
                    try:
                        consumer.check()
                    except Unavailable as error:
                        self._trouble = error.message
                    await first_of(self._intake.fenced, self._stopping, within=self._every)
                if not self._stopping.is_set():
                    log.warning("audit.stepped-down", fenced=self._intake.fenced.is_set())
            finally:
                self.leading = False
                await consumer.stop()
        finally:
            with suppress(Unavailable):
                await self._lease.release()

    async def _renewed(self) -> bool:
        return not (self._intake.fenced.is_set() or self._stopping.is_set()) and await self._lease.renew()
