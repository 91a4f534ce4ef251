"""One run of a job against the registry's port: commits, plans, conflicts, tags, and each way of failing."""

from __future__ import annotations

import asyncio
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelworks.kit.errors import StoreUnavailable, Unavailable, VersionConflict
from modelworks.optimizer import domain
from modelworks.optimizer.adapters.jobs_outbox import SCHEMA, OutboxJobs
from modelworks.optimizer.domain import Job
from modelworks.optimizer.order import Effort
from modelworks.optimizer.passes import WorkError
from modelworks.optimizer.recipe import parse_recipe
from modelworks.optimizer.runner import Limits, Runner
from modelworks.stores.outbox import Outbox
from modelworks.stores.stores import Stores

NAME = "vision/magic"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def jobs(stores: Stores) -> OutboxJobs:
    outbox = Outbox(documents=stores.documents, bus=stores.bus, schema=SCHEMA, source="/services/optimizer")
    await outbox.ensure()
    return OutboxJobs(outbox, stores.documents)


class Bench:
    """A runner with its jobs and registry."""

    def __init__(self, jobs: OutboxJobs, registry: Any, fake_workshop: Any) -> None:
        self.jobs = jobs
        self.registry = registry
        self._fake_workshop = fake_workshop

    def runner(self, answer: Any, *, download_bytes_max: int = 1 << 30) -> Runner:
        limits = Limits(
            effort=Effort(), download_bytes_max=download_bytes_max, memory_bytes_max=1 << 30, crashes_max=3,
            progress_ms_min=1, watch_ms=10,
        )  # fmt: skip
        self.workshop = self._fake_workshop(answer)
        return Runner(self.jobs, self.registry, self.workshop, clock=lambda: NOW, limits=limits)

    async def accept(self, revision: str, *, recipe: Any = "int8", id: str = "opt-1") -> str:
        job, events = domain.accept(
            id=id,
            repository=NAME,
            revision=revision,
            ref="main",
            recipe=parse_recipe(recipe).state(),
            actor="alice",
            now=NOW,
        )
        await self.jobs.save(job, events, expected=None, actor="alice")
        return id

    async def job(self, id: str = "opt-1") -> Job:
        stored = await self.jobs.get(id)
        assert stored is not None
        return stored.job

    def variants(self) -> list[Any]:
        return self.registry.commits(NAME, "optimized/int8")  # type: ignore[no-any-return]


@pytest.fixture
def bench(jobs: OutboxJobs, registry: Any, fake_workshop: Any) -> Bench:
    return Bench(jobs, registry, fake_workshop)


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(1))
    return buffer.getvalue()


class TestOutcome:
    async def test_promoted_variant_becomes_the_recommended_one(self, bench: Bench, measured: Any) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model", "config.json": b"{}"})

        status = await bench.runner(measured()).run(await bench.accept(revision))

        [commit] = bench.variants()
        assert status == "succeeded"
        assert bench.registry.read(NAME, commit["revision"], "model.onnx") == b"variant of model"
        assert bench.registry.read(NAME, commit["revision"], "config.json") == b"{}"
        assert "promote" in commit["message"]
        assert bench.registry.ref(NAME, "tag", "recommended") == commit["revision"]

    async def test_variant_of_another_kind_stands_in_for_its_source_and_can_be_optimised_further(
        self, bench: Bench, measured: Any
    ) -> None:
        """The tag goes with the verdicts: to the export, then to int8 made of it; the export's own source stays behind."""
        files = {"model.safetensors": b"weights", "config.json": b"{}", "tokenizer.json": b"{}", "README.md": b"# Card"}
        revision = bench.registry.push(NAME, files)

        await bench.runner(measured(size=1.0, cosine=1.0)).run(await bench.accept(revision, recipe="onnx"))
        [exported] = bench.registry.commits(NAME, "optimized/onnx")
        tagged = bench.registry.ref(NAME, "tag", "recommended")
        await bench.runner(measured()).run(await bench.accept(exported["revision"], id="opt-2"))

        [quantized] = bench.variants()
        assert sorted(path for path in exported["tree"] if not path.startswith("optimization/")) == [
            "README.md", "config.json", "model.onnx", "tokenizer.json",
        ]  # fmt: skip
        assert bench.registry.read(NAME, exported["revision"], "model.onnx") == b"variant of weights"
        assert tagged == exported["revision"]
        assert quantized["lineage"]["source_revision"] == exported["revision"]
        assert bench.registry.read(NAME, quantized["revision"], "model.onnx") == b"variant of variant of weights"
        assert bench.registry.ref(NAME, "tag", "recommended") == quantized["revision"]

    async def test_worse_variant_is_committed_all_the_same_and_the_original_recommended(
        self, bench: Bench, measured: Any
    ) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model"})

        await bench.runner(measured(latency=3.0)).run(await bench.accept(revision))

        job = await bench.job()
        assert job.outcome is not None
        assert (job.status, job.outcome.verdict) == ("succeeded", "keep")
        assert len(bench.variants()) == 1
        assert bench.registry.ref(NAME, "tag", "recommended") == revision

    async def test_next_revision_goes_on_the_same_branch_with_its_own_files(self, bench: Bench, measured: Any) -> None:
        first = bench.registry.push(NAME, {"model.onnx": b"one", "old.txt": b"o"})
        await bench.runner(measured()).run(await bench.accept(first))
        second = bench.registry.push(NAME, {"model.onnx": b"two", "new.txt": b"n"})

        await bench.runner(measured()).run(await bench.accept(second, id="opt-2"))

        [_, commit] = bench.variants()
        assert set(commit["tree"]) == {
            "model.onnx", "new.txt", "README.md", "optimization/report.json", "optimization/report.md",
            "optimization/report.svg",
        }  # fmt: skip
        assert bench.registry.ref(NAME, "tag", "recommended") == commit["revision"]

    async def test_late_job_of_an_older_revision_does_not_take_the_tag_back(self, bench: Bench, measured: Any) -> None:
        old = bench.registry.push(NAME, {"model.onnx": b"one"})
        new = bench.registry.push(NAME, {"model.onnx": b"two"})
        await bench.runner(measured()).run(await bench.accept(new, id="opt-2"))
        tagged = bench.registry.ref(NAME, "tag", "recommended")

        await bench.runner(measured(latency=3.0)).run(await bench.accept(old))

        assert bench.registry.ref(NAME, "tag", "recommended") == tagged

    async def test_rules_of_the_repository_hold_unless_the_request_says_otherwise(
        self, bench: Bench, measured: Any
    ) -> None:
        rules = b"optimization: {rules: {max_latency_ratio: 5, min_size_ratio: 10}}\n"
        revision = bench.registry.push(NAME, {"model.onnx": b"model", "modelworks.yaml": rules})
        lenient = {"name": "int8", "pass": "int8", "rules": {"min_size_ratio": 1}}

        await bench.runner(measured(latency=3.0)).run(await bench.accept(revision))
        await bench.runner(measured(latency=3.0)).run(await bench.accept(revision, id="opt-2", recipe=lenient))

        [kept, promoted] = [(await bench.job(id)).outcome for id in ("opt-1", "opt-2")]
        assert kept is not None
        assert promoted is not None
        assert (kept.verdict, promoted.verdict) == ("keep", "promote")
        assert promoted.report["rules"]["max_latency_ratio"] == 5

    async def test_worker_gets_what_the_manifest_declares(self, bench: Bench, measured: Any) -> None:
        manifest = b"evaluation:\n  inputs: {x: {kind: file-bytes, first: 8}}\n  outputs: {y: classes}\n  arrays: [more/a.npz]\n"
        revision = bench.registry.push(NAME, {
            "model.onnx": b"m", "model.onnx.data": b"d", "modelworks.yaml": manifest, "more/a.npz": npz(),
            "evaluation/other.npz": npz(), "notes.txt": b"n",
        })  # fmt: skip

        await bench.runner(measured()).run(await bench.accept(revision))

        [order] = bench.workshop.orders
        assert order.arrays == ("more/a.npz",)
        assert set(order.files) == {"modelworks.yaml", "evaluation/other.npz", "notes.txt"}
        assert order.outputs == {"y": "classes"}
        assert order.inputs["x"].first == 8
        folder = Path(order.folder) / "source"
        assert (folder / "model.onnx.data").read_bytes() == b"d"

    async def test_progress_is_saved_while_the_worker_works(self, bench: Bench, measured: Any, eventually: Any) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model"})
        go = asyncio.Event()

        async def half(order: Any, tick: Any) -> Any:
            tick("evaluate", 0.5)
            await go.wait()
            return measured()

        run = asyncio.create_task(bench.runner(half).run(await bench.accept(revision)))

        async def seen() -> bool:
            job = await bench.job()
            return job.stage == "evaluate" and 0.5 < job.progress < 0.9

        await eventually(seen)
        go.set()
        assert await run == "succeeded"
        assert (await bench.job()).progress == 1.0


class TestRaces:
    async def test_branch_that_moved_gets_a_new_plan(self, bench: Bench, measured: Any) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model"})
        commit = bench.registry.commit

        async def raced(repository: str, plan: Any) -> str:
            bench.registry.commit = commit
            bench.registry.push(NAME, {"model.onnx": b"someone else's", "extra.txt": b"e"}, branch="optimized/int8")
            return await commit(repository, plan)  # type: ignore[no-any-return]

        bench.registry.commit = raced
        await bench.runner(measured()).run(await bench.accept(revision))

        [_, own] = bench.variants()
        assert (await bench.job()).status == "succeeded"
        assert "extra.txt" not in own["tree"]

    async def test_tag_that_moved_is_looked_at_again(self, bench: Bench, measured: Any) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model"})
        set_tag, raced = bench.registry.set_tag, []

        async def slow(repository: str, name: str, target: str, *, expected: str | None) -> None:
            if not raced:
                raced.append(True)
                bench.registry.move(NAME, "tag", "recommended", revision)
            await set_tag(repository, name, target, expected=expected)

        bench.registry.set_tag = slow
        await bench.runner(measured()).run(await bench.accept(revision))

        assert bench.registry.ref(NAME, "tag", "recommended") == bench.variants()[0]["revision"]

    async def test_cancelled_job_ends_its_work_and_commits_nothing(
        self, bench: Bench, measured: Any, eventually: Any
    ) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model"})
        began, ended = asyncio.Event(), asyncio.Event()

        async def hang(order: Any, tick: Any) -> Any:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        run = asyncio.create_task(bench.runner(hang).run(await bench.accept(revision)))
        await began.wait()
        stored = await bench.jobs.get("opt-1")
        assert stored is not None
        cancelled, events = domain.cancel(stored.job, now=NOW)
        await bench.jobs.save(cancelled, events, expected=stored.version, actor="bob")

        assert await asyncio.wait_for(run, 10) is None
        assert ended.is_set()
        assert (await bench.job()).status == "cancelled"
        assert bench.variants() == []

    async def test_older_start_gives_way_to_a_newer_one(self, bench: Bench, measured: Any) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model"})
        id = await bench.accept(revision)
        began = asyncio.Event()

        async def hang(order: Any, tick: Any) -> Any:
            began.set()
            await asyncio.Event().wait()

        older = asyncio.create_task(bench.runner(hang).run(id))
        await began.wait()
        newer = await bench.runner(measured()).run(id)

        assert newer == "succeeded"
        assert await asyncio.wait_for(older, 10) is None
        assert len(bench.variants()) == 1

    async def test_ended_or_unknown_job_is_not_run(self, bench: Bench, measured: Any) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model"})
        runner = bench.runner(measured())
        await runner.run(await bench.accept(revision))

        assert await runner.run("opt-1") is None
        assert await runner.run("opt-unknown") is None
        assert len(bench.workshop.orders) == 1


class TestFailure:
    @pytest.mark.parametrize(
        ("files", "recipe", "code", "said"),
        [
            ({"a.txt": b""}, "int8", "invalid-input", "holds no .onnx file"),
            (
                {"model.onnx": b"", "modelworks.yaml": b"optimization: {rules: {x: 1}}"},
                "int8",
                "invalid-input",
                "rules.x",
            ),
            ({"model.onnx": b"", "README.md": b"---\nmodelworks: [\n---\n"}, "int8", "invalid-input", "README.md"),
            (
                {"model.onnx": b"", "modelworks.yaml": b"evaluation: {arrays: [no.npz]}"},
                "int8",
                "not-found",
                "'no.npz'",
            ),
            ({"model.onnx": b""}, {"name": "x", "pass": "int8", "targets": ["b.onnx"]}, "invalid-input", "'b.onnx'"),
            ({"model.onnx": b"", "README.md": b"x" * (2 << 20)}, "int8", "too-large", "README.md has 2097152 bytes"),
            ({"model.onnx": bytes(4096)}, "int8", "too-large", "4096 bytes of revision"),
        ],
    )
    async def test_wish_that_cannot_be_fulfilled_fails_with_its_reason(
        self, bench: Bench, measured: Any, files: Any, recipe: Any, code: str, said: str
    ) -> None:
        revision = bench.registry.push(NAME, files)

        status = await bench.runner(measured(), download_bytes_max=4000).run(
            await bench.accept(revision, recipe=recipe)
        )

        job = await bench.job()
        assert status == "failed"
        assert job.error is not None
        assert job.error.code == code
        assert said in job.error.message
        assert bench.registry.ref(NAME, "tag", "recommended") is None

    async def test_workers_refusal_is_the_jobs_error(self, bench: Bench) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model"})

        await bench.runner(WorkError("not-onnx", "model.onnx is not a valid ONNX model")).run(
            await bench.accept(revision)
        )

        error = (await bench.job()).error
        assert error is not None
        assert (error.code, error.message) == ("not-onnx", "model.onnx is not a valid ONNX model")

    async def test_fault_of_our_own_fails_the_job_instead_of_hanging_it(self, bench: Bench) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model"})

        await bench.runner(KeyError("oops")).run(await bench.accept(revision))

        error = (await bench.job()).error
        assert error is not None
        assert error.code == "internal"

    async def test_registry_that_is_away_leaves_the_job_waiting(self, bench: Bench, measured: Any) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model"})
        runner = bench.runner(measured())
        id = await bench.accept(revision)
        bench.registry.away = True

        for _ in range(5):
            with pytest.raises(Unavailable):
                await runner.run(id)
        waiting = await bench.job()
        bench.registry.away = False

        assert (waiting.status, waiting.crashes) == ("queued", 0)
        assert await runner.run(id) == "succeeded"

    async def test_registry_that_stays_away_fails_the_job_at_the_last_chance(self, bench: Bench, measured: Any) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model"})
        id = await bench.accept(revision)
        bench.registry.away = True

        status = await bench.runner(measured()).run(id, last_chance=True)

        error = (await bench.job()).error
        assert status == "failed"
        assert error is not None
        assert error.code == "unavailable"

    async def test_store_that_goes_away_in_the_middle_is_no_crash(
        self, bench: Bench, measured: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model"})
        id = await bench.accept(revision)

        async def away(*_: Any, **__: Any) -> Any:
            raise StoreUnavailable("documents do not answer")

        async def lose_the_store(order: Any, tick: Any) -> Any:
            monkeypatch.setattr(bench.jobs, "save", away)
            return measured()

        runner = bench.runner(lose_the_store)
        for _ in range(4):
            with pytest.raises(Unavailable):
                await runner.run(id)
            monkeypatch.undo()

        bench.workshop.answer = measured()
        assert await runner.run(id) == "succeeded"
        assert (await bench.job()).crashes == 0

    async def test_job_that_keeps_killing_the_service_is_given_up(self, bench: Bench, measured: Any) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model"})
        id = await bench.accept(revision)
        for fence in range(1, 4):
            stored = await bench.jobs.get(id)
            assert stored is not None
            died = domain.start(stored.job, crashed=fence > 1, now=NOW)
            await bench.jobs.save(died, (), expected=stored.version, actor="alice")

        assert await bench.runner(measured()).run(id) == "failed"
        error = (await bench.job()).error
        assert error is not None
        assert error.code == "gave-up"

    async def test_branch_that_never_stands_still_lets_the_job_wait(self, bench: Bench, measured: Any) -> None:
        revision = bench.registry.push(NAME, {"model.onnx": b"model"})

        async def never(*_: Any) -> str:
            raise VersionConflict("moved")

        bench.registry.commit = never

        with pytest.raises(Unavailable, match="keeps moving"):
            await bench.runner(measured()).run(await bench.accept(revision))
        assert (await bench.job()).status == "queued"
