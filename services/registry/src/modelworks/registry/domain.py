"""A repository: its refs, and the numbered moves that make it what it is.

The one idea: a repository's truth is its log, one entry a move, numbered
without gaps and written once in the object store. Whoever writes entry n+1 has
moved the ref; the document that readers see is what the entries, applied in
order, come to. `Repository.applied` is that step, so the writer of a move, a
writer who finds another's move unfinished, and a rebuild after the loss of all
documents reach the same state and announce the same events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from modelworks.events import Event, FileChange, RefMoved, RepositoryCreated, RevisionCommitted
from modelworks.kit.errors import Conflict, InvalidInput, ModelworksError, NotFound, TooLarge, VersionConflict
from modelworks.registry.names import check_path, check_ref, check_twins, is_revision
from modelworks.registry.objects import Changes, Commit, File
from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["model", "dataset"]
RefKind = Literal["branch", "tag"]
DEFAULT_BRANCH = "main"


class Damaged(ModelworksError):
    """Stored bytes are missing or do not have their digest: nothing the caller did."""

    code = "damaged"
    status = 500


class Omitted:
    """The type of OMITTED."""


OMITTED = Omitted()
"""For `expected`: do not compare. None means that the ref must not exist."""

Expected = str | Omitted | None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Card(_Frozen):
    """What is kept of the README.md of the default branch, for search."""

    sha256: str = ""
    """Of the README.md it was read from; empty when there is none."""
    text: str = ""
    """Prose behind the front matter, at most 64 Ki characters, for full-text search."""
    tags: tuple[str, ...] = ()
    library: str | None = None
    task: str | None = None
    license: str | None = None
    error: str | None = None
    """Why the front matter could not be read; its fields are then unset."""


class Ref(_Frozen):
    """A branch or tag and the commit it points to."""

    kind: RefKind
    name: str
    revision: str


class Request(_Frozen):
    """A commit that its sender may send again: same branch and key, same digest, same answer."""

    branch: str
    key: str
    digest: str
    """sha256 of what was asked for."""


class Served(_Frozen):
    """A request that was carried out."""

    request: Request
    revision: str


class Creation(_Frozen):
    """What entry 0 says."""

    repository: str
    kind: Kind
    private: bool
    owner: str
    description: str
    space: str
    """Where its blobs lie. Repositories of one space share blobs, and only they can find out that a blob exists."""


class Move(_Frozen):
    """What a later entry says: a ref was made (`old` is None), moved, or deleted (`new` is None)."""

    kind: RefKind
    ref: str
    old: str | None = None
    new: str | None = None
    committed: bool = False
    """`new` is a commit made for this move, on top of `old` (or of its own parent, when the branch is new)."""
    request: Request | None = None


class Entry(_Frozen):
    """One entry of a repository's log."""

    sequence: int = Field(ge=0)
    """0 for the creation."""
    time: str
    """RFC 3339, UTC, microseconds."""
    actor: str
    creation: Creation | None = None
    move: Move | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the objects say of an entry's new revision."""

    commit: Commit | None = None
    changes: Changes = field(default_factory=Changes)
    card: Card | None = None
    """The card of the default branch's new head; None: it stays as it is."""


class Repository(_Frozen):
    """The state after `sequence` entries."""

    name: str
    kind: Kind
    private: bool
    owner: str
    description: str
    space: str
    created_at: str
    updated_at: str
    sequence: int
    default_branch: str = DEFAULT_BRANCH
    refs: tuple[Ref, ...] = ()
    """By kind and name."""
    served: tuple[Served, ...] = ()
    """The newest, oldest first."""
    card: Card = Card()

    @classmethod
    def created(cls, entry: Entry) -> tuple[Repository, Sequence[Event]]:
        """The repository of an entry 0."""
        creation = entry.creation
        assert creation is not None, "entry 0 is a creation"
        repository = cls(
            name=creation.repository, kind=creation.kind, private=creation.private, owner=creation.owner,
            description=creation.description, space=creation.space, created_at=entry.time, updated_at=entry.time,
            sequence=0,
        )  # fmt: skip
        return repository, [
            RepositoryCreated(repository=creation.repository, kind=creation.kind, private=creation.private)
        ]

    def applied(self, entry: Entry, facts: Facts, *, served_max: int) -> tuple[Repository, Sequence[Event]]:
        """The state after the next entry, and what it announces: a commit announces itself and its branch's move."""
        move = entry.move
        assert move is not None, "entries behind 0 are moves"
        assert entry.sequence == self.sequence + 1, "entries are applied in order"
        refs = [ref for ref in self.refs if (ref.kind, ref.name) != (move.kind, move.ref)]
        if move.new is not None:
            refs.append(Ref(kind=move.kind, name=move.ref, revision=move.new))
        served = self.served
        if move.request is not None and move.new is not None:
            served = (*served, Served(request=move.request, revision=move.new))[-served_max:]
        state = self.model_copy(
            update={
                "refs": tuple(sorted(refs, key=lambda ref: (ref.kind, ref.name))),
                "served": served,
                "sequence": entry.sequence,
                "updated_at": entry.time,
                "card": facts.card if facts.card is not None else self.card,
            }
        )
        return state, self._events(move, facts)

    def _events(self, move: Move, facts: Facts) -> Sequence[Event]:
        moved = RefMoved(repository=self.name, kind=move.kind, ref=move.ref, old=move.old, new=move.new)
        if not move.committed or move.new is None or facts.commit is None:
            return [moved]
        committed = RevisionCommitted(
            repository=self.name, revision=move.new, branch=move.ref, parents=list(facts.commit.parents),
            message=facts.commit.message, changes=list[FileChange](facts.changes.first),
            changes_total=facts.changes.total, lineage=facts.commit.lineage,
        )  # fmt: skip
        return [committed, moved]

    def head(self, kind: RefKind, name: str) -> str | None:
        """Where a branch or tag points, or None when there is none."""
        return next((ref.revision for ref in self.refs if (ref.kind, ref.name) == (kind, name)), None)

    def resolve(self, text: str) -> str:
        """The commit id that a branch, a tag, a full name (`refs/heads/..`, `refs/tags/..`) or a commit id stands for.

        A branch comes before a tag of the same name. That a commit id exists is not checked here.

        Raises:
            NotFound: no such ref.
        """
        if is_revision(text):
            return text
        places: list[tuple[RefKind, str]] = [("branch", text), ("tag", text)]
        if text.startswith("refs/heads/"):
            places = [("branch", text.removeprefix("refs/heads/"))]
        elif text.startswith("refs/tags/"):
            places = [("tag", text.removeprefix("refs/tags/"))]
        for kind, name in places:
            revision = self.head(kind, name)
            if revision is not None:
                return revision
        known = ", ".join(ref.name for ref in self.refs[:5]) or "none yet"
        raise NotFound(
            f"{self.name} has no branch, tag or commit {text[:200]!r}; its refs are: {known}",
            repository=self.name,
            ref=text[:200],
        )

    def compare(self, kind: RefKind, name: str, expected: Expected) -> str | None:
        """The ref's commit (None when it does not exist), if that is what the caller expects.

        Raises:
            VersionConflict: it is not; names both.
        """
        actual = self.head(kind, name)
        if isinstance(expected, Omitted) or expected == actual:
            return actual
        raise VersionConflict(
            f"{kind} {name!r} of {self.name} is at {actual or 'no commit'}, not at {expected or 'no commit'}: "
            "read it again, bring your change on top of it, and retry",
            repository=self.name, ref=name, expected=expected, actual=actual,
        )  # fmt: skip

    def served_as(self, request: Request) -> str | None:
        """The revision that this request was answered with before, or None.

        Raises:
            Conflict: the key was used on this branch for something else.
        """
        for served in reversed(self.served):
            if (served.request.branch, served.request.key) == (request.branch, request.key):
                if served.request.digest == request.digest:
                    return served.revision
                raise Conflict(
                    f"idempotency_key {request.key!r} was used on branch {request.branch!r} for another commit, "
                    f"{served.revision}: choose a new key",
                    repository=self.name, revision=served.revision,
                )  # fmt: skip
        return None

    def next_entry(self, move: Move, *, time: str, actor: str, refs_max: int) -> Entry:
        """The entry that makes the move.

        Raises:
            InvalidInput: the ref's name is not allowed.
            TooLarge: there are too many refs.
            Conflict: the default branch would be deleted.
        """
        if move.old is None and move.new is not None:
            check_ref(move.ref)
            if len(self.refs) >= refs_max:
                raise TooLarge(
                    f"{self.name} has {len(self.refs)} branches and tags, at most {refs_max} are allowed: delete some "
                    "first (REGISTRY_REFS_MAX)",
                    repository=self.name, limit=refs_max,
                )  # fmt: skip
        if move.new is None and (move.kind, move.ref) == ("branch", self.default_branch):
            raise Conflict(f"branch {move.ref!r} is the default branch of {self.name} and cannot be deleted")
        return Entry(sequence=self.sequence + 1, time=time, actor=actor, move=move)

    def parent_of(self, branch: str, *, expected: Expected, start: str | None) -> tuple[str | None, str | None]:
        """For a commit on `branch`: its head (None: the branch is new) and the revision to build on (None: on nothing).

        Raises:
            VersionConflict: the head is not the expected one.
            NotFound: `start` is no ref.
            InvalidInput: the branch does not exist, and nothing says that it should be made.
        """
        head = self.compare("branch", branch, expected)
        if head is not None:
            return head, head
        check_ref(branch)
        if start is not None:
            return None, self.resolve(start)
        if self.refs and isinstance(expected, Omitted):
            raise InvalidInput(
                f"{self.name} has no branch {branch!r}: give `start` to begin it at a ref or revision, or "
                "`expected`: null to begin it empty",
                repository=self.name, ref=branch,
            )  # fmt: skip
        return None, None


@dataclass(frozen=True, slots=True)
class Put:
    """Make `path` hold the blob."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the file at `path`."""

    path: str


Operation = Put | Delete


def check_operations(operations: Sequence[Operation], *, operations_max: int) -> None:
    """Refuse operations that no tree could take.

    Raises:
        InvalidInput: there is none, a path is not allowed, or is named twice.
        TooLarge: there are too many.
    """
    if not operations:
        raise InvalidInput("a commit needs at least one operation: put or delete a path")
    if len(operations) > operations_max:
        raise TooLarge(
            f"{len(operations)} operations, at most {operations_max} are allowed in a commit: divide it",
            limit=operations_max,
        )
    seen: set[str] = set()
    for operation in operations:
        check_path(operation.path)
        if operation.path in seen:
            raise InvalidInput(f"path {operation.path!r} is named by two operations: send one", path=operation.path)
        seen.add(operation.path)


def operate(
    base: Mapping[str, File], operations: Sequence[Operation], *, sizes: Mapping[str, int], files_max: int
) -> Mapping[str, File]:
    """The files after the operations.

    Args:
        sizes: bytes of each blob that is put.

    Raises:
        InvalidInput: a path to delete does not exist, or paths clash.
        TooLarge: there would be too many files.
    """
    files = dict(base)
    for operation in operations:
        if isinstance(operation, Put):
            files[operation.path] = File(operation.sha256, sizes[operation.sha256])
        elif files.pop(operation.path, None) is None:
            raise InvalidInput(_absent(operation.path, base), path=operation.path)
    if len(files) > files_max:
        raise TooLarge(f"the revision would have {len(files)} files, at most {files_max} are allowed", limit=files_max)
    check_twins(files)
    return files


def _absent(path: str, base: Mapping[str, Any]) -> str:
    inside = next((other for other in base if other.startswith(path + "/")), None)
    if inside is not None:
        return f"path {path!r} is a directory: delete its files, for example {inside!r}"
    return f"path {path!r} cannot be deleted: the branch has no such file"
