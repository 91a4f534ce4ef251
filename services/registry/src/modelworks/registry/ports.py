"""What the registry needs from outside. Every method may raise StoreUnavailable (transient: the store did not answer)."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from modelworks.events import Event, UploadRefused
from modelworks.registry.domain import Entry, Kind, Repository
from modelworks.registry.objects import Commit, File, Planted

Order = Literal["relevance", "name", "-name", "created", "-created", "updated", "-updated"]


class Blobs(Protocol):
    """Bytes of files by sha256, kept apart by space: no answer tells of a blob in another space."""

    async def put(self, space: str, sha256: str, data: AsyncIterable[bytes]) -> int:
        """Store the whole blob, or nothing; returns its size. Storing it again writes it again, which heals damage.

        An error of `data` passes through, and nothing readable is left.

        Raises:
            InvalidInput: the bytes have another digest (`actual_sha256` and `size_bytes` in its data).
        """

    async def size(self, space: str, sha256: str) -> int | None:
        """The blob's size in bytes, or None when the space has no such blob."""

    def read(self, space: str, sha256: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The blob's bytes, or a range of them, in chunks of at most 1 MiB. Not verified.

        Raises (on the first chunk):
            NotFound: the space has no such blob.
        """


class History(Protocol):
    """Commits, trees and the log of each repository: immutable objects, checked against their ids when read."""

    async def write(self, repository: str, planted: Planted, commit: Commit, *, known: str | None) -> None:
        """Store the trees and the commit, durably, before returning. Writing them again changes nothing.

        Args:
            known: commit id whose trees are stored already; the same directories are not written again.
        """

    async def commit(self, repository: str, revision: str) -> Commit | None:
        """The commit, or None.

        Raises:
            Damaged: its bytes do not have its id.
        """

    async def files(self, repository: str, tree: str) -> Mapping[str, File]:
        """All files below a tree, by path, in path order.

        Raises:
            Damaged: a tree is missing, or its bytes do not have its id.
        """

    async def file(self, repository: str, tree: str, path: str) -> File | None:
        """The file at a path, or None; reads the directories on the way only.

        Raises:
            Damaged: as `files`.
        """

    async def append(self, repository: str, entry: Entry) -> None:
        """Write a log entry, which makes its move happen.

        Raises:
            VersionConflict: the log has an entry of this number.
        """

    async def entry(self, repository: str, sequence: int) -> Entry | None:
        """A log entry, or None. The first number without one is the end of the log."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A repository as it was read."""

    repository: Repository
    version: str
    """To be given back to `save`."""


@dataclass(frozen=True, slots=True)
class Find:
    """What repositories to find: all conditions hold."""

    text: str = ""
    kind: Kind | None = None
    namespace: str | None = None
    owner: str | None = None
    tags: tuple[str, ...] = ()
    library: str | None = None
    task: str | None = None
    license: str | None = None
    order: Order = "-updated"
    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A page of repositories."""

    repositories: Sequence[Repository]
    total: int
    cursor: str | None


class Repositories(Protocol):
    """The documents of repositories. Names that differ in case only are one name."""

    async def get(self, name: str) -> Loaded | None:
        """The repository of exactly this name, or None."""

    async def spelled(self, name: str) -> str | None:
        """The name, as its repository spells it, that is equal to this but for case; or None."""

    async def save(self, repository: Repository, events: Sequence[Event], *, expected: str | None, actor: str) -> None:
        """Store the state with its events in one atomic write, and publish the events.

        Args:
            expected: version that the state was made from; None to create it.

        Raises:
            VersionConflict: somebody else saved since (or created it); nothing was written.
            Unavailable: events of earlier saves pile up unpublished, and the document has no room for more.
        """

    async def search(self, find: Find, *, reader: str | None) -> Found:
        """Find repositories that are public or belong to `reader` (principal's id); None: all, private ones too.

        A save shows here within a second.

        Raises:
            InvalidInput: the cursor belongs to another search.
        """


class Announcer(Protocol):
    """Events that change no repository."""

    async def upload_refused(self, event: UploadRefused, *, actor: str) -> None:
        """Tell the audit of refused bytes. A bus that is down is logged, not raised: the refusal stands without it."""
