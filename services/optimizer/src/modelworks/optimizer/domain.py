"""A job: a wish for a variant, from acceptance to its end. Transitions return the new job and what to announce.

`fence` grows with every start. Whoever works under an older fence has been
replaced (its process was thought dead, or the bus gave the job to another) and
must not write any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Literal

from modelworks.events import Event, JobAccepted, JobCancelled, JobFailed, RevisionCommitted, VariantBuilt
from modelworks.events.values import Failure
from modelworks.kit.errors import Conflict
from pydantic import BaseModel, ConfigDict, field_serializer

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ENDED: frozenset[Status] = frozenset({"succeeded", "failed", "cancelled"})

RECOMMENDED_TAG = "recommended"

# Stages of a run and where each begins on the way from 0 to 1; a pass names the second one itself.
_DOWNLOAD_END, _PASS_END, _EVALUATE_END = 0.1, 0.25, 0.9


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Variant(_Frozen):
    """What was committed."""

    branch: str
    revision: str


class CommitPlan(_Frozen):
    """A commit decided upon, saved before it is made: after a crash the very same commit is asked for again.

    The report holds timings, so building it anew would give other bytes, and a second commit.
    """

    branch: str
    message: str
    puts: dict[str, str]
    deletes: tuple[str, ...]
    expected: str | None
    """The head that the branch has; None: it does not exist yet."""
    start: str | None
    """Where a new branch starts."""
    lineage: dict[str, str]
    idempotency_key: str
    made: dict[str, str]
    """Of `puts`, what the job itself made: the variant, its card and its report."""
    dropped: tuple[str, ...] = ()
    """Paths of the source that the variant does not need."""


class Outcome(_Frozen):
    """What the measuring found, kept with the plan so that a resumed job need not measure again."""

    verdict: Literal["promote", "keep"]
    size_ratio: float
    latency_ratio: float
    agreement: float
    report: dict[str, Any]


class Job(_Frozen):
    """The state of a job."""

    id: str
    repository: str
    revision: str
    ref: str
    """As asked for."""
    recipe: dict[str, Any]
    """`Recipe.state()`."""
    actor: str
    run: int = 1
    """Grows when an ended job is asked for again."""
    fence: int = 0
    crashes: int = 0
    """Starts of this run that ended without a word."""
    status: Status = "queued"
    stage: str | None = None
    progress: float = 0.0
    plan: CommitPlan | None = None
    outcome: Outcome | None = None
    variant: Variant | None = None
    error: Failure | None = None
    created_at: datetime
    updated_at: datetime

    @field_serializer("created_at", "updated_at")
    def _time(self, moment: datetime) -> str:
        # The document store orders times as text.
        return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    @property
    def ended(self) -> bool:
        """Nothing will happen to it any more by itself."""
        return self.status in ENDED

    @property
    def recipe_name(self) -> str:
        """As in events and in the branch's name."""
        return str(self.recipe["name"])

    @property
    def branch(self) -> str:
        """Where the variant goes."""
        return f"optimized/{self.recipe_name}"

    @property
    def idempotency_key(self) -> str:
        """Names this run's commit."""
        return f"{self.id}-{self.run}"


def job_id(repository: str, revision: str, recipe_digest: str) -> str:
    """The same wish has the same id, so that a redelivered event makes no second job."""
    text = f"{repository}\n{revision}\n{recipe_digest}"
    return "opt-" + hashlib.sha256(text.encode()).hexdigest()[:24]


def accept(
    *, id: str, repository: str, revision: str, ref: str, recipe: Mapping[str, Any], actor: str, now: datetime
) -> tuple[Job, list[Event]]:
    """A new job."""
    job = Job(
        id=id, repository=repository, revision=revision, ref=ref, recipe=dict(recipe), actor=actor, created_at=now,
        updated_at=now,
    )  # fmt: skip
    return job, [_accepted(job)]


def again(job: Job, *, actor: str, now: datetime) -> tuple[Job, list[Event]]:
    """An ended job, asked for once more.

    Raises:
        Conflict: it has not ended.
    """
    if not job.ended:
        raise Conflict(f"job {job.id} is {job.status}: wait for its end, or cancel it")
    fresh = job.model_copy(
        update={
            "run": job.run + 1, "crashes": 0, "status": "queued", "stage": None, "progress": 0.0, "plan": None,
            "outcome": None, "variant": None, "error": None, "actor": actor, "updated_at": now,
        }
    )  # fmt: skip
    return fresh, [_accepted(fresh)]


def start(job: Job, *, crashed: bool, now: datetime) -> Job:
    """Somebody begins to work on it. `crashed`: the start before this one ended without a word."""
    return job.model_copy(
        update={
            "status": "running", "fence": job.fence + 1, "crashes": job.crashes + crashed,
            "stage": "commit" if job.plan else "download", "progress": _EVALUATE_END if job.plan else 0.0,
            "updated_at": now,
        }
    )  # fmt: skip


def release(job: Job, *, now: datetime) -> Job:
    """Work stopped in order (shutdown, or the registry is away); the job waits for the next start."""
    return job.model_copy(update={"status": "queued", "stage": None, "updated_at": now})


def advance(job: Job, *, stage: str, share: float, now: datetime) -> Job:
    """Some way through a stage; progress never goes back."""
    begin, end = {
        "download": (0.0, _DOWNLOAD_END), "evaluate": (_PASS_END, _EVALUATE_END), "commit": (_EVALUATE_END, 1.0),
    }.get(stage, (_DOWNLOAD_END, _PASS_END))  # fmt: skip
    progress = max(job.progress, round(begin + (end - begin) * min(1.0, max(0.0, share)), 3))
    return job.model_copy(update={"stage": stage, "progress": progress, "updated_at": now})


def plan(job: Job, *, commit: CommitPlan, outcome: Outcome, now: datetime) -> Job:
    """The commit is decided: from here on only this one is made."""
    return advance(job.model_copy(update={"plan": commit, "outcome": outcome}), stage="commit", share=0.0, now=now)


def succeed(job: Job, *, revision: str, now: datetime) -> tuple[Job, list[Event]]:
    """The variant is committed and the tag is where it belongs."""
    assert job.outcome is not None
    done = job.model_copy(
        update={
            "status": "succeeded", "stage": None, "progress": 1.0, "updated_at": now,
            "variant": Variant(branch=job.branch, revision=revision),
        }
    )  # fmt: skip
    event = VariantBuilt(
        job=job.id, repository=job.repository, source_revision=job.revision, revision=revision, branch=job.branch,
        recipe=job.recipe_name, verdict=job.outcome.verdict, size_ratio=job.outcome.size_ratio,
        latency_ratio=job.outcome.latency_ratio, agreement=job.outcome.agreement,
    )  # fmt: skip
    return done, [event]


def fail(job: Job, *, code: str, message: str, now: datetime) -> tuple[Job, list[Event]]:
    """The job cannot be done."""
    error = Failure(code=code, message=message[:2000])
    failed = job.model_copy(update={"status": "failed", "stage": None, "error": error, "updated_at": now})
    return failed, [JobFailed(job=job.id, repository=job.repository, revision=job.revision, error=error)]


def cancel(job: Job, *, now: datetime) -> tuple[Job, list[Event]]:
    """Nobody wants it any more. Cancelling a cancelled job changes nothing.

    Raises:
        Conflict: it has succeeded or failed already.
    """
    if job.status == "cancelled":
        return job, []
    if job.ended:
        raise Conflict(f"job {job.id} has {job.status} already: there is nothing to cancel")
    cancelled = job.model_copy(update={"status": "cancelled", "stage": None, "updated_at": now})
    return cancelled, [JobCancelled(job=job.id, repository=job.repository, revision=job.revision)]


def is_wanted(event: RevisionCommitted, *, branches: Sequence[str], suffix: str = ".onnx") -> bool:
    """Whether a commit asks for a variant: a model file changed, on a branch that is watched, and by somebody else.

    Our own output is never optimised again, wherever it is committed.

    Args:
        suffix: how the paths of model files end.
    """
    if event.lineage is not None and event.lineage.kind == "optimized":
        return False
    if not any(fnmatchcase(event.branch, pattern) for pattern in branches):
        return False
    # Beyond the first 256 changes the event does not list them: then a model may be among them.
    listed = any(change.path.endswith(suffix) and change.change != "deleted" for change in event.changes)
    return listed or event.changes_total > len(event.changes)


def _accepted(job: Job) -> JobAccepted:
    return JobAccepted(job=job.id, repository=job.repository, revision=job.revision, recipe=job.recipe_name)
