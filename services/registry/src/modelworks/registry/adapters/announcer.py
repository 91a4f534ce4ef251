"""Events without a state of their own, straight to the bus."""

from __future__ import annotations

import uuid

from modelworks.events import Envelope, UploadRefused
from modelworks.kit.clock import Clock
from modelworks.kit.errors import ModelworksError
from modelworks.kit.logging import get_logger
from modelworks.kit.telemetry import inject
from modelworks.registry.adapters.documents import SOURCE
from modelworks.stores import Bus
from modelworks.stores.outbox import message_of

log = get_logger("registry")


class BusAnnouncer:
    """The `Announcer` port."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock

    async def upload_refused(self, event: UploadRefused, *, actor: str) -> None:
        envelope = Envelope(
            event=event, id=uuid.uuid4().hex, source=SOURCE, time=self._clock(), actor=actor, trace=inject()
        )
        try:
            await self._bus.publish([message_of(envelope)])
        except ModelworksError as error:
            log.error(
                "upload.refusal-not-announced", repository=event.repository, reason=event.reason, error=str(error)
            )
