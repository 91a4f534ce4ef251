"""What inference needs from outside."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from modelworks.events import PredictionCompleted
from modelworks.inference.domain import Artifact, Change, Deployment, Job, Payload

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class SourceRevision:
    """A revision in the registry."""

    model: str
    revision: str
    files: Mapping[str, tuple[str, int]]
    """Path to sha256 and size."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who may see a repository."""

    private: bool
    owner: str


class ModelSource(Protocol):
    """The registry. Every method raises Unavailable when it does not answer."""

    async def ownership(self, model: str) -> Ownership:
        """Whose repository it is.

        Raises:
            NotFound: no such repository.
        """

    async def resolve(self, model: str, ref: str) -> SourceRevision:
        """What a branch, tag or commit id points to now.

        Raises:
            NotFound: no such repository or ref.
        """

    async def read(self, model: str, revision: str, path: str, *, bytes_max: int) -> bytes:
        """A small file, verified.

        Raises:
            NotFound: no such path.
            TooLarge: it has more than `bytes_max` bytes.
        """

    async def download(self, model: str, revision: str, artifact: Artifact, into: Path) -> None:
        """Write a file to `into`: whole and with the artifact's digest, or not at all.

        Raises:
            NotFound: no such path.
            Unavailable: the bytes broke off or were damaged.
        """


class ModelCache(Protocol):
    """Model files of this node by digest."""

    async def fetch(self, model: str, revision: str, artifact: Artifact) -> Path:
        """A local file with exactly the artifact's bytes; downloaded when it is not there, or no longer sound.

        Raises:
            TooLarge: the artifact is larger than the cache may be.
            NotFound, Unavailable: as ModelSource.download.
        """


@dataclass(frozen=True, slots=True)
class Versioned(Generic[State]):
    """A state as it was read or saved."""

    state: State
    version: str | None
    """To be given back on saving; None: not stored yet."""


class Deployments(Protocol):
    """Deployments by model. Every method raises StoreUnavailable when the store does not answer."""

    async def get(self, model: str) -> Versioned[Deployment] | None:
        """The newest save, removed ones included."""

    async def save(self, change: Change[Deployment], *, expected: str | None, actor: str) -> Versioned[Deployment]:
        """Store the state and its events in one write; without events, and when nothing changed, that is one too.

        Raises:
            VersionConflict: somebody else saved since; read again and decide again.
        """

    async def all(self) -> Sequence[Deployment]:
        """Those not removed, by model. May lag a second behind saves."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of jobs."""

    jobs: Sequence[Job]
    total: int
    cursor: str | None


class Jobs(Protocol):
    """Jobs by id. Every method raises StoreUnavailable when the store does not answer."""

    async def get(self, id: str) -> Versioned[Job] | None:
        """The newest save, or None."""

    async def save(self, change: Change[Job], *, expected: str | None, actor: str) -> Versioned[Job]:
        """Store the state and its events in one write.

        Raises:
            VersionConflict: somebody else saved since.
        """

    async def find(
        self, *, owner: str | None, model: str | None, status: str | None, limit: int, cursor: str | None
    ) -> JobPage:
        """Newest first. May lag a second behind saves.

        Raises:
            InvalidInput: the cursor belongs to another query.
        """

    async def ended_before(self, moment: datetime, *, limit: int) -> Sequence[Versioned[Job]]:
        """Jobs that ended before, oldest first."""

    async def delete(self, job: Versioned[Job]) -> bool:
        """Forget a job; False, and nothing happens, when it was changed since or its events are still to be told."""


class Payloads(Protocol):
    """V2 bodies of jobs. Every method raises StoreUnavailable when the store does not answer."""

    async def put(self, job: str, name: str, body: bytes, header_bytes: int | None) -> Payload:
        """Store a body. The same name again replaces it."""

    async def describe(self, job: str, name: str, body: bytes, header_bytes: int | None) -> Payload:
        """What `put` would give, without storing anything."""

    async def read(self, payload: Payload) -> bytes:
        """The body, verified.

        Raises:
            NotFound: it was deleted.
            InvalidInput: the bytes no longer have their digest.
        """

    async def delete(self, payload: Payload) -> None:
        """Remove it; nothing happens when it is gone."""


class Cancellations(Protocol):
    """Tells the worker that runs a job that it was cancelled. A hint: what counts is the job's state."""

    async def announce(self, job: str) -> None:
        """The job was cancelled."""

    async def announced(self, job: str) -> bool:
        """Whether it was."""


class Presence(Protocol):
    """Which workers are alive."""

    async def beat(self, worker: str) -> None:
        """The worker is alive for a while."""

    async def leave(self, worker: str) -> None:
        """The worker stops."""

    async def alive(self, workers: Collection[str]) -> frozenset[str]:
        """Those of the given that are."""


class Completions(Protocol):
    """Tells of online predictions, off the hot path."""

    def record(self, event: PredictionCompleted) -> None:
        """Take the event over; it is published within moments, with the current trace.

        Raises:
            Unavailable: the bus has been away for so long that the bound is reached.
        """

    def check_room(self) -> None:
        """Raises Unavailable as `record`, before work is done that could not be told of."""
