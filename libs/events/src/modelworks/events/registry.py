"""What the registry announces. Key of all: the repository."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from modelworks.events.event import Event, StrictValue
from modelworks.events.values import Identifier, RefName, RepositoryName, Revision, Sha256
from pydantic import Field


class FileChange(StrictValue):
    """One path that a commit added, replaced or deleted."""

    path: Annotated[str, Field(min_length=1, max_length=1000)]
    change: Literal["added", "modified", "deleted"]
    sha256: Sha256 | None = None
    """Absent for a deleted path."""
    size_bytes: Annotated[int, Field(ge=0)] | None = None
    """Absent for a deleted path."""


class Lineage(StrictValue):
    """Where a derived revision comes from."""

    kind: Literal["optimized", "merged", "fine-tuned", "imported"]
    source_repository: RepositoryName
    source_revision: Revision
    recipe: Annotated[str, Field(max_length=200)] | None = None
    job: Identifier | None = None


class RepositoryCreated(Event):
    topic: ClassVar[str] = "registry.repository-created.v1"
    key_field: ClassVar[str] = "repository"

    repository: RepositoryName
    kind: Literal["model", "dataset"]
    private: bool


class RevisionCommitted(Event):
    topic: ClassVar[str] = "registry.revision-committed.v1"
    key_field: ClassVar[str] = "repository"

    repository: RepositoryName
    revision: Revision
    branch: RefName
    parents: list[Revision]
    """None for the first commit, one for an ordinary commit, two or more for a merge."""
    message: Annotated[str, Field(max_length=2000)]
    changes: Annotated[list[FileChange], Field(max_length=256)]
    """The first 256 changed paths in path order; `changes_total` counts all of them."""
    changes_total: Annotated[int, Field(ge=0)]
    lineage: Lineage | None = None


class RefMoved(Event):
    topic: ClassVar[str] = "registry.ref-moved.v1"
    key_field: ClassVar[str] = "repository"

    repository: RepositoryName
    kind: Literal["branch", "tag"]
    ref: RefName
    old: Revision | None = None
    """Absent when the ref was created."""
    new: Revision | None = None
    """Absent when the ref was deleted."""


class UploadRefused(Event):
    topic: ClassVar[str] = "registry.upload-refused.v1"
    key_field: ClassVar[str] = "repository"

    repository: RepositoryName
    reason: Literal["digest-mismatch", "truncated", "too-large", "invalid-content"]
    expected_sha256: Sha256
    actual_sha256: Sha256 | None = None
    """Absent when the body ended or was cut before a digest could be taken."""
    size_bytes: Annotated[int, Field(ge=0)]
    """Bytes received."""
