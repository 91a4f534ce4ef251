"""What the optimizer needs from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from modelworks.events import Event
from modelworks.optimizer.domain import CommitPlan, Job
from modelworks.optimizer.measurement import Measurement
from modelworks.optimizer.order import Order


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a revision."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SourceRevision:
    """A commit with its tree."""

    revision: str
    created_at: str
    """RFC 3339 in UTC."""
    files: Sequence[SourceFile]
    lineage: Mapping[str, Any] | None

    def file(self, path: str) -> SourceFile | None:
        """The file at `path`, or None."""
        return next((file for file in self.files if file.path == path), None)


@dataclass(frozen=True, slots=True)
class RepositoryFacts:
    """What the policy asks of a repository."""

    name: str
    owner: str | None
    private: bool


class ModelRepository(Protocol):
    """The registry. Every method raises Unavailable when it does not answer, and NotFound for an unknown repository."""

    async def facts(self, repository: str) -> RepositoryFacts:
        """Whose it is."""

    async def revision(self, repository: str, ref: str) -> SourceRevision:
        """What a branch, tag or commit id points to.

        Raises:
            NotFound: no such ref.
        """

    async def download(self, repository: str, file: SourceFile, revision: str, into: Path) -> None:
        """Write a file to `into`, verified against its sha256; its folder exists."""

    async def upload(self, repository: str, data: Path | bytes) -> str:
        """Store bytes; returns their sha256. Storing them again changes nothing."""

    async def commit(self, repository: str, plan: CommitPlan) -> str:
        """Make the commit, or find it by its idempotency key; returns its revision.

        Raises:
            VersionConflict: the branch's head is not `plan.expected`, and no commit has the key.
        """

    async def tag(self, repository: str, name: str) -> str | None:
        """Where a tag points, or None."""

    async def set_tag(self, repository: str, name: str, revision: str, *, expected: str | None) -> None:
        """Move or create a tag.

        Raises:
            VersionConflict: it does not point to `expected` (None: it exists).
        """

    async def head(self, repository: str, branch: str) -> SourceRevision | None:
        """The branch's newest commit, or None when there is no such branch."""

    async def check(self) -> None:
        """Readiness: the registry answers."""

    async def close(self) -> None:
        """Let go of connections."""


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job as it was read or saved."""

    job: Job
    version: str


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs, newest first."""

    jobs: Sequence[Job]
    total: int
    cursor: str | None


class Jobs(Protocol):
    """Jobs, each saved together with the events that announce the change."""

    async def get(self, id: str) -> StoredJob | None:
        """The job, or None."""

    async def save(self, job: Job, events: Sequence[Event], *, expected: str | None, actor: str) -> StoredJob:
        """Store the job and its events in one write.

        Raises:
            VersionConflict: somebody saved since `expected` was read (None: it exists already).
            StoreUnavailable: the store did not answer.
        """

    async def find(self, *, repository: str | None, status: str | None, limit: int, cursor: str | None) -> JobPage:
        """Jobs by repository and status, newest first.

        Raises:
            InvalidInput: the limit or the cursor is not acceptable.
        """


Tick = Callable[[str, float], None]
"""Told a stage and how much of it is done, 0 to 1; never blocks."""


class Workshop(Protocol):
    """Where strangers' models are handled: outside this process, within limits."""

    async def work(self, order: Order, tick: Tick) -> Measurement:
        """Do an order; the variants lie in the order's folder then. Cancelling the call ends the work at once.

        Raises:
            WorkError: it cannot be done (`memory-limit`, `time-limit`, `worker-crashed`, or the worker's own code).
        """

    async def clear(self, job: Job) -> None:
        """Remove the folders that killed runs of the job left."""

    def folder(self, job: Job) -> AbstractAsyncContextManager[Path]:
        """An empty folder for a run of a job; what killed runs left is removed first, and this at the end."""
