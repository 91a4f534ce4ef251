"""Events in, results out, and what to do with messages that nobody could handle."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from modelworks.edge.domain import encode_position
from modelworks.events import BY_TOPIC, Envelope, EnvelopeError, OptimizationRequested, PredictionRequested
from modelworks.kit.errors import InvalidInput, NotFound
from modelworks.kit.platform import Platform
from modelworks.kit.policy import Resource
from modelworks.kit.principal import Principal
from modelworks.kit.telemetry import inject
from modelworks.stores import Bus, DeadLetter, Delivery, Message
from modelworks.stores.outbox import envelope_of, message_of

DEAD_LETTERS_MAX = 1000


@dataclass(frozen=True, slots=True)
class StreamedEvent:
    """An event on its way to a listener."""

    position: str
    """SSE event id: where to go on after this event."""
    delivery: Delivery


class Events:
    """The handlers of the edge's own paths."""

    def __init__(self, bus: Bus, platform: Platform) -> None:
        self._bus = bus
        self._platform = platform

    async def ingest(self, envelopes: Sequence[Envelope]) -> Sequence[str]:
        """Publish what an upstream system sent, as parts of the request's trace; returns the event ids in order.

        Raises:
            StoreUnavailable: some may have been taken; sending the same ids again is harmless.
        """
        trace = inject()
        messages = []
        for envelope in envelopes:
            message = message_of(envelope)
            messages.append(Message(message.topic, message.key, message.value, {**message.headers, **trace}))
        await self._bus.publish(messages)
        return [envelope.id for envelope in envelopes]

    def require_asked_for(self, principal: Principal, envelopes: Sequence[Envelope]) -> None:
        """An event is no way around a right: who asks for work by event must be allowed to ask for it directly.

        Raises:
            Forbidden: for one of the events; none may be taken.
        """
        for envelope in envelopes:
            event = envelope.event
            if isinstance(event, PredictionRequested):
                self._platform.policy.require(principal, "model:predict", Resource("Model", event.model))
            elif isinstance(event, OptimizationRequested):
                self._platform.policy.require(principal, "optimization:run", Resource("Model", event.repository))

    def narrow(self, principal: Principal, topics: Sequence[str]) -> frozenset[str]:
        """Which of the topics the principal may follow only as far as they are about itself.

        Raises:
            InvalidInput: a topic is unknown, or none is named.
            Forbidden: the principal may not follow one of them at all.
        """
        if not topics or len(topics) > 32:
            raise InvalidInput("name 1 to 32 topics: ?topic=inference.prediction-completed.v1&topic=...")
        narrowed = set()
        for topic in topics:
            event = BY_TOPIC.get(topic)
            if event is None:
                raise InvalidInput(f"topic {topic!r} is unknown; known are: {', '.join(sorted(BY_TOPIC))}")
            whole = Resource("Topic", topic, {"own_only": False})
            if self._platform.policy.check(principal, "event:read", whole).allowed:
                self._platform.policy.require(principal, "event:read", whole)
            else:
                own = "principal" in event.model_fields
                self._platform.policy.require(principal, "event:read", Resource("Topic", topic, {"own_only": own}))
                narrowed.add(topic)
        return frozenset(narrowed)

    async def follow(
        self,
        principal: Principal,
        topics: Sequence[str],
        own_only: frozenset[str],
        after: Mapping[str, Mapping[int, int]],
    ) -> AsyncIterator[StreamedEvent]:
        """Events from now on, or after a position."""
        position = {topic: dict(parts) for topic, parts in after.items() if topic in topics}
        cursors = {t: ",".join(f"{p}:{o}" for p, o in sorted(parts.items())) for t, parts in position.items() if parts}
        async for delivery in self._bus.tail(topics, after=cursors):
            topic = delivery.message.topic
            position.setdefault(topic, {})[delivery.partition] = delivery.offset
            if topic in own_only and not _is_about(delivery.message, principal):
                continue
            yield StreamedEvent(encode_position(position), delivery)

    async def dead_letters(self, *, topic: str | None, limit: int) -> Sequence[DeadLetter]:
        """Newest first."""
        if not 1 <= limit <= DEAD_LETTERS_MAX:
            raise InvalidInput(f"limit {limit} is out of bounds: 1 to {DEAD_LETTERS_MAX}")
        return await self._bus.dead_letters(topic=topic, limit=limit)

    async def dead_letter(self, id: str) -> DeadLetter:
        """One dead letter.

        Raises:
            NotFound: no such dead letter among the newest thousand.
        """
        letters = await self._bus.dead_letters(limit=DEAD_LETTERS_MAX)
        found = next((letter for letter in letters if letter.id == id), None)
        if found is None:
            raise NotFound(f"no dead letter {id!r}: list them with 'modelworks events list'")
        return found

    async def replay(self, id: str) -> DeadLetter:
        """Hand a dead letter to its group again.

        Raises:
            NotFound: no such dead letter.
        """
        return await self._bus.replay(id)


def _is_about(message: Message, principal: Principal) -> bool:
    try:
        return getattr(envelope_of(message).event, "principal", None) == principal.id
    except EnvelopeError:
        return False
