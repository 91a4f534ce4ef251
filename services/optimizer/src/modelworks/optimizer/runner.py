"""Runs one job from start to end: download, pass, evaluate, commit, recommend. Safe to be killed anywhere.

Until the commit is planned nothing outside has changed, and the next start
begins anew. From the saved plan on, the next start makes exactly that commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelworks.kit.clock import Clock
from modelworks.kit.errors import ModelworksError, NotFound, TooLarge, Unavailable, VersionConflict
from modelworks.kit.logging import get_logger
from modelworks.optimizer import domain
from modelworks.optimizer.domain import RECOMMENDED_TAG, Job, Outcome
from modelworks.optimizer.keeper import Keeper, Superseded
from modelworks.optimizer.manifest import CARD_PATH, MANIFEST_PATH, Manifest, read_manifest
from modelworks.optimizer.measurement import Measurement
from modelworks.optimizer.order import Effort, Order
from modelworks.optimizer.passes import PASSES, Takes, WorkError
from modelworks.optimizer.ports import Jobs, ModelRepository, SourceFile, SourceRevision, StoredJob, Workshop
from modelworks.optimizer.recipe import Rules, merge_rules, parse_recipe
from modelworks.optimizer.report import as_json, as_markdown, as_svg, report_of
from modelworks.optimizer.variant import (
    REPORT_FOLDER,
    Pointed,
    beside,
    card,
    find_targets,
    is_made,
    plan_commit,
    recommended,
)
from modelworks.optimizer.verdict import judge

log = get_logger("optimizer")

_TEXT_BYTES_MAX = 1 << 20
_SAMPLE_BYTES_MAX = 16 << 20
_MOVES_MAX = 10


@dataclass(frozen=True)
class Limits:
    """How much a job may take."""

    effort: Effort
    download_bytes_max: int
    memory_bytes_max: int
    crashes_max: int
    progress_ms_min: int
    watch_ms: int


class Runner:
    """Runs jobs, several at once if asked to."""

    def __init__(
        self, jobs: Jobs, models: ModelRepository, workshop: Workshop, *, clock: Clock, limits: Limits
    ) -> None:
        self._jobs = jobs
        self._models = models
        self._workshop = workshop
        self._clock = clock
        self._limits = limits
        self._stopping = False
        self._running: dict[asyncio.Task[None], str] = {}
        # Starts that this process ended in order although the store could not be told; they were no crashes.
        self._left: dict[str, int] = {}

    @property
    def running(self) -> Sequence[str]:
        """Ids of the jobs under way in this process."""
        return tuple(self._running.values())

    async def run(self, id: str, *, last_chance: bool = False) -> str | None:
        """Run a job that waits; returns its status at the end, or None when there was nothing to do.

        Args:
            last_chance: nobody will call again: a transient failure fails the job.

        Raises:
            Unavailable: the registry or a store is away, or this process stops; the job waits for another call.
        """
        if self._stopping:
            raise Unavailable("the optimizer is stopping: the job goes on after the next start")
        keeper = await self._take(id)
        if keeper is None:
            return None
        if self._stopping:
            await self._release(keeper)
            raise Unavailable("the optimizer is stopping: the job goes on after the next start")
        work = asyncio.create_task(self._guarded(keeper, last_chance), name=f"optimize {id}")
        follow = asyncio.create_task(keeper.follow(), name=f"follow {id}")
        self._running[work] = id
        try:
            await asyncio.wait({work, follow}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                follow.result()
            if work.cancelled():
                await self._release(keeper)
                raise Unavailable("the optimizer is stopping: the job goes on after the next start")
            work.result()
        except Superseded:
            log.info("job.let-go", job=id)
            return None
        finally:
            del self._running[work]
            for task in (work, follow):
                task.cancel()
            await asyncio.gather(work, follow, return_exceptions=True)
        return keeper.job.status

    async def stop(self) -> None:
        """End the work under way; its jobs wait for the next start. New calls of `run` are refused."""
        self._stopping = True
        for task in self._running:
            task.cancel()

    async def _take(self, id: str) -> Keeper | None:
        """Start the job under a new fence; None when it has ended, or was never saved."""
        for _ in range(_MOVES_MAX):
            stored = await self._jobs.get(id)
            if stored is None:
                log.warning("job.unknown", job=id)
                return None
            if stored.job.ended:
                return None
            crashed = stored.job.status == "running" and self._left.get(id) != stored.job.fence
            started = domain.start(stored.job, crashed=crashed, now=self._clock())
            try:
                saved = await self._jobs.save(started, (), expected=stored.version, actor=started.actor)
            except VersionConflict:
                continue
            log.info("job.started", job=id, fence=started.fence, resumed=started.plan is not None)
            return self._keeper(saved)
        raise Unavailable(f"job {id} could not be started: it keeps changing")

    def _keeper(self, stored: StoredJob) -> Keeper:
        limits = self._limits
        return Keeper(
            self._jobs, stored, clock=self._clock, progress_ms_min=limits.progress_ms_min, watch_ms=limits.watch_ms
        )

    async def _guarded(self, keeper: Keeper, last_chance: bool) -> None:
        """The work, with every way it can fail turned into an end of the job or into another try."""
        try:
            if keeper.job.crashes >= self._limits.crashes_max:
                raise WorkError(
                    "gave-up",
                    f"{keeper.job.crashes} starts of this job ended without a word: the service was killed while it ran",
                )
            await self._perform(keeper)
        except WorkError as error:
            await self._fail(keeper, error.code, error.message)
        except ModelworksError as error:
            if error.transient and not last_chance:
                await self._release(keeper)
                raise
            await self._fail(keeper, error.code, error.message)
        except Superseded:
            raise
        except Exception as error:
            log.exception("job.crashed", job=keeper.job.id)
            await self._fail(keeper, "internal", f"a fault of the optimizer: {type(error).__name__}; it is in its log")

    async def _fail(self, keeper: Keeper, code: str, message: str) -> None:
        log.warning("job.failed", job=keeper.job.id, code=code, error=message)
        await keeper.save(lambda job: domain.fail(job, code=code, message=message, now=self._clock()))

    async def _release(self, keeper: Keeper) -> None:
        self._left[keeper.job.id] = keeper.job.fence
        try:
            await keeper.save(lambda job: domain.release(job, now=self._clock()))
        except (Superseded, Unavailable) as error:
            log.warning("job.not-released", job=keeper.job.id, error=str(error))

    async def _perform(self, keeper: Keeper) -> None:
        source = await self._models.revision(keeper.job.repository, keeper.job.revision)
        if keeper.job.plan is None:
            async with self._workshop.folder(keeper.job) as folder:
                await self._build(keeper, source, folder)
        else:
            await self._workshop.clear(keeper.job)
        revision = await self._commit(keeper, source)
        await self._recommend(keeper.job, source, revision)
        await keeper.save(lambda job: domain.succeed(job, revision=revision, now=self._clock()))
        outcome = keeper.job.outcome
        assert outcome is not None
        log.info(
            "variant.built", job=keeper.job.id, repository=keeper.job.repository, revision=revision,
            verdict=outcome.verdict, size_ratio=outcome.size_ratio, latency_ratio=outcome.latency_ratio,
            agreement=outcome.agreement,
        )  # fmt: skip

    async def _build(self, keeper: Keeper, source: SourceRevision, folder: Path) -> None:
        """Make and measure the variant, store its files, and save the plan of its commit."""
        job = keeper.job
        recipe = parse_recipe(job.recipe)
        takes = PASSES[recipe.pass_name].takes
        targets = find_targets(recipe, source, takes)
        variants = [takes.variant_path(target) for target in targets]
        texts = await self._read_texts(job, source, folder)
        manifest = read_manifest(texts)
        rules = merge_rules(manifest.optimization.rules, recipe.rules)
        order = await self._download(keeper, source, targets, takes, manifest, rules, folder)
        order = order.model_copy(update={"pass_name": recipe.pass_name, "options": recipe.options})
        measurement = await self._workshop.work(order, keeper.tick)
        keeper.tick("commit", 0.0)
        verdict = judge(measurement, rules, recipe=recipe.name)
        report = report_of(job, measurement, verdict, rules)
        files: dict[str, Path | bytes] = {
            **{path: folder / "variant" / path for path in (*variants, *_beside_variant(measurement))},
            f"{REPORT_FOLDER}report.json": as_json(report),
            f"{REPORT_FOLDER}report.md": as_markdown(job, measurement, verdict),
            f"{REPORT_FOLDER}report.svg": as_svg(measurement),
            CARD_PATH: card(
                texts.get(CARD_PATH), job, targets=variants, summary=verdict.summary, verdict=verdict.verdict
            ).encode(),
        }
        made = {path: await self._models.upload(job.repository, data) for path, data in files.items()}
        head = await self._models.head(job.repository, job.branch)
        message = f"optimize: {recipe.name} of {job.revision[:12]} ({verdict.verdict}: {verdict.summary})"
        commit = plan_commit(
            job,
            source,
            head,
            made=made,
            dropped=_dropped(measurement, targets, variants, source),
            message=message[:500],
        )
        outcome = Outcome(
            verdict=verdict.verdict, size_ratio=report["size_ratio"], latency_ratio=report["latency_ratio"],
            agreement=report["agreement"], report=report,
        )  # fmt: skip
        await keeper.save(lambda job: domain.plan(job, commit=commit, outcome=outcome, now=self._clock()))

    async def _read_texts(self, job: Job, source: SourceRevision, folder: Path) -> dict[str, str]:
        """The card and the manifest, where the revision has them."""
        texts: dict[str, str] = {}
        for path in (MANIFEST_PATH, CARD_PATH):
            file = source.file(path)
            if file is None:
                continue
            if file.size_bytes > _TEXT_BYTES_MAX:
                raise TooLarge(f"{path} has {file.size_bytes} bytes, at most {_TEXT_BYTES_MAX} are read")
            into = folder / path
            await self._models.download(job.repository, file, source.revision, into)
            texts[path] = (await asyncio.to_thread(into.read_bytes)).decode("utf-8", "replace")
        return texts

    async def _download(
        self,
        keeper: Keeper,
        source: SourceRevision,
        targets: Sequence[str],
        takes: Takes,
        manifest: Manifest,
        rules: Rules,
        folder: Path,
    ) -> Order:
        """Fetch what the worker needs into `source/`."""
        evaluation, effort = manifest.evaluation, self._limits.effort
        arrays = [file for file in source.files if _is_array(file.path, evaluation.arrays)]
        missing = set(evaluation.arrays) - {file.path for file in arrays}
        if missing:
            raise NotFound(
                f"{sorted(missing)[0]!r}, named under evaluation.arrays, is not in revision {source.revision}"
            )
        models = [file for file in source.files if file.path in targets] + beside(targets, source, takes)
        taken = {file.path for file in (*models, *arrays)}
        samples = [
            file
            for file in source.files
            if evaluation.inputs and file.path not in taken and file.size_bytes <= _SAMPLE_BYTES_MAX
        ][: effort.samples_max]
        wanted: list[SourceFile] = [*models, *arrays, *samples]
        total = sum(file.size_bytes for file in wanted)
        if total > self._limits.download_bytes_max:
            raise TooLarge(
                f"the job needs {total} bytes of revision {source.revision}, at most "
                f"{self._limits.download_bytes_max} are downloaded: raise OPTIMIZER_DOWNLOAD_BYTES_MAX"
            )
        done = 0
        for file in wanted:
            into = folder / "source" / file.path
            if not into.resolve().is_relative_to((folder / "source").resolve()):
                raise WorkError("invalid-input", f"path {file.path!r} leads out of the working folder")
            await asyncio.to_thread(into.parent.mkdir, parents=True, exist_ok=True)
            await self._models.download(keeper.job.repository, file, source.revision, into)
            done += file.size_bytes
            keeper.tick("download", done / max(1, total))
        return Order(
            folder=str(folder), targets=tuple(targets), pass_name="", options={}, rules=rules,
            arrays=tuple(file.path for file in arrays), files=tuple(file.path for file in samples),
            inputs=evaluation.inputs, outputs=evaluation.outputs, effort=effort,
            memory_bytes_max=self._limits.memory_bytes_max,
        )  # fmt: skip

    async def _commit(self, keeper: Keeper, source: SourceRevision) -> str:
        """Make the planned commit, or find that an earlier start made it; a moved branch gets a new plan."""
        for _ in range(_MOVES_MAX):
            job = keeper.job
            assert job.plan is not None
            head = await self._models.head(job.repository, job.branch)
            if head is not None and is_made(job.plan, head):
                return head.revision
            try:
                return await self._models.commit(job.repository, job.plan)
            except VersionConflict:
                head = await self._models.head(job.repository, job.branch)
                old = job.plan
                fresh = plan_commit(job, source, head, made=old.made, dropped=old.dropped, message=old.message)
                await keeper.save(lambda job, fresh=fresh: job.model_copy(update={"plan": fresh}))  # type: ignore[misc]
        raise Unavailable(f"branch {keeper.job.branch} of {keeper.job.repository} keeps moving")

    async def _recommend(self, job: Job, source: SourceRevision, variant: str) -> None:
        """Let the recommended tag point where the verdict says; somebody else's move is looked at again."""
        assert job.outcome is not None
        for _ in range(_MOVES_MAX):
            tagged = await self._models.tag(job.repository, RECOMMENDED_TAG)
            current = await self._pointed(job.repository, tagged) if tagged else None
            wanted = recommended(job, source, variant, verdict=job.outcome.verdict, current=current)
            if wanted is None:
                return
            try:
                await self._models.set_tag(job.repository, RECOMMENDED_TAG, wanted, expected=tagged)
            except VersionConflict:
                continue
            return
        raise Unavailable(f"tag {RECOMMENDED_TAG} of {job.repository} keeps moving")

    async def _pointed(self, repository: str, revision: str) -> Pointed:
        target = await self._models.revision(repository, revision)
        lineage = target.lineage or {}
        if lineage.get("kind") != "optimized" or lineage.get("source_repository") != repository:
            return Pointed(revision, revision, target.created_at, None)
        origin = await self._models.revision(repository, lineage["source_revision"])
        return Pointed(revision, origin.revision, origin.created_at, lineage.get("recipe"))


def _is_array(path: str, named: Sequence[str]) -> bool:
    if named:
        return path in named
    return path.startswith("evaluation/") and path.endswith(".npz")


def _beside_variant(measurement: Measurement) -> list[str]:
    return [path for target in measurement.targets for path in target.beside_variant]


def _dropped(
    measurement: Measurement, targets: Sequence[str], variants: Sequence[str], source: SourceRevision
) -> set[str]:
    """What the variants stand in for, and files with the originals' large tensors if no other model may need them."""
    replaced = set(targets) - set(variants)
    if any(file.path.endswith(".onnx") and file.path not in targets for file in source.files):
        return replaced
    return replaced | {path for target in measurement.targets for path in target.beside_original}
