"""Events: parse, call the handler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from modelworks.events import DeploymentRemoved, DeploymentRequested, EnvelopeError, Event, RefMoved
from modelworks.inference.handlers import Deploying
from modelworks.kit.errors import StoreUnavailable
from modelworks.kit.logging import get_logger
from modelworks.kit.telemetry import span
from modelworks.stores.bus.port import Bus, Delivery, PermanentFailure, Subscription
from modelworks.stores.outbox import envelope_of
from opentelemetry.trace import SpanKind, Tracer

log = get_logger("stream")

_TAIL_PAUSE_SECONDS = 1.0


def parse(delivery: Delivery) -> tuple[Event, str, str, str]:
    """The event of a delivery with its actor, source and id.

    Raises:
        PermanentFailure: it breaks its schema.
    """
    try:
        envelope = envelope_of(delivery.message)
    except EnvelopeError as error:
        raise PermanentFailure(str(error)) from error
    return envelope.event, envelope.actor, envelope.source, envelope.id


def follow_refs(deploying: Deploying, tracer: Tracer) -> Subscription:
    """One member of the group moves a deployment along with its ref."""

    async def handle(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            event, actor, _, _ = parse(delivery)
            assert isinstance(event, RefMoved)
            with span(tracer, f"process {event.topic}", kind=SpanKind.CONSUMER, parent=delivery.message.headers):
                await deploying.follow_ref(event, actor=actor)

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
