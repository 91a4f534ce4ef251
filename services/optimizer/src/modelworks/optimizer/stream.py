"""The event shell: commits and wishes become jobs, accepted jobs are run."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from modelworks.events import Envelope, EnvelopeError, JobAccepted, OptimizationRequested, RevisionCommitted
from modelworks.kit.errors import InvalidInput, NotFound, Unavailable
from modelworks.kit.platform import Platform
from modelworks.kit.telemetry import span
from modelworks.optimizer.handlers import Handlers
from modelworks.optimizer.runner import Runner
from modelworks.stores import Bus, Consumer, Delivery, PermanentFailure, RetryPolicy, Subscription
from modelworks.stores.outbox import envelope_of
from opentelemetry.trace import SpanKind
from prometheus_client import Counter, Gauge, Histogram

GROUP = "optimizer"
RUNNERS = "optimizer-runners"


class Stream:
    """The subscriptions of this service."""

    def __init__(self, bus: Bus, handlers: Handlers, runner: Runner, platform: Platform, *, in_flight_max: int) -> None:
        self._bus = bus
        self._handlers = handlers
        self._runner = runner
        self._tracer = platform.telemetry.tracer("optimizer")
        registry = platform.telemetry.metrics
        self._ended = Counter(
            "modelworks_optimizer_jobs", "Runs of jobs, by how they ended", ["status"], registry=registry
        )
        self._seconds = Histogram(
            "modelworks_optimizer_run_seconds", "Wall time of runs", registry=registry,
            buckets=(1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500),
        )  # fmt: skip
        running = Gauge("modelworks_optimizer_running", "Jobs under way in this process", registry=registry)
        running.set_function(lambda: len(runner.running))
        self._consumers: list[Consumer] = []
        self._control = Subscription(
            GROUP, (RevisionCommitted.topic, OptimizationRequested.topic), self._on_wish, work="control"
        )
        self._work = Subscription(
            RUNNERS, (JobAccepted.topic,), self._on_accepted, work="long", in_flight_max=in_flight_max,
            retry=RetryPolicy(delays=(timedelta(seconds=1), timedelta(seconds=30), timedelta(minutes=5))),
        )  # fmt: skip

    @asynccontextmanager
    async def consuming(self) -> AsyncIterator[None]:
        """Consume while the body runs; on leaving, jobs under way are let go and wait for the next start."""
        try:
            for subscription in (self._control, self._work):
                self._consumers.append(await self._bus.subscribe(subscription))
            yield
        finally:
            await self._runner.stop()
            for consumer in self._consumers:
                await consumer.stop()
            self._consumers.clear()

    async def check(self) -> None:
        """Readiness: the consumers run."""
        if not self._consumers:
            raise Unavailable("the consumers have not been started")
        for consumer in self._consumers:
            consumer.check()

    async def _on_wish(self, batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            envelope = _envelope(delivery)
            headers = delivery.message.headers
            with span(self._tracer, f"process {envelope.topic}", kind=SpanKind.CONSUMER, parent=headers):
                if isinstance(envelope.event, RevisionCommitted):
                    await self._handlers.accept_commit(envelope.event, actor=envelope.actor)
                elif isinstance(envelope.event, OptimizationRequested):
                    request = f"{envelope.source}\n{envelope.id}"
                    try:
                        await self._handlers.accept_request(envelope.event, request=request, actor=envelope.actor)
                    except (NotFound, InvalidInput) as error:
                        raise PermanentFailure(error.message) from error

    async def _on_accepted(self, batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            event = _envelope(delivery).event
            assert isinstance(event, JobAccepted)
            headers = delivery.message.headers
            with span(self._tracer, f"process {event.topic}", kind=SpanKind.CONSUMER, parent=headers, job=event.job):
                started = time.perf_counter()
                last_chance = delivery.attempt > len(self._work.retry.delays)
                status = await self._runner.run(event.job, last_chance=last_chance)
                if status is not None:
                    self._ended.labels(status).inc()
                    self._seconds.observe(time.perf_counter() - started)


def _envelope(delivery: Delivery) -> Envelope:
    try:
        return envelope_of(delivery.message)
    except EnvelopeError as error:
        raise PermanentFailure(str(error)) from error
