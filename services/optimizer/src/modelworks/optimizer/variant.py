"""What is committed beside a variant, and which commit that makes: pure functions of trees and measurements."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from modelworks.kit.errors import InvalidInput
from modelworks.optimizer.domain import CommitPlan, Job
from modelworks.optimizer.passes import Takes
from modelworks.optimizer.ports import SourceFile, SourceRevision
from modelworks.optimizer.recipe import Recipe

REPORT_FOLDER = "optimization/"


def find_targets(recipe: Recipe, source: SourceRevision, takes: Takes) -> tuple[str, ...]:
    """The files to optimise.

    Raises:
        InvalidInput: a named file is not in the revision, or it holds no file at all that the pass takes.
    """
    paths = [file.path for file in source.files]
    if recipe.targets:
        missing = [path for path in recipe.targets if path not in paths]
        if missing:
            raise InvalidInput(f"recipe target {missing[0]!r} is not in revision {source.revision}")
        return recipe.targets
    if takes.favourite in paths:
        return (takes.favourite,)
    found = tuple(path for path in paths if path.endswith(takes.suffix))
    if not found:
        unread = [path for path in paths if takes.refused and path.endswith(takes.refused)]
        why = f"{unread[0]} is not read, {takes.refused_because}" if unread else "there is nothing to optimise"
        raise InvalidInput(f"revision {source.revision} holds no {takes.suffix} file: {why}")
    if len(found) > 8:
        raise InvalidInput(
            f"revision {source.revision} holds {len(found)} {takes.suffix} files: name up to 8 in the recipe's targets"
        )
    return found


def beside(targets: Collection[str], source: SourceRevision, takes: Takes) -> list[SourceFile]:
    """Files that belong to the targets, by the names that exporters give, or as the pass names them."""
    folders = {PurePosixPath(target).parent for target in targets}
    return [
        file
        for file in source.files
        if file.path not in targets
        and (
            (PurePosixPath(file.path).parent in folders and _is_beside(file.path, targets, takes))
            or (
                PurePosixPath(file.path).name in takes.below_names
                and not folders.isdisjoint(PurePosixPath(file.path).parents)
            )
        )
    ]


def _is_beside(path: str, targets: Collection[str], takes: Takes) -> bool:
    if not takes.beside_suffixes:
        return False
    return path.endswith(takes.beside_suffixes) or any(path.startswith(f"{target}.") for target in targets)


def plan_commit(
    job: Job,
    source: SourceRevision,
    head: SourceRevision | None,
    *,
    made: Mapping[str, str],
    dropped: Collection[str],
    message: str,
) -> CommitPlan:
    """The commit that makes the variant's branch hold the source's files with the variant in their midst.

    Args:
        head: the branch's newest commit; None starts the branch at the source.
        made: path to sha256 of what the job made.
        dropped: paths of the source that the variant does not need.
    """
    wanted = {
        file.path: file.sha256
        for file in source.files
        if not file.path.startswith(REPORT_FOLDER) and file.path not in dropped
    } | dict(made)
    base = {file.path: file.sha256 for file in (head or source).files}
    return CommitPlan(
        branch=job.branch,
        message=message,
        puts={path: sha256 for path, sha256 in sorted(wanted.items()) if base.get(path) != sha256},
        deletes=tuple(sorted(base.keys() - wanted.keys())),
        expected=head.revision if head else None,
        start=None if head else source.revision,
        lineage={
            "kind": "optimized",
            "source_repository": job.repository,
            "source_revision": job.revision,
            "recipe": job.recipe_name,
            "job": job.id,
        },
        idempotency_key=job.idempotency_key,
        made=dict(made),
        dropped=tuple(sorted(dropped)),
    )


def is_made(plan: CommitPlan, head: SourceRevision | None) -> bool:
    """Whether the branch's newest commit is the planned one."""
    if head is None or (head.lineage or {}).get("job") != plan.lineage["job"]:
        return False
    held = {file.path: file.sha256 for file in head.files}
    return all(held.get(path) == sha256 for path, sha256 in plan.made.items())


@dataclass(frozen=True, slots=True)
class Pointed:
    """What the recommended tag points to."""

    revision: str
    source_revision: str
    """Of a variant, what it was made from; otherwise the revision itself."""
    source_created_at: str
    recipe: str | None
    """Of a variant."""


def recommended(
    job: Job, source: SourceRevision, variant: str, *, verdict: Literal["promote", "keep"], current: Pointed | None
) -> str | None:
    """Where the recommended tag belongs after this job; None leaves it where it is.

    A newer source revision, or a variant of the same source that another recipe was promoted with, is not displaced
    by a job that ends `keep` or late.
    """
    wanted = variant if verdict == "promote" else source.revision
    if current is None:
        return wanted
    if current.revision == wanted or current.source_created_at > source.created_at:
        return None
    if (
        verdict == "keep"
        and current.source_revision == source.revision
        and current.recipe not in (None, job.recipe_name)
    ):
        return None
    return wanted


def card(original: str | None, job: Job, *, targets: Sequence[str], summary: str, verdict: str) -> str:
    """The variant's card: the original's, with a note at its end."""
    name = job.repository.split("/")[-1]
    text = original if original is not None else f"# {name}\n"
    return (
        text.rstrip()
        + f"\n\n## Variant `{job.recipe_name}`\n\nOn this branch {', '.join(f'`{path}`' for path in targets)} "
        f"{'is' if len(targets) == 1 else 'are'} the `{job.recipe_name}` variant of revision `{job.revision}`: {summary}. "
        f"Verdict: **{verdict}**. Measurements: [{REPORT_FOLDER}report.md]({REPORT_FOLDER}report.md).\n"
    )
