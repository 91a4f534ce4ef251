"""State and its events in one write; the events published right after, or by a sweep if the process died between.

A document store writes one document atomically and nothing more, so the pending
events live inside the document they announce. Event ids come from the
document's id and its revision count: publishing an event twice gives the same
id, and consumers drop it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from modelworks.events import BY_TOPIC, Envelope, Event
from modelworks.kit.clock import Clock, utc_now
from modelworks.kit.errors import StoreUnavailable, VersionConflict
from modelworks.kit.logging import get_logger
from modelworks.kit.tasks import end
from modelworks.kit.telemetry import inject
from modelworks.stores.bus.port import Bus, Message
from modelworks.stores.documents.port import (
    Document,
    Documents,
    Field,
    FieldType,
    Filter,
    Query,
    Schema,
    Version,
)

PENDING = "_pending"
"""Property of a document's body with the events that are not known to be published."""
SAVES = "_saves"
"""Property that counts the saves; event ids are made from it."""

log = get_logger("outbox")


@dataclass(frozen=True, slots=True)
class Stored:
    """A state as it was read or saved."""

    id: str
    state: Mapping[str, Any]
    """The body without the outbox's own properties."""
    version: Version
    """To be given back as `expected`."""


class Outbox:
    """One collection whose documents carry their pending events."""

    def __init__(self, *, documents: Documents, bus: Bus, schema: Schema, source: str, clock: Clock = utc_now) -> None:
        """`source`: the CloudEvents source, for example `/services/registry`."""
        self._documents = documents
        self._bus = bus
        self._collection = schema.collection
        pending = Field(f"{PENDING}.since", FieldType.TIME)
        self.schema = Schema(schema.collection, (*schema.fields, pending))
        self._source = source
        self._clock = clock

    async def ensure(self) -> None:
        """Make the collection."""
        await self._documents.ensure(self.schema)

    async def get(self, id: str) -> Stored | None:
        """The state, or None.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        document = await self._documents.get(self._collection, id)
        return None if document is None else stored(document)

    async def save(
        self,
        id: str,
        state: Mapping[str, Any],
        events: Sequence[Event],
        *,
        expected: Version | None,
        actor: str,
    ) -> Stored:
        """Store the state and its events in one atomic write, then publish the events.

        A failure to publish is not an error of the save: the sweep will do it.

        Args:
            expected: version of the state this one was made from; None to create it.
            actor: principal who caused it, for the audit.

        Raises:
            VersionConflict: another writer saved since; load and try again.
            StoreUnavailable: as Documents.save.
        """
        previous = await self._documents.get(self._collection, id) if expected is not None else None
        if previous is not None and previous.version != expected:
            raise VersionConflict(f"{self._collection} {id!r} was changed by somebody else: read it again and retry")
        saves = int(previous.body.get(SAVES, 0)) + 1 if previous else 1
        # Events that an earlier save left unpublished must not be lost by this one.
        left = list(previous.body.get(PENDING, {}).get("events", [])) if previous else []
        fresh = [self._pack(event, id, saves, number, actor) for number, event in enumerate(events)]
        body: dict[str, Any] = {**state, SAVES: saves}
        if left or fresh:
            body[PENDING] = {"since": _time(self._clock()), "events": left + fresh}
        document = await self._documents.save(self._collection, id, body, expected=expected)
        if left or fresh:
            document = await self._relay(document)
        return stored(document)

    async def sweep(self, *, older_than: timedelta = timedelta(seconds=5)) -> int:
        """Publish what crashed or failed relays left behind; returns the number of documents."""
        before = _time(self._clock() - older_than)
        query = Query(filters=(Filter(f"{PENDING}.since", "lt", before),), limit=200)
        page = await self._documents.search(self._collection, query)
        for hit in page.hits:
            # The search may be behind: what counts is the document by id.
            document = await self._documents.get(self._collection, hit.document.id)
            if document is not None and PENDING in document.body:
                await self._relay(document)
        return len(page.hits)

    @asynccontextmanager
    async def sweeping(self, *, every: timedelta = timedelta(seconds=5)) -> AsyncIterator[None]:
        """Sweep at once and then every so often while the body runs."""
        task = asyncio.create_task(self._sweep_forever(every), name=f"sweep {self._collection}")
        try:
            yield
        finally:
            await end(task)

    async def _sweep_forever(self, every: timedelta) -> None:
        while True:
            try:
                swept = await self.sweep()
                if swept:
                    log.info("outbox.swept", collection=self._collection, documents=swept)
            except StoreUnavailable as error:
                log.warning("outbox.sweep-failed", collection=self._collection, error=str(error))
            await asyncio.sleep(every.total_seconds())

    async def _relay(self, document: Document) -> Document:
        """Publish the pending events of a saved document and clear them."""
        events = document.body[PENDING]["events"]
        try:
            await self._bus.publish([_unpack(packed) for packed in events])
            rest = {name: value for name, value in document.body.items() if name != PENDING}
            return await self._documents.save(self._collection, document.id, rest, expected=document.version)
        except (StoreUnavailable, VersionConflict) as error:
            # Unavailable: the sweep comes back to it. Conflict: another writer took the events over (see `save`).
            log.warning("outbox.relay-postponed", collection=self._collection, id=document.id, error=str(error))
            return document

    def _pack(self, event: Event, id: str, saves: int, number: int, actor: str) -> dict[str, Any]:
        name = f"{self._collection}\n{id}\n{saves}\n{number}\n{event.topic}"
        envelope = Envelope(
            event=event,
            id=hashlib.sha256(name.encode()).hexdigest()[:32],
            source=self._source,
            time=self._clock(),
            actor=actor,
            trace=inject(),
        )
        return {
            "topic": envelope.topic,
            "key": envelope.key,
            "headers": envelope.headers(),
            "body": envelope.body().decode(),
        }


def stored(document: Document) -> Stored:
    """The state of a document that an outbox saved, for example of a search hit."""
    state = {name: value for name, value in document.body.items() if name not in (PENDING, SAVES)}
    return Stored(document.id, state, document.version)


def message_of(envelope: Envelope) -> Message:
    """An envelope as a message, for events without a state of their own."""
    return Message(topic=envelope.topic, key=envelope.key, value=envelope.body(), headers=envelope.headers())


def envelope_of(message: Message) -> Envelope:
    """A message as an envelope.

    Raises:
        EnvelopeError: it is not a CloudEvent of ours.
    """
    return Envelope.parse(message.headers, message.value, BY_TOPIC)


def _unpack(packed: Mapping[str, Any]) -> Message:
    return Message(
        topic=packed["topic"], key=packed["key"], value=packed["body"].encode(), headers=dict(packed["headers"])
    )


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
