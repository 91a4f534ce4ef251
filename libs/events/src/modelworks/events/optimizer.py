"""What the optimizer announces. Key of all: the repository, so that they order with its commits."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from modelworks.events.event import Event
from modelworks.events.values import Failure, Identifier, RefName, RepositoryName, Revision
from pydantic import Field

RecipeName = Annotated[str, Field(min_length=1, max_length=200)]


class JobAccepted(Event):
    topic: ClassVar[str] = "optimizer.job-accepted.v1"
    key_field: ClassVar[str] = "repository"

    job: Identifier
    repository: RepositoryName
    revision: Revision
    recipe: RecipeName


class VariantBuilt(Event):
    topic: ClassVar[str] = "optimizer.variant-built.v1"
    key_field: ClassVar[str] = "repository"

    job: Identifier
    repository: RepositoryName
    source_revision: Revision
    revision: Revision
    """The commit that holds the variant and its report."""
    branch: RefName
    recipe: RecipeName
    verdict: Literal["promote", "keep"]
    """`keep`: the original stays recommended; the variant is kept on its branch all the same."""
    size_ratio: Annotated[float, Field(gt=0)]
    """Original bytes over variant bytes: above 1, the variant is smaller."""
    latency_ratio: Annotated[float, Field(gt=0)]
    """Variant p50 over original p50, paired: below 1, the variant is faster."""
    agreement: Annotated[float, Field(ge=0, le=1)]
    """Share of evaluation inputs on which variant and original agree."""


class JobFailed(Event):
    topic: ClassVar[str] = "optimizer.job-failed.v1"
    key_field: ClassVar[str] = "repository"

    job: Identifier
    repository: RepositoryName
    revision: Revision
    error: Failure


class JobCancelled(Event):
    topic: ClassVar[str] = "optimizer.job-cancelled.v1"
    key_field: ClassVar[str] = "repository"

    job: Identifier
    repository: RepositoryName
    revision: Revision
