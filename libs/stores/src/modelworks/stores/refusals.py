"""Refusals as events, for the audit: never so many that an attacker fills the bus with them."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from modelworks.events import AccessDenied, Envelope
from modelworks.kit.clock import Clock, utc_now
from modelworks.kit.errors import ModelworksError
from modelworks.kit.logging import get_logger
from modelworks.kit.telemetry import inject
from modelworks.stores.bus.port import Bus
from modelworks.stores.outbox import message_of

_KEYS_MAX = 10_000
"""Principals and reasons that are counted apart."""
_MINUTE_SECONDS = 60.0

log = get_logger("refusals")


@dataclass(slots=True)
class _Minute:
    """What happened for one principal and reason in the current minute."""

    began: float
    announced: int = 0
    suppressed: int = 0
    """Not announced since the last event; carried into the next minute."""


class Refusals:
    """Publishes refusals, at most so many a minute for a principal and reason; the next event says how many it left out.

    Call it with the event and the id of who was refused. It never raises: whether a refusal can be recorded does not
    change what the caller is told.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        service: str,
        clock: Clock = utc_now,
        per_minute_max: int = 60,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._source = f"/services/{service}"
        self._clock = clock
        self._per_minute_max = per_minute_max
        self._monotonic = monotonic
        self._minutes: OrderedDict[tuple[str, str], _Minute] = OrderedDict()

    async def __call__(self, event: AccessDenied, actor: str) -> None:
        """Publish the event, or count it."""
        minute = self._minute(event)
        if minute.announced >= self._per_minute_max:
            minute.suppressed += 1
            return
        minute.announced += 1
        suppressed, minute.suppressed = minute.suppressed, 0
        envelope = Envelope(
            event=event.model_copy(update={"suppressed": event.suppressed + suppressed}),
            id=uuid.uuid4().hex,
            source=self._source,
            time=self._clock(),
            actor=actor,
            trace=inject(),
        )
        try:
            await self._bus.publish([message_of(envelope)])
        except ModelworksError as error:
            # This one is counted too, so that the next event that gets through tells of it.
            minute.suppressed += suppressed + 1
            log.warning(
                "refusal.not-recorded", principal=event.principal, reason=event.reason, action=event.action,
                error=str(error),
            )  # fmt: skip

    def _minute(self, event: AccessDenied) -> _Minute:
        key = (event.principal, event.reason)
        now = self._monotonic()
        minute = self._minutes.get(key)
        if minute is None:
            minute = self._minutes[key] = _Minute(now)
            if len(self._minutes) > _KEYS_MAX:
                (principal, reason), old = self._minutes.popitem(last=False)
                if old.suppressed:
                    log.warning("refusal.count-dropped", principal=principal, reason=reason, count=old.suppressed)
        elif now - minute.began >= _MINUTE_SECONDS:
            minute.began, minute.announced = now, 0
        self._minutes.move_to_end(key)
        return minute
