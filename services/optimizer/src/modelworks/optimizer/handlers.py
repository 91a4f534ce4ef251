"""What the optimizer does for a command or an event: accept, show, wait for, cancel. Running is `runner.py`."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from modelworks.events import Event, OptimizationRequested, RevisionCommitted
from modelworks.kit.clock import Clock
from modelworks.kit.errors import Conflict, NotFound, VersionConflict
from modelworks.optimizer import domain
from modelworks.optimizer.domain import Job
from modelworks.optimizer.passes import PASSES
from modelworks.optimizer.ports import JobPage, Jobs, ModelRepository, StoredJob
from modelworks.optimizer.recipe import Recipe, parse_recipe

_TRIES = 10


class Handlers:
    """The optimizer's commands and questions."""

    def __init__(
        self,
        jobs: Jobs,
        models: ModelRepository,
        *,
        clock: Clock,
        branches: Sequence[str],
        recipes: Sequence[str],
        watch_ms: int,
        waiters_max: int,
    ) -> None:
        """
        Args:
            branches: patterns of the branches whose commits are optimised.
            recipes: names of the recipes a commit is optimised with.
        """
        self._jobs = jobs
        self._models = models
        self._clock = clock
        self._branches = branches
        self._recipes = [parse_recipe(name) for name in recipes]
        self._watch_seconds = watch_ms / 1000
        self._waiters_max = waiters_max
        self._waiters = 0

    async def accept_commit(self, event: RevisionCommitted, *, actor: str) -> list[str]:
        """A job for each recipe that a commit is optimised with; returns the ids of those that are new."""
        accepted = []
        for recipe in self._recipes:
            if not domain.is_wanted(event, branches=self._branches, suffix=PASSES[recipe.pass_name].takes.suffix):
                continue
            id = domain.job_id(event.repository, event.revision, recipe.digest)
            wish = {"repository": event.repository, "revision": event.revision, "ref": event.branch}
            if await self._create(id, recipe, actor=actor, **wish):
                accepted.append(id)
        return accepted

    async def accept_request(self, event: OptimizationRequested, *, request: str, actor: str) -> str:
        """The job of an upstream system's wish.

        Args:
            request: names the wish; the same again is answered by the same job.

        Raises:
            NotFound: no such repository or ref.
            InvalidInput: the recipe is unknown.
        """
        recipe = parse_recipe(event.recipe)
        id = "opt-" + hashlib.sha256(f"request\n{request}".encode()).hexdigest()[:24]
        if await self._jobs.get(id) is None:
            source = await self._models.revision(event.repository, event.ref)
            await self._create(
                id, recipe, repository=event.repository, revision=source.revision, ref=event.ref, actor=actor
            )
        return id

    async def request(
        self, repository: str, *, ref: str, recipe: str | Mapping[str, Any], again: bool, actor: str
    ) -> tuple[Job, bool]:
        """The job for a revision and a recipe, and whether it is new.

        A job for the same exists: it is the answer, unless it failed, was cancelled, or `again` asks for another run.

        Raises:
            NotFound: no such repository or ref.
            InvalidInput: the recipe is not acceptable.
            Conflict: `again`, and it has not ended.
        """
        parsed = parse_recipe(recipe)
        source = await self._models.revision(repository, ref)
        id = domain.job_id(repository, source.revision, parsed.digest)
        for _ in range(_TRIES):
            stored = await self._jobs.get(id)
            if stored is None:
                made = await self._create(
                    id, parsed, repository=repository, revision=source.revision, ref=ref, actor=actor
                )
                if made is not None:
                    return made.job, True
                continue
            if stored.job.status in ("queued", "running", "succeeded") and not again:
                return stored.job, False
            job, events = domain.again(stored.job, actor=actor, now=self._clock())
            saved = await self._save(stored, job, events, actor=actor)
            if saved is not None:
                return saved.job, True
        raise Conflict(f"job {id} keeps changing: try again")

    async def get(self, id: str, *, wait_seconds: float = 0) -> Job:
        """The job; with `wait_seconds`, as soon as it has ended, or as it is when the time is over.

        Raises:
            NotFound: no such job.
        """
        deadline = time.monotonic() + wait_seconds
        waiting = wait_seconds > 0 and self._waiters < self._waiters_max
        self._waiters += waiting
        try:
            while True:
                stored = await self._jobs.get(id)
                if stored is None:
                    raise NotFound(f"optimization {id!r} does not exist")
                left = deadline - time.monotonic()
                if stored.job.ended or not waiting or left <= 0:
                    return stored.job
                # Another process may run the job, so the store is asked.
                await asyncio.sleep(min(left, self._watch_seconds))
        finally:
            self._waiters -= waiting

    async def find(self, *, repository: str | None, status: str | None, limit: int, cursor: str | None) -> JobPage:
        """Jobs, newest first."""
        return await self._jobs.find(repository=repository, status=status, limit=limit, cursor=cursor)

    async def cancel(self, id: str, *, actor: str) -> Job:
        """End a job that waits or runs; its worker is killed as soon as whoever runs it sees that.

        Raises:
            NotFound: no such job.
            Conflict: it has succeeded or failed already.
        """
        for _ in range(_TRIES):
            stored = await self._jobs.get(id)
            if stored is None:
                raise NotFound(f"optimization {id!r} does not exist")
            job, events = domain.cancel(stored.job, now=self._clock())
            if job is stored.job:
                return job
            saved = await self._save(stored, job, events, actor=actor)
            if saved is not None:
                return saved.job
        raise Conflict(f"job {id} keeps changing: try again")

    async def _create(
        self, id: str, recipe: Recipe, *, repository: str, revision: str, ref: str, actor: str
    ) -> StoredJob | None:
        """The new job, or None when it exists."""
        job, events = domain.accept(
            id=id, repository=repository, revision=revision, ref=ref, recipe=recipe.state(), actor=actor,
            now=self._clock(),
        )  # fmt: skip
        try:
            return await self._jobs.save(job, events, expected=None, actor=actor)
        except VersionConflict:
            return None

    async def _save(self, stored: StoredJob, job: Job, events: Sequence[Event], *, actor: str) -> StoredJob | None:
        """The saved job, or None when somebody else was faster."""
        try:
            return await self._jobs.save(job, events, expected=stored.version, actor=actor)
        except VersionConflict:
            return None
