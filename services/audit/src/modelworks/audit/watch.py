"""Looks at the audit itself, now and then: how far it is behind, and whether a sample of the index is what the log says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from modelworks.audit.metrics import Metrics
from modelworks.audit.stream import GROUP, Turn
from modelworks.audit.sweep import IndexAudit, Report
from modelworks.audit.waiting import first_of
from modelworks.kit.clock import Clock
from modelworks.kit.errors import ModelworksError
from modelworks.kit.logging import get_logger
from modelworks.stores import Bus

_SHOWN_MAX = 100

log = get_logger("audit")


class Watch:
    """The last look."""

    def __init__(
        self, *, bus: Bus, audit: IndexAudit, turn: Turn, metrics: Metrics, clock: Clock, seconds: float, leaves: int
    ) -> None:
        self._bus = bus
        self._audit = audit
        self._turn = turn
        self._metrics = metrics
        self._clock = clock
        self._seconds = seconds
        self._leaves = leaves
        self._stopping = asyncio.Event()
        self._last: dict[str, Any] = {"checked_at": None}

    def health(self) -> dict[str, Any]:
        """What was found last: `leaves`, `checked`, `differing`, `differences`, `lag_messages`, `leading`, `checked_at`."""
        return {**self._last, "leading": self._turn.leading}

    async def look(self) -> Report:
        """Look now."""
        report = await self._audit.sample(self._leaves)
        lag = sum(each.messages for each in await self._bus.lag(GROUP))
        for difference in report.differences:
            log.error(
                "audit.index-differs", kind=difference.kind, document=difference.document, detail=difference.detail
            )
        self._metrics.lag.set(lag)
        self._metrics.differing.set(report.differing)
        self._metrics.leaves.set(report.leaves)
        self._metrics.leading.set(int(self._turn.leading))
        self._last = {
            "checked_at": self._clock().isoformat(),
            "leaves": report.leaves,
            "checked": report.checked,
            "differing": report.differing,
            "differences": [asdict(each) for each in report.differences[:_SHOWN_MAX]],
            "lag_messages": lag,
        }
        return report

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look every so often while the body runs."""
        task = asyncio.create_task(self._forever(), name="audit watch")
        try:
            yield
        finally:
            self._stopping.set()
            await task

    async def _forever(self) -> None:
        while not await first_of(self._stopping, within=self._seconds):
            try:
                await self.look()
            except ModelworksError as error:
                log.warning("audit.look-failed", error=error.message)
            except Exception as error:
                log.error("audit.look-crashed", exc_info=error)
