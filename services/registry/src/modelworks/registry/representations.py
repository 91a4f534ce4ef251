"""What travels over HTTP, as the OpenAPI document shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from modelworks.events import Lineage
from modelworks.registry.content import ScanState, scan_state
from modelworks.registry.domain import OMITTED, Delete, Expected, Kind, Operation, Put, RefKind, Repository
from modelworks.registry.handlers import CommitCommand, Committed, LogPage, RevisionView
from modelworks.registry.objects import Commit
from pydantic import BaseModel, ConfigDict, Field

RevisionId = Annotated[
    str,
    Field(pattern=r"^[0-9a-f]{40}$", description="Commit id.", examples=["5d9c68c6c50ed3d02a2fcf54f63993b6d2f4a1b0"]),
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="Lower-case hexadecimal SHA-256.")]
_EXPECTED = (
    "Where the ref must be now, else 412. null: it must not exist. Left out: wherever it is, the server tries again "
    "when others move it meanwhile."
)


class _Body(BaseModel):
    # A misspelled property is an error, not a wish that nobody hears.
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class NewRepository(_Body):
    """A repository to create."""

    name: str = Field(description="`namespace/name`; unique whatever the case.", examples=["acme/magika"])
    kind: Kind = "model"
    private: bool = Field(False, description="Only the owner, administrators and the suite's services may see it.")
    description: str = Field("", max_length=2000)


class PutOperation(_Body):
    """Make `path` hold an uploaded blob."""

    op: Literal["put"]
    path: str = Field(
        description="Relative, `/` between directories, at most 1000 bytes.", examples=["weights/model.onnx"]
    )
    sha256: Sha256


class DeleteOperation(_Body):
    """Remove the file at `path`."""

    op: Literal["delete"]
    path: str


class NewCommit(_Body):
    """Operations on top of a branch's head."""

    branch: str = Field("main", description="Made when it does not exist.")
    message: str = Field(min_length=1, max_length=2000)
    operations: list[Annotated[PutOperation | DeleteOperation, Field(discriminator="op")]]
    expected: RevisionId | None = Field(None, description=_EXPECTED)
    start: str | None = Field(None, description="Ref or commit id at which a new branch begins.")
    lineage: Lineage | None = Field(None, description="Where a derived revision comes from; kept in the commit.")
    idempotency_key: str | None = Field(
        None, min_length=1, max_length=200,
        description="The same key with the same content on the same branch is answered with the same commit.",
    )  # fmt: skip

    def command(self) -> CommitCommand:
        """As the handlers take it."""
        return CommitCommand(
            branch=self.branch, message=self.message, operations=[_operation(each) for each in self.operations],
            expected=_expected(self), start=self.start, lineage=self.lineage, idempotency_key=self.idempotency_key,
        )  # fmt: skip


class NewRef(_Body):
    """Where a branch or tag shall point."""

    revision: str = Field(description="Commit id, or a ref whose commit is taken.")
    expected: RevisionId | None = Field(None, description=_EXPECTED)

    def expectation(self) -> Expected:
        """As the handlers take it."""
        return _expected(self)


def _expected(body: NewCommit | NewRef) -> Expected:
    return body.expected if "expected" in body.model_fields_set else OMITTED


def _operation(each: PutOperation | DeleteOperation) -> Operation:
    return Put(each.path, each.sha256) if isinstance(each, PutOperation) else Delete(each.path)


class RepositoryView(_Answer):
    """A repository, with what its card says."""

    name: str
    kind: Kind
    private: bool
    owner: str = Field(description="Principal who created it.")
    description: str
    created_at: str
    updated_at: str = Field(description="When a ref was last moved.")
    default_branch: str
    head: str | None = Field(description="Commit id of the default branch; null before the first commit.")
    tags: list[str]
    library: str | None
    task: str | None
    license: str | None
    card_error: str | None = Field(description="Why the front matter of README.md could not be read.")


class RepositoryPage(_Answer):
    """A page of a search."""

    items: list[RepositoryView]
    total: int
    cursor: str | None = Field(description="For the next page; null on the last.")


class BlobView(_Answer):
    """A stored blob."""

    sha256: str
    size_bytes: int


class CommitView(_Answer):
    """A commit."""

    repository: str
    revision: RevisionId
    parents: list[str]
    branch: str | None = Field(None, description="Branch it was made on; absent in a log.")
    tree: str = Field(description="Id of its root tree: equal trees hold equal files.")
    message: str
    author: str
    created_at: str
    generation: int = Field(description="1 for a first commit, else one more than its parents' largest.")
    lineage: Lineage | None = None
    created: bool | None = Field(None, description="False: it existed before, nothing was changed. Absent in a log.")


class CommitPage(_Answer):
    """A page of a log, newest first, along first parents."""

    items: list[CommitView]
    cursor: str | None = Field(description="For the next page; null behind the first commit.")


class FileView(_Answer):
    """A file of a revision."""

    path: str
    size_bytes: int
    sha256: str
    scan_state: ScanState | None = Field(
        None, description="`unscanned`: the format may hold a pickle, which can run code when it is loaded."
    )


class RevisionDetail(_Answer):
    """A commit with all its files."""

    repository: str
    revision: RevisionId
    parents: list[str]
    message: str
    author: str
    created_at: str
    generation: int
    tree: list[FileView] = Field(description="All files, in path order.")
    lineage: Lineage | None = None


class RefView(_Answer):
    """A branch or tag."""

    kind: RefKind
    name: str
    revision: RevisionId


class Problem(_Answer):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What was wrong, and the way out.")
    code: str
    data: dict[str, Any] | None = None


def repository_view(repository: Repository) -> RepositoryView:
    """A repository as it is shown."""
    card = repository.card
    return RepositoryView(
        name=repository.name, kind=repository.kind, private=repository.private, owner=repository.owner,
        description=repository.description, created_at=repository.created_at, updated_at=repository.updated_at,
        default_branch=repository.default_branch, head=repository.head("branch", repository.default_branch),
        tags=list(card.tags), library=card.library, task=card.task, license=card.license, card_error=card.error,
    )  # fmt: skip


def _commit_view(repository: str, revision: str, commit: Commit, **more: Any) -> CommitView:
    return CommitView(
        repository=repository, revision=revision, parents=list(commit.parents), tree=commit.tree,
        message=commit.message, author=commit.author, created_at=commit.created_at, generation=commit.generation,
        lineage=commit.lineage, **more,
    )  # fmt: skip


def committed_view(repository: str, branch: str, committed: Committed) -> CommitView:
    """The answer to a commit."""
    return _commit_view(repository, committed.revision, committed.commit, branch=branch, created=committed.created)


def log_view(repository: str, page: LogPage) -> CommitPage:
    """A page of the log."""
    return CommitPage(items=[_commit_view(repository, id, commit) for id, commit in page.commits], cursor=page.cursor)


def revision_json(repository: str, view: RevisionView) -> str:
    """A `RevisionDetail`, written down."""
    commit = view.commit
    tree = [
        FileView(path=path, size_bytes=file.size_bytes, sha256=file.sha256, scan_state=scan_state(path))
        for path, file in view.files.items()
    ]
    detail = RevisionDetail(
        repository=repository, revision=view.revision, parents=list(commit.parents), message=commit.message,
        author=commit.author, created_at=commit.created_at, generation=commit.generation, tree=tree,
        lineage=commit.lineage,
    )  # fmt: skip
    return detail.model_dump_json(exclude_defaults=True)


ANY_ERROR: dict[int | str, dict[str, Any]] = {
    "default": {"model": Problem, "description": "Any error, as application/problem+json."}
}
"""For every route: what it has in common, and what puts `Problem` among the document's schemas."""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its OpenAPI description; 401, 403 and 503 can always come."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    texts = {
        400: "Something in the request is refused; the detail names it.", 401: "No valid token.",
        403: "The token's scope, or the caller's roles, do not allow this.",
        404: "There is none, or none that the caller may read.", 409: "The state of things does not allow this.",
        412: "The ref was moved meanwhile; the detail names both commits.", 413: "More than the limit in the detail.",
        416: "The range lies outside of the bytes there are.", 500: "The stored bytes are damaged.",
        503: "A store is down; try again.",
    }  # fmt: skip
    return {status: {"description": texts[status], "content": content} for status in (*statuses, 401, 403, 503)}
