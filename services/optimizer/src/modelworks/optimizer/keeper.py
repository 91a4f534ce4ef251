"""The state of a running job, and the only one who saves it while the job runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from modelworks.events import Event
from modelworks.kit.clock import Clock
from modelworks.kit.errors import StoreUnavailable, VersionConflict
from modelworks.kit.logging import get_logger
from modelworks.optimizer import domain
from modelworks.optimizer.domain import Job
from modelworks.optimizer.ports import Jobs, StoredJob

_SAVES_MAX = 5

log = get_logger("optimizer")


class Superseded(Exception):
    """The job was cancelled, or another start took it over: stop, and save nothing more."""


class Keeper:
    """Saves progress now and then, changes of state at once, and notices when the job is no longer ours."""

    def __init__(self, jobs: Jobs, stored: StoredJob, *, clock: Clock, progress_ms_min: int, watch_ms: int) -> None:
        self.job = stored.job
        self._version = stored.version
        self._jobs = jobs
        self._clock = clock
        self._progress_seconds_min = progress_ms_min / 1000
        self._watch_seconds = watch_ms / 1000
        self._saving = asyncio.Lock()
        self._told: tuple[str, float] | None = None
        self._saved_at = float("-inf")

    def tick(self, stage: str, share: float) -> None:
        """Note how far the work is; `follow` saves it when it is time."""
        self._told = (stage, share)

    async def save(self, change: Callable[[Job], Job | tuple[Job, Sequence[Event]]]) -> None:
        """Apply a transition and save it.

        Raises:
            Superseded: the job is no longer ours; nothing was saved.
            StoreUnavailable: the store did not answer.
        """
        async with self._saving:
            self._told = None
            for _ in range(_SAVES_MAX):
                changed = change(self.job)
                job, events = changed if isinstance(changed, tuple) else (changed, ())
                try:
                    saved = await self._jobs.save(job, events, expected=self._version, actor=job.actor)
                except VersionConflict:
                    # The relay of pending events saves, too; only another fence or an end is somebody else's doing.
                    await self._read()
                    continue
                self.job, self._version = saved.job, saved.version
                self._saved_at = time.monotonic()
                return
        raise StoreUnavailable(f"job {self.job.id} could not be saved: it changed {_SAVES_MAX} times meanwhile")

    async def follow(self) -> None:
        """Save progress and watch for a cancellation, until the job is no longer ours.

        Raises:
            Superseded: as soon as it is seen.
        """
        while True:
            await asyncio.sleep(self._watch_seconds)
            try:
                due = time.monotonic() - self._saved_at >= self._progress_seconds_min
                told = self._told
                if told is not None and (due or told[0] != self.job.stage):
                    await self.save(
                        lambda job, told=told: domain.advance(job, stage=told[0], share=told[1], now=self._clock())  # type: ignore[misc]
                    )
                else:
                    async with self._saving:
                        await self._read()
            except StoreUnavailable as error:
                # Progress is worth no interruption; what must be saved is saved by the work itself.
                log.warning("job.progress-not-saved", job=self.job.id, error=str(error))

    async def _read(self) -> None:
        latest = await self._jobs.get(self.job.id)
        if latest is None or latest.job.fence != self.job.fence or latest.job.status != "running":
            raise Superseded(self.job.id)
        self.job, self._version = latest.job, latest.version
