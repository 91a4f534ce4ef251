"""Accepting, waiting and cancelling on saved jobs, with other writers in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from modelworks.events import Event, FileChange, OptimizationRequested, RevisionCommitted
from modelworks.kit.errors import Conflict, InvalidInput, NotFound, VersionConflict
from modelworks.optimizer import domain
from modelworks.optimizer.adapters.jobs_outbox import SCHEMA, OutboxJobs
from modelworks.optimizer.domain import Job
from modelworks.optimizer.handlers import Handlers
from modelworks.optimizer.ports import StoredJob
from modelworks.stores.outbox import Outbox
from modelworks.stores.stores import Stores

NAME = "vision/magic"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class RacedJobs(OutboxJobs):
    """Lets somebody else write just before the next saves."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.before_save: list[Any] = []

    async def save(self, job: Job, events: Sequence[Event], *, expected: str | None, actor: str) -> StoredJob:
        if self.before_save:
            await self.before_save.pop(0)()
        return await super().save(job, events, expected=expected, actor=actor)


@pytest.fixture
async def jobs(stores: Stores) -> RacedJobs:
    outbox = Outbox(documents=stores.documents, bus=stores.bus, schema=SCHEMA, source="/services/optimizer")
    await outbox.ensure()
    return RacedJobs(outbox, stores.documents)


def make(jobs: Any, registry: Any, *recipes: str) -> Handlers:
    return Handlers(jobs, registry, clock=lambda: NOW, branches=("main",), recipes=recipes, watch_ms=10, waiters_max=10)


@pytest.fixture
def handlers(jobs: RacedJobs, registry: Any) -> Handlers:
    return make(jobs, registry, "int8")


@pytest.fixture
def revision(registry: Any) -> str:
    return registry.push(NAME, {"model.onnx": b"model"})  # type: ignore[no-any-return]


def commit(revision: str) -> RevisionCommitted:
    change = FileChange(path="model.onnx", change="added", sha256="a" * 64, size_bytes=1)
    return RevisionCommitted(
        repository=NAME, revision=revision, branch="main", parents=[], message="", changes=[change], changes_total=1
    )


async def change(jobs: OutboxJobs, id: str, transition: Any) -> None:
    stored = await jobs.get(id)
    assert stored is not None
    changed = transition(stored.job)
    job, events = changed if isinstance(changed, tuple) else (changed, ())
    await jobs.save(job, events, expected=stored.version, actor="someone")


async def test_commit_is_accepted_once(handlers: Handlers, revision: str) -> None:
    first = await handlers.accept_commit(commit(revision), actor="alice")
    second = await handlers.accept_commit(commit(revision), actor="alice")

    assert len(first) == 1
    assert second == []
    job = await handlers.get(first[0])
    assert (job.status, job.actor, job.ref, job.revision) == ("queued", "alice", "main", revision)


async def test_commit_asks_for_nothing_where_no_recipe_is_automatic(
    jobs: RacedJobs, registry: Any, revision: str
) -> None:
    assert await make(jobs, registry).accept_commit(commit(revision), actor="alice") == []


def test_automatic_recipe_that_is_unknown_is_refused_at_start(jobs: RacedJobs, registry: Any) -> None:
    with pytest.raises(InvalidInput, match="recipe 'int3' is unknown"):
        make(jobs, registry, "int3")


async def test_wish_for_what_a_commit_started_is_answered_by_that_job(handlers: Handlers, revision: str) -> None:
    [automatic] = await handlers.accept_commit(commit(revision), actor="alice")

    job, new = await handlers.request(NAME, ref="main", recipe="int8", again=False, actor="bob")

    assert (job.id, new) == (automatic, False)


async def test_wishes_at_the_same_moment_are_one_job(handlers: Handlers, jobs: RacedJobs, revision: str) -> None:
    async def other() -> None:
        await handlers.request(NAME, ref="main", recipe="int8", again=False, actor="bob")

    jobs.before_save.append(other)
    job, new = await handlers.request(NAME, ref="main", recipe="int8", again=False, actor="alice")

    assert (new, job.actor) == (False, "bob")


async def test_another_run_of_a_waiting_job_is_a_conflict(handlers: Handlers, revision: str) -> None:
    await handlers.request(NAME, ref="main", recipe="int8", again=False, actor="alice")

    with pytest.raises(Conflict, match="is queued: wait for its end"):
        await handlers.request(NAME, ref="main", recipe="int8", again=True, actor="alice")


async def test_wish_keeps_its_revision_when_the_branch_moves_on(
    handlers: Handlers, registry: Any, revision: str
) -> None:
    job, _ = await handlers.request(NAME, ref="main", recipe="int8", again=False, actor="alice")
    registry.push(NAME, {"model.onnx": b"newer"})

    later, new = await handlers.request(NAME, ref="main", recipe="int8", again=False, actor="alice")

    assert job.revision == revision
    assert (later.id != job.id, new) == (True, True)


async def test_upstream_wish_is_answered_by_its_first_job_even_when_the_branch_moved(
    handlers: Handlers, registry: Any, revision: str
) -> None:
    wish = OptimizationRequested(repository=NAME)
    first = await handlers.accept_request(wish, request="/ci 1", actor="ci")
    registry.push(NAME, {"model.onnx": b"newer"})

    second = await handlers.accept_request(wish, request="/ci 1", actor="ci")

    assert first == second
    assert (await handlers.get(first)).revision == revision


async def test_waiting_ends_as_soon_as_the_job_does(handlers: Handlers, jobs: RacedJobs, revision: str) -> None:
    job, _ = await handlers.request(NAME, ref="main", recipe="int8", again=False, actor="alice")
    waiting = asyncio.create_task(handlers.get(job.id, wait_seconds=30))
    await asyncio.sleep(0.05)
    began = time.monotonic()

    await change(jobs, job.id, lambda one: domain.fail(one, code="x", message="y", now=NOW))

    assert (await waiting).status == "failed"
    assert time.monotonic() - began < 5


async def test_cancel_that_meets_another_save_is_tried_again(
    handlers: Handlers, jobs: RacedJobs, revision: str
) -> None:
    job, _ = await handlers.request(NAME, ref="main", recipe="int8", again=False, actor="alice")

    async def progress() -> None:
        await change(jobs, job.id, lambda one: domain.start(one, crashed=False, now=NOW))

    jobs.before_save.append(progress)

    assert (await handlers.cancel(job.id, actor="alice")).status == "cancelled"


async def test_cancel_that_comes_after_the_end_is_told_so(handlers: Handlers, jobs: RacedJobs, revision: str) -> None:
    job, _ = await handlers.request(NAME, ref="main", recipe="int8", again=False, actor="alice")

    async def end() -> None:
        await change(jobs, job.id, lambda one: domain.fail(one, code="x", message="y", now=NOW))

    jobs.before_save.append(end)

    with pytest.raises(Conflict, match="has failed already"):
        await handlers.cancel(job.id, actor="alice")


async def test_job_that_never_stands_still_is_a_conflict_not_an_endless_loop(
    handlers: Handlers, jobs: RacedJobs, revision: str
) -> None:
    job, _ = await handlers.request(NAME, ref="main", recipe="int8", again=False, actor="alice")

    async def always() -> None:
        raise VersionConflict("moved")

    jobs.before_save.extend([always] * 20)

    with pytest.raises(Conflict, match="keeps changing"):
        await handlers.cancel(job.id, actor="alice")


async def test_unknown_job_is_not_found(handlers: Handlers) -> None:
    with pytest.raises(NotFound, match="'opt-none' does not exist"):
        await handlers.get("opt-none")
    with pytest.raises(NotFound, match="'opt-none' does not exist"):
        await handlers.cancel("opt-none", actor="alice")
