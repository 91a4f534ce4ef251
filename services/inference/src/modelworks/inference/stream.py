"""Events: parse, call the handler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from modelworks.events import (
    DeploymentRemoved,
    DeploymentRequested,
    Envelope,
    EnvelopeError,
    PredictionQueued,
    PredictionRequested,
    RefMoved,
)
from modelworks.inference.domain import LANES, QUEUES, Lane
from modelworks.inference.handlers import Deploying
from modelworks.inference.queueing import Queueing
from modelworks.inference.runner import Runner
from modelworks.kit.errors import StoreUnavailable
from modelworks.kit.logging import get_logger
from modelworks.kit.telemetry import span
from modelworks.stores.bus.port import Bus, Delivery, PermanentFailure, RetryPolicy, Subscription
from modelworks.stores.outbox import envelope_of
from opentelemetry.trace import SpanKind, Tracer

log = get_logger("stream")

_TAIL_PAUSE_SECONDS = 1.0
_IDENTIFIER_CHARACTERS_MAX = 200
"""`modelworks.events.values.Identifier`: the answer names the request and its principal."""


def parse(delivery: Delivery) -> Envelope:
    """The envelope of a delivery.

    Raises:
        PermanentFailure: it breaks its schema.
    """
    try:
        return envelope_of(delivery.message)
    except EnvelopeError as error:
        raise PermanentFailure(str(error)) from error


def lane_group(lane: Lane) -> str:
    """The consumer group of a lane: one each, so that a full lane holds no other up."""
    return f"inference-jobs-{lane}"


def do_jobs(
    runner: Runner, tracer: Tracer, *, in_flight: Mapping[Lane, int], model_wait: timedelta
) -> list[Subscription]:
    """A subscription a lane. The bounds of what is taken up at once are the lanes' weights."""
    delays = _pauses(model_wait)

    async def handle(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            event = parse(delivery).event
            assert isinstance(event, PredictionQueued)
            with span(tracer, f"process {event.topic}", kind=SpanKind.CONSUMER, parent=delivery.message.headers):
                waited = sum(delays[: delivery.attempt - 1], timedelta())
                await runner.perform(event.job, waited=waited, last=delivery.attempt > len(delays))

    return [
        Subscription(
            group=lane_group(lane), topics=(QUEUES[lane].topic,), handler=handle, work="long",
            in_flight_max=in_flight[lane], retry=RetryPolicy(delays=delays),
        )
        for lane in LANES
    ]  # fmt: skip


def _pauses(model_wait: timedelta) -> tuple[timedelta, ...]:
    """Growing pauses that last a little longer than a job waits for its model."""
    pauses: list[timedelta] = []
    pause = timedelta(milliseconds=250)
    while sum(pauses, timedelta()) <= model_wait + timedelta(seconds=1):
        pauses.append(pause)
        pause = min(pause * 2, timedelta(seconds=8))
    return tuple(pauses)


def accept_events(queueing: Queueing, tracer: Tracer) -> Subscription:
    """What upstream systems ask for by event becomes jobs."""

    async def handle(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            envelope = parse(delivery)
            event = envelope.event
            assert isinstance(event, PredictionRequested)
            if max(len(envelope.id), len(envelope.actor)) > _IDENTIFIER_CHARACTERS_MAX:
                raise PermanentFailure(
                    f"CloudEvents id and actor may have {_IDENTIFIER_CHARACTERS_MAX} characters at most"
                )
            with span(tracer, f"process {event.topic}", kind=SpanKind.CONSUMER, parent=delivery.message.headers):
                await queueing.accept_event(
                    event, id=envelope.id, source=envelope.source, actor=envelope.actor, time=envelope.time
                )

    return Subscription(group="inference-ingest", topics=(PredictionRequested.topic,), handler=handle)


def follow_refs(deploying: Deploying, tracer: Tracer) -> Subscription:
    """One member of the group moves a deployment along with its ref."""

    async def handle(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            envelope = parse(delivery)
            event = envelope.event
            assert isinstance(event, RefMoved)
            with span(tracer, f"process {event.topic}", kind=SpanKind.CONSUMER, parent=delivery.message.headers):
                await deploying.follow_ref(event, actor=envelope.actor)

    return Subscription(group="inference", topics=(RefMoved.topic,), handler=handle)


async def watch_deployments(bus: Bus, wake: Callable[[str | None], None]) -> None:
    """Tell this worker of each change to a deployment, for as long as it lives. What is missed, the sweep finds."""
    topics = (DeploymentRequested.topic, DeploymentRemoved.topic)
    while True:
        try:
            async for delivery in bus.tail(topics):
                wake(delivery.message.key)
        except StoreUnavailable as error:
            log.warning("stream.tail-lost", error=str(error))
        await asyncio.sleep(_TAIL_PAUSE_SECONDS)
        wake(None)
