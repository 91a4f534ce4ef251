"""One method for each command and question: load, decide, save. Who may ask is decided before, in `access.py`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from modelworks.events import Lineage, UploadRefused
from modelworks.kit.clock import Clock
from modelworks.kit.errors import Conflict, InvalidInput, NotFound, Unavailable
from modelworks.registry.content import fault, head_bytes
from modelworks.registry.domain import (
    OMITTED,
    Creation,
    Damaged,
    Entry,
    Expected,
    Kind,
    Move,
    Operation,
    Put,
    Ref,
    RefKind,
    Repository,
    Request,
    check_operations,
    operate,
)
from modelworks.registry.metrics import Metrics
from modelworks.registry.moving import Mover
from modelworks.registry.names import check_path, check_repository, is_revision
from modelworks.registry.objects import Commit, File, Planted, canonical, plant
from modelworks.registry.ports import Announcer, Blobs, Find, Found, History, Repositories
from modelworks.registry.settings import RegistrySettings


@dataclass(frozen=True, slots=True)
class CommitCommand:
    """Operations on top of a branch's head."""

    branch: str
    message: str
    operations: Sequence[Operation]
    expected: Expected = OMITTED
    """The head the branch must have; None: the branch must not exist; OMITTED: whatever it has."""
    start: str | None = None
    """Ref or revision that a new branch begins at; without effect when the branch exists."""
    lineage: Lineage | None = None
    idempotency_key: str | None = None

    def request(self) -> Request | None:
        """What the idempotency key stands for. `expected` is no part of it: a sender that retries may have read again."""
        if self.idempotency_key is None:
            return None
        asked = {
            "message": self.message,
            "operations": [[o.path, o.sha256 if isinstance(o, Put) else None] for o in self.operations],
            "start": self.start,
            "lineage": None if self.lineage is None else self.lineage.model_dump(exclude_none=True),
        }
        digest = hashlib.sha256(canonical(asked)).hexdigest()
        return Request(branch=self.branch, key=self.idempotency_key, digest=digest)


@dataclass(frozen=True, slots=True)
class Committed:
    """The answer to a commit."""

    revision: str
    commit: Commit
    created: bool
    """False: nothing would have changed, or the idempotency key was answered before; `revision` existed already."""


@dataclass(frozen=True, slots=True)
class RevisionView:
    """A commit with its files."""

    revision: str
    commit: Commit
    files: Mapping[str, File]


@dataclass(frozen=True, slots=True)
class LogPage:
    """Commits along first parents, newest first."""

    commits: Sequence[tuple[str, Commit]]
    cursor: str | None
    """Commit id to go on at; None when the first commit was reached."""


class Handlers:
    """Commands and questions about repositories, refs and commits."""

    def __init__(
        self,
        *,
        repositories: Repositories,
        history: History,
        blobs: Blobs,
        announcer: Announcer,
        settings: RegistrySettings,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._repositories = repositories
        self._history = history
        self._blobs = blobs
        self._announcer = announcer
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._mover = Mover(repositories=repositories, history=history, blobs=blobs, settings=settings, metrics=metrics)

    async def create(self, name: str, *, kind: Kind, private: bool, description: str, actor: str) -> Repository:
        """Make a repository.

        Raises:
            InvalidInput: the name is not allowed.
            Conflict: the name is taken, in whatever case.
        """
        check_repository(name)
        wanted = Creation(
            repository=name, kind=kind, private=private, owner=actor, description=description,
            space=space_of(name, private=private),
        )  # fmt: skip
        async with self._mover.turn(name):
            if await self._repositories.spelled(name) is None:
                entry = Entry(sequence=0, time=self._now(), actor=actor, creation=wanted)
                made = await self._mover.create(entry) or await self._finish_creation(name, wanted)
                if made:
                    return (await self._mover.load(name)).repository
        raise Conflict(f"the name {name!r} is taken (case does not count): choose another", repository=name)

    async def _finish_creation(self, name: str, wanted: Creation) -> bool:
        """A creator wrote entry 0 and died, or is just now making the document: make it, and say if it is the same wish."""
        entry = await self._history.entry(name, 0)
        if entry is None or entry.creation is None:
            raise Damaged(f"the log of {name} begins without a creation: restore it")
        await self._mover.finish_creation(entry)
        return entry.creation == wanted

    async def get(self, name: str) -> Repository | None:
        """The repository, or None."""
        loaded = await self._repositories.get(name)
        return None if loaded is None else loaded.repository

    async def search(self, find: Find, *, reader: str | None) -> Found:
        """Repositories that are public or belong to `reader`; None: all."""
        limit = min(find.limit, self._settings.page_max)
        return await self._repositories.search(replace(find, limit=limit), reader=reader)

    async def commit(self, name: str, command: CommitCommand, *, actor: str) -> Committed:
        """Commit on a branch. A commit that changes nothing is not made: the answer is what is there.

        Raises:
            VersionConflict: the branch is not at `expected`.
            InvalidInput: a path, a blob or its content is refused; the text names it.
            Conflict: the idempotency key was used for something else.
            NotFound: no such repository, or `start` is no ref or revision.
            Unavailable: others moved the branch again and again.
        """
        # In a thread, as all work that grows with the number of files: other requests go on meanwhile.
        await asyncio.to_thread(check_operations, command.operations, operations_max=self._settings.operations_max)
        request = await asyncio.to_thread(command.request)
        checked: dict[Put, int] = {}
        async with self._mover.turn(name):
            for _ in range(self._settings.attempts_max):
                committed = await self._try_commit(name, command, request, actor, checked)
                if committed is not None:
                    return committed
        raise Unavailable(f"branch {command.branch!r} of {name} is being moved by too many writers: try again")

    async def _try_commit(
        self, name: str, command: CommitCommand, request: Request | None, actor: str, checked: dict[Put, int]
    ) -> Committed | None:
        """One attempt; None when another writer was first."""
        repository = (await self._mover.load(name)).repository
        served = repository.served_as(request) if request is not None else None
        if served is not None:
            return Committed(served, await self._commit_of(repository, served), created=False)
        head, base = repository.parent_of(command.branch, expected=command.expected, start=command.start)
        parent = None if base is None else await self._commit_of(repository, base)
        before = {} if parent is None else await self._history.files(name, parent.tree)
        await self._check_puts(repository, command.operations, before, checked, actor)
        sizes = {put.sha256: size for put, size in checked.items()}
        planted = await asyncio.to_thread(self._grow, before, command.operations, sizes)
        if base is not None and parent is not None and planted.root == parent.tree:
            move = Move(kind="branch", ref=command.branch, old=None, new=base, request=request)
            if head is None and not await self._advance(repository, move, actor):
                return None
            return Committed(base, parent, created=False)
        commit = Commit(
            tree=planted.root, parents=() if base is None else (base,), author=actor, created_at=self._now(),
            message=command.message, generation=1 if parent is None else parent.generation + 1, lineage=command.lineage,
        )  # fmt: skip
        await self._history.write(name, planted, commit, known=base)
        move = Move(kind="branch", ref=command.branch, old=head, new=commit.id, committed=True, request=request)
        if not await self._advance(repository, move, actor):
            return None
        return Committed(commit.id, commit, created=True)

    def _grow(self, before: Mapping[str, File], operations: Sequence[Operation], sizes: Mapping[str, int]) -> Planted:
        return plant(operate(before, operations, sizes=sizes, files_max=self._settings.files_max))

    async def _check_puts(
        self,
        repository: Repository,
        operations: Sequence[Operation],
        before: Mapping[str, File],
        checked: dict[Put, int],
        actor: str,
    ) -> None:
        """Learn the sizes of blobs that are put; refuse those that were not uploaded, or are not what their name says."""
        known = {file.sha256: file.size_bytes for file in before.values()}
        puts = [o for o in operations if isinstance(o, Put) and o not in checked]
        step = self._settings.blob_checks_at_once
        for batch in (puts[at : at + step] for at in range(0, len(puts), step)):
            sizes = await asyncio.gather(*(self._check_put(repository, put, known, actor) for put in batch))
            checked.update(zip(batch, sizes, strict=True))

    async def _check_put(self, repository: Repository, put: Put, known: Mapping[str, int], actor: str) -> int:
        size = known.get(put.sha256)
        if size is None:
            size = await self._blobs.size(repository.space, put.sha256)
        if size is None:
            raise InvalidInput(
                f"path {put.path!r}: no blob {put.sha256} was uploaded to {repository.name}; upload it first, with "
                f"PUT /api/v1/repositories/{repository.name}/blobs/{put.sha256}",
                path=put.path, sha256=put.sha256,
            )  # fmt: skip
        wanted = head_bytes(put.path) if repository.kind == "model" else 0
        if wanted:
            head = await self._head(repository, put.sha256, min(wanted, size))
            wrong = await asyncio.to_thread(fault, put.path, head, size)
            if wrong:
                await self._refuse_content(repository, put, size, actor)
                raise InvalidInput(f"path {put.path!r} is refused: {wrong}", path=put.path, sha256=put.sha256)
        return size

    async def _head(self, repository: Repository, sha256: str, length: int) -> bytes:
        if length == 0:
            return b""
        return b"".join([chunk async for chunk in self._blobs.read(repository.space, sha256, length=length)])

    async def _refuse_content(self, repository: Repository, put: Put, size: int, actor: str) -> None:
        self._metrics.uploads.labels("invalid-content").inc()
        event = UploadRefused(
            repository=repository.name, reason="invalid-content", expected_sha256=put.sha256,
            actual_sha256=put.sha256, size_bytes=size,
        )  # fmt: skip
        await self._announcer.upload_refused(event, actor=actor)

    async def set_ref(
        self, name: str, kind: RefKind, ref: str, target: str, *, expected: Expected, actor: str
    ) -> tuple[Ref, bool]:
        """Make or move a branch or tag to a ref or revision; says whether it was made.

        Raises:
            VersionConflict: it is not at `expected`.
            NotFound: no such repository, or the target is no ref or revision.
            InvalidInput, TooLarge: the name is not allowed, or there are too many.
        """
        async with self._mover.turn(name):
            for _ in range(self._settings.attempts_max):
                repository = (await self._mover.load(name)).repository
                old = repository.compare(kind, ref, expected)
                new = repository.resolve(target)
                await self._commit_of(repository, new)
                moved = Ref(kind=kind, name=ref, revision=new)
                if old == new or await self._advance(repository, Move(kind=kind, ref=ref, old=old, new=new), actor):
                    return moved, old is None
        raise Unavailable(f"{kind} {ref!r} of {name} is being moved by too many writers: try again")

    async def delete_ref(self, name: str, kind: RefKind, ref: str, *, expected: Expected, actor: str) -> None:
        """Delete a branch or tag; its commits stay.

        Raises:
            NotFound: no such repository or ref.
            VersionConflict: it is not at `expected`.
            Conflict: it is the default branch.
        """
        async with self._mover.turn(name):
            for _ in range(self._settings.attempts_max):
                repository = (await self._mover.load(name)).repository
                if repository.head(kind, ref) is None:
                    raise NotFound(f"{name} has no {kind} {ref[:200]!r}", repository=name, ref=ref[:200])
                old = repository.compare(kind, ref, expected)
                if await self._advance(repository, Move(kind=kind, ref=ref, old=old, new=None), actor):
                    return
        raise Unavailable(f"{kind} {ref!r} of {name} is being moved by too many writers: try again")

    async def revision(self, repository: Repository, ref: str) -> RevisionView:
        """What a ref or revision points to, with all its files.

        Raises:
            NotFound: no such ref or revision.
        """
        id = repository.resolve(ref)
        commit = await self._commit_of(repository, id)
        return RevisionView(id, commit, await self._history.files(repository.name, commit.tree))

    async def locate(self, repository: Repository, path: str, ref: str) -> tuple[str, File]:
        """The revision that a ref stands for, and the file at a path in it.

        Raises:
            NotFound: no such ref or revision, or no such file in it.
            InvalidInput: no file can have this path.
        """
        check_path(path)
        id = repository.resolve(ref)
        commit = await self._commit_of(repository, id)
        file = await self._history.file(repository.name, commit.tree, path)
        if file is None:
            raise NotFound(
                f"{repository.name}@{ref} has no file {path!r}", repository=repository.name, path=path, revision=id
            )
        return id, file

    async def log(self, repository: Repository, ref: str, *, limit: int, cursor: str | None) -> LogPage:
        """Commits from a ref (or from `cursor`, of the page before) backwards along first parents.

        Raises:
            NotFound: no such ref or revision.
            InvalidInput: the cursor is none of ours.
        """
        if cursor is not None and not is_revision(cursor):
            raise InvalidInput("the cursor is not one that a page of this log ended with: leave it out to begin again")
        id: str | None = cursor if cursor is not None else repository.resolve(ref)
        commits: list[tuple[str, Commit]] = []
        while id is not None and len(commits) < min(limit, self._settings.page_max):
            commit = await self._commit_of(repository, id)
            commits.append((id, commit))
            id = commit.parents[0] if commit.parents else None
        return LogPage(commits, id)

    async def _advance(self, repository: Repository, move: Move, actor: str) -> bool:
        entry = repository.next_entry(move, time=self._now(), actor=actor, refs_max=self._settings.refs_max)
        return await self._mover.advance(entry, repository.name)

    async def _commit_of(self, repository: Repository, revision: str) -> Commit:
        commit = await self._history.commit(repository.name, revision)
        if commit is None:
            raise NotFound(f"{repository.name} has no commit {revision}", repository=repository.name, ref=revision)
        return commit

    def _now(self) -> str:
        return rfc3339(self._clock())


def rfc3339(moment: datetime) -> str:
    """UTC with microseconds and `Z`, so that text order is time order."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def space_of(name: str, *, private: bool) -> str:
    """Where a new repository's blobs lie: public ones of a namespace share, a private one keeps to itself.

    Kept in the repository, so that it stays where it is if it is ever made public or private.
    """
    folded = name.lower()
    return f"private/{folded}" if private else f"shared/{folded.partition('/')[0]}"
