"""Makes what this worker has loaded equal to what the deployments say, whatever happened meanwhile.

It compares at the start, when an event names a deployment, and every few
seconds. Nothing is remembered but what is in memory anyway, so a worker that
was killed finds its models again. A new revision is loaded beside the old one
and takes its place in one step; when it cannot be loaded, the old one stays.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from modelworks.inference.domain import (
    Change,
    Deployment,
    Loaded,
    UnloadReason,
    failure,
    report_loaded,
    report_unloaded,
)
from modelworks.inference.engine.errors import ModelRefused
from modelworks.inference.engine.models import LoadedModel, Models
from modelworks.inference.engine.scheduler import Scheduler
from modelworks.inference.engine.session import Session, SessionLoader
from modelworks.inference.ports import Deployments, ModelCache, Presence
from modelworks.kit.clock import Clock
from modelworks.kit.errors import ModelworksError, StoreUnavailable, TooLarge, Unavailable, VersionConflict
from modelworks.kit.logging import get_logger
from modelworks.kit.tasks import end

log = get_logger("worker")

_Decision = Callable[[Deployment], Awaitable[Change[Deployment] | None]]
"""What to do about the newest state; None: nothing."""

_SAVE_ATTEMPTS = 20
_RETRY_FIRST_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """How a worker loads."""

    memory_bytes_max: int
    batch_rows: int
    batch_delay_ms: float
    reconcile: timedelta
    beat: timedelta
    retry_max: timedelta


@dataclass(slots=True)
class _Failure:
    """A load that failed, and when it is worth another try."""

    generation: int
    attempts: int
    try_at: float


class Worker:
    """Loads and unloads."""

    def __init__(
        self,
        name: str,
        *,
        models: Models,
        scheduler: Scheduler,
        deployments: Deployments,
        cache: ModelCache,
        presence: Presence,
        loader: SessionLoader,
        limits: WorkerLimits,
        clock: Clock,
        on_change: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`on_change` is told of each deployment whose state here was saved."""
        self.name = name
        self._models = models
        self._scheduler = scheduler
        self._deployments = deployments
        self._cache = cache
        self._presence = presence
        self._loader = loader
        self._limits = limits
        self._clock = clock
        self._on_change = on_change
        self._dirty: set[str] = set()
        self._sweep_at = 0.0
        self._wake = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loading = asyncio.Lock()
        self._failures: dict[str, _Failure] = {}
        self._evicted: set[str] = set()
        models.on_miss = self._wanted

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Reconcile while the body runs. On leaving, models stay in memory: what runs is drained by the scheduler."""
        tasks = [
            asyncio.create_task(self._reconcile_forever(), name="reconcile"),
            asyncio.create_task(self._beat_forever(), name="presence"),
        ]
        try:
            yield
        finally:
            tasks += self._tasks.values()
            await end(*tasks)
            try:
                await self._presence.leave(self.name)
            except StoreUnavailable as error:
                log.info("worker.leave-failed", error=str(error))

    def wake(self, model: str | None = None) -> None:
        """Something happened to a deployment; None: to any of them."""
        if model is None:
            self._sweep_at = 0.0
        else:
            self._dirty.add(model)
        self._wake.set()

    async def check(self) -> None:
        """Readiness.

        Raises:
            Unavailable: the deployments were not read yet.
        """
        if not self._models.complete:
            raise Unavailable("the deployments were not read yet")

    # --- the loops ----------------------------------------------------------------------------------------

    async def _beat_forever(self) -> None:
        while True:
            try:
                await self._presence.beat(self.name)
            except StoreUnavailable as error:
                log.warning("worker.beat-failed", error=str(error))
            await asyncio.sleep(self._limits.beat.total_seconds())

    async def _reconcile_forever(self) -> None:
        while True:
            if time.monotonic() >= self._sweep_at:
                try:
                    await self._sweep()
                except StoreUnavailable as error:
                    log.warning("worker.sweep-failed", error=str(error))
            for name in [name for name in self._dirty if name not in self._tasks]:
                self._dirty.discard(name)
                task = asyncio.create_task(self._reconcile(name), name=f"reconcile {name}")
                self._tasks[name] = task
                task.add_done_callback(partial(self._reconciled, name))
            try:
                await asyncio.wait_for(self._wake.wait(), max(0.001, self._sweep_at - time.monotonic()))
            except TimeoutError:
                continue
            self._wake.clear()

    def _reconciled(self, name: str, task: asyncio.Task[None]) -> None:
        del self._tasks[name]
        if not task.cancelled() and task.exception() is not None:
            log.error("worker.reconcile-crashed", model=name, exc_info=task.exception())
        if name in self._dirty:
            self._wake.set()

    async def _sweep(self) -> None:
        """Mark every deployment that differs from what is loaded."""
        self._sweep_at = time.monotonic() + self._limits.reconcile.total_seconds()
        wanted = {deployment.model: deployment for deployment in await self._deployments.all()}
        for model in self._models.all():
            if model.name not in wanted:
                self._dirty.add(model.name)
        missing = self._models.missing()
        self._dirty.update(name for name in missing if name not in wanted)
        for name, deployment in wanted.items():
            if not self._settled(deployment):
                self._dirty.add(name)
                if name not in missing:
                    self._models.expect(name, "it is being loaded")
        self._models.complete = True

    def _settled(self, deployment: Deployment) -> bool:
        """Memory and document agree."""
        model = self._models.peek(deployment.model)
        told = deployment.workers.get(self.name)
        if model is None or told is None:
            return False
        same = (model.revision, model.sha256) == (deployment.revision, deployment.artifact.sha256)
        return same and (told.state, told.serving) == ("ready", model.revision)

    # --- one deployment -----------------------------------------------------------------------------------

    async def _reconcile(self, name: str) -> None:
        try:
            found = await self._deployments.get(name)
            if found is None or found.state.removed:
                await self._remove(name)
            else:
                await self._bring_up(found.state)
        except StoreUnavailable as error:
            # The next sweep comes back to it.
            log.warning("worker.reconcile-failed", model=name, error=str(error))

    async def _remove(self, name: str) -> None:
        self._failures.pop(name, None)
        self._evicted.discard(name)
        old = self._models.withdraw(name)
        if old is not None:
            self._scheduler.retire(old)
            log.info("model.unloaded", model=name, revision=old.revision, reason="removed")
            await self._report_unloaded(old, "removed")

    async def _bring_up(self, deployment: Deployment) -> None:
        name = deployment.model
        model = self._models.peek(name)
        if model is not None and (model.revision, model.sha256) == (deployment.revision, deployment.artifact.sha256):
            model.ref, model.pinned = deployment.ref, deployment.pinned
            if not self._settled(deployment):
                await self._report(name, _ready(model, self._clock))
            return
        if model is None and name in self._evicted:
            self._models.expect(name, "it was unloaded to make room, and is loaded again when it is asked for")
            return
        failed = self._failures.get(name)
        if failed is not None and failed.generation == deployment.generation and time.monotonic() < failed.try_at:
            return
        async with self._loading:
            await self._load(deployment)

    async def _load(self, deployment: Deployment) -> None:
        name = deployment.model
        old = self._models.peek(name)
        serving = old.revision if old else None
        failed = self._failures.get(name)
        if failed is None or failed.generation != deployment.generation:
            self._models.expect(name, "it is being loaded")
            loading = Loaded(state="loading", revision=deployment.revision, serving=serving, at=self._clock())
            await self._report(name, loading)
        started = time.monotonic()
        try:
            path = await self._cache.fetch(name, deployment.revision, deployment.artifact)
            await self._make_room(deployment)
            session = await asyncio.to_thread(self._loader, path)
        except ModelworksError as error:
            await self._load_failed(deployment, error, serving)
            return
        load_ms = (time.monotonic() - started) * 1000
        model = self._made(deployment, session, load_ms)
        self._failures.pop(name, None)
        before = self._models.serve(model)
        if before is not None:
            self._scheduler.retire(before)
        log.info(
            "model.loaded", model=name, revision=model.revision, provider=session.provider, load_ms=round(load_ms, 1),
            memory_bytes=model.memory_bytes, replaced=before.revision if before else None,
        )  # fmt: skip
        await self._report(name, _ready(model, self._clock))

    def _made(self, deployment: Deployment, session: Session, load_ms: float) -> LoadedModel:
        batching = deployment.batching
        delay_ms = self._limits.batch_delay_ms if batching.max_delay_ms is None else batching.max_delay_ms
        return LoadedModel(
            name=deployment.model, ref=deployment.ref, revision=deployment.revision,
            sha256=deployment.artifact.sha256, session=session, max_batch=batching.max_batch or self._limits.batch_rows,
            max_delay_seconds=delay_ms / 1000, load_ms=load_ms, pinned=deployment.pinned,
        )  # fmt: skip

    async def _load_failed(self, deployment: Deployment, error: ModelworksError, serving: str | None) -> None:
        name = deployment.model
        known = self._failures.get(name)
        attempts = known.attempts + 1 if known and known.generation == deployment.generation else 1
        pause = float("inf")
        if error.transient or not isinstance(error, (ModelRefused, TooLarge)):
            pause = min(_RETRY_FIRST_SECONDS * 2 ** (attempts - 1), self._limits.retry_max.total_seconds())
        self._failures[name] = _Failure(deployment.generation, attempts, time.monotonic() + pause)
        self._models.expect(name, f"loading it failed: {error.message}", failed=pause == float("inf"))
        log.warning(
            "model.load-failed", model=name, revision=deployment.revision, code=error.code, error=str(error),
            still_serving=serving, retry_seconds=None if pause == float("inf") else pause,
        )  # fmt: skip
        await self._report(
            name,
            Loaded(
                state="failed", revision=deployment.revision, serving=serving, error=failure(error), at=self._clock()
            ),
        )

    # --- memory -------------------------------------------------------------------------------------------

    async def _make_room(self, deployment: Deployment) -> None:
        """Unload what was used least recently until the model's file fits; how much it takes is known only after."""
        needed = deployment.artifact.size_bytes
        bound = self._limits.memory_bytes_max
        while self._models.memory_bytes() + needed > bound:
            others = [model for model in self._models.all() if model.name != deployment.model and not model.pinned]
            if not others:
                raise TooLarge(
                    f"model {deployment.model} needs at least {needed} bytes, {self._models.memory_bytes()} are taken "
                    f"and may not be given up, the bound is {bound}: raise INFERENCE_MEMORY_BYTES_MAX, or remove a deployment"
                )
            victim = min(others, key=lambda model: model.last_used)
            self._models.withdraw(victim.name)
            self._models.expect(victim.name, "it was unloaded to make room, and is loaded again when it is asked for")
            self._evicted.add(victim.name)
            self._scheduler.retire(victim)
            log.info("model.unloaded", model=victim.name, revision=victim.revision, reason="memory")
            await self._report_unloaded(victim, "memory")

    def _wanted(self, name: str) -> None:
        """A caller asks for a model that is not loaded."""
        if name in self._evicted:
            self._evicted.discard(name)
            self.wake(name)

    # --- telling ------------------------------------------------------------------------------------------

    async def _report(self, name: str, loaded: Loaded) -> None:
        async def change(deployment: Deployment) -> Change[Deployment] | None:
            if deployment.removed:
                return None
            others = [worker for worker in deployment.workers if worker != self.name]
            gone = frozenset(others) - await self._presence.alive(others)
            return report_loaded(deployment, self.name, loaded, gone=gone)

        await self._save(name, change)

    async def _report_unloaded(self, model: LoadedModel, reason: UnloadReason) -> None:
        async def change(deployment: Deployment) -> Change[Deployment] | None:
            return report_unloaded(deployment, self.name, model.revision, reason, at=self._clock())

        await self._save(model.name, change)

    async def _save(self, name: str, change: _Decision) -> None:
        """Change the document, however many workers do the same at once."""
        for _ in range(_SAVE_ATTEMPTS):
            found = await self._deployments.get(name)
            decided = await change(found.state) if found is not None else None
            if found is None or decided is None:
                return
            try:
                await self._deployments.save(decided, expected=found.version, actor="system")
            except VersionConflict:
                await asyncio.sleep(random.uniform(0, 0.02))  # noqa: S311 - to part from the others, not a secret
            else:
                self._on_change(name)
                return
        log.warning("worker.report-given-up", model=name, attempts=_SAVE_ATTEMPTS)


def _ready(model: LoadedModel, clock: Clock) -> Loaded:
    return Loaded(
        state="ready", revision=model.revision, serving=model.revision, sha256=model.sha256,
        provider=model.session.provider, load_ms=model.load_ms, memory_bytes=model.memory_bytes, at=clock(),
    )  # fmt: skip
