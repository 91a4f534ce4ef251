"""Deletes ended jobs and their tensors when their time is over."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from modelworks.inference.ports import Jobs, Payloads
from modelworks.kit.clock import Clock
from modelworks.kit.errors import StoreUnavailable
from modelworks.kit.logging import get_logger

log = get_logger("jobs")

_BATCH = 100
_PAUSE = timedelta(minutes=5)


class Retention:
    """Looks every few minutes."""

    def __init__(self, *, jobs: Jobs, payloads: Payloads, keep: timedelta, clock: Clock) -> None:
        self._jobs = jobs
        self._payloads = payloads
        self._keep = keep
        self._clock = clock

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            try:
                deleted = await self.sweep()
                if deleted:
                    log.info("jobs.deleted", jobs=deleted)
            except StoreUnavailable as error:
                log.warning("jobs.retention-postponed", error=str(error))
            await asyncio.sleep(_PAUSE.total_seconds())

    async def sweep(self) -> int:
        """Delete what ended too long ago; returns the number of jobs."""
        deleted = 0
        while True:
            old = await self._jobs.ended_before(self._clock() - self._keep, limit=_BATCH)
            gone = 0
            for job in old:
                # The document last: until then the tensors can be found again.
                for payload in (job.state.inputs, job.state.output):
                    if payload is not None:
                        await self._payloads.delete(payload)
                gone += await self._jobs.delete(job)
            deleted += gone
            if len(old) < _BATCH or not gone:
                return deleted
