"""Events in, jobs run, events out: on the embedded column, with the registry's port in a folder."""

from __future__ import annotations

import asyncio
import io
import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from modelworks.events import Envelope, Event, FileChange, Lineage, OptimizationRequested, RevisionCommitted
from modelworks.kit.errors import Unavailable
from modelworks.optimizer.adapters.jobs_outbox import SCHEMA, OutboxJobs
from modelworks.optimizer.domain import job_id
from modelworks.optimizer.recipe import parse_recipe
from modelworks.stores.outbox import Outbox, envelope_of, message_of
from modelworks.stores.stores import Stores

NAME = "vision/magic"


def committed(
    revision: str, *, path: str = "model.onnx", branch: str = "main", lineage: Lineage | None = None
) -> Event:
    return RevisionCommitted(
        repository=NAME, revision=revision, branch=branch, parents=[], message="first", changes_total=1,
        changes=[FileChange(path=path, change="added", sha256="a" * 64, size_bytes=10)], lineage=lineage,
    )  # fmt: skip


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


async def send(stores: Stores, event: Event, *, id: str = "e1", source: str = "/services/registry") -> None:
    envelope = Envelope(event=event, id=id, source=source, time=datetime.now(UTC), actor="alice")
    await stores.bus.publish([message_of(envelope)])


@pytest.fixture
def jobs(stores: Stores) -> OutboxJobs:
    outbox = Outbox(documents=stores.documents, bus=stores.bus, schema=SCHEMA, source="/services/optimizer")
    return OutboxJobs(outbox, stores.documents)


async def ended(jobs: OutboxJobs, id: str, eventually: Any) -> Any:
    async def look() -> Any:
        stored = await jobs.get(id)
        return stored.job if stored and stored.job.ended else None

    return await eventually(look, within=60)


def id_of(revision: str) -> str:
    return job_id(NAME, revision, parse_recipe("int8").digest)


async def collect(stores: Stores, topics: list[str], into: list[Event]) -> None:
    async for delivery in stores.bus.tail(topics):
        into.append(envelope_of(delivery.message).event)  # noqa: PERF401 - the tail never ends


async def test_commit_of_a_model_becomes_a_measured_variant_on_a_branch(
    compose: Any, stores: Stores, registry: Any, models: Any, jobs: OutboxJobs, eventually: Any
) -> None:
    x = np.random.default_rng(1).standard_normal((40, 64)).astype(np.float32)
    revision = registry.push(
        NAME, {"model.onnx": models.classifier(), "README.md": b"# Magic\n", "evaluation/inputs.npz": npz(x=x)}
    )
    seen: list[Event] = []

    async with compose():
        tail = asyncio.create_task(collect(stores, ["optimizer.variant-built.v1"], seen))
        await asyncio.sleep(0)
        await send(stores, committed(revision))
        job = await ended(jobs, id_of(revision), eventually)
        await eventually(lambda: seen)
        tail.cancel()

    assert job.status == "succeeded", job.error
    [commit] = registry.commits(NAME, "optimized/int8")
    assert commit["revision"] == job.variant.revision
    assert commit["lineage"] == {
        "kind": "optimized", "source_repository": NAME, "source_revision": revision, "recipe": "int8", "job": job.id,
    }  # fmt: skip
    assert set(commit["tree"]) == {
        "model.onnx", "README.md", "evaluation/inputs.npz", "optimization/report.json", "optimization/report.md",
        "optimization/report.svg",
    }  # fmt: skip
    report = json.loads(registry.read(NAME, commit["revision"], "optimization/report.json"))
    assert report == json.loads(json.dumps(job.outcome.report))
    assert report["size_ratio"] > 2
    assert report["targets"][0]["inputs"] == {
        "source": "repository", "samples": 40, "description": "evaluation/inputs.npz",
    }  # fmt: skip
    assert len(registry.read(NAME, commit["revision"], "model.onnx")) == report["targets"][0]["size"]["variant_bytes"]
    [built] = seen
    assert built.revision == commit["revision"]
    assert built.verdict == job.outcome.verdict
    wanted = commit["revision"] if built.verdict == "promote" else revision
    assert registry.ref(NAME, "tag", "recommended") == wanted


async def test_redelivered_commit_makes_no_second_job_and_no_second_commit(
    compose: Any, stores: Stores, registry: Any, fake_workshop: Any, measured: Any, jobs: OutboxJobs, eventually: Any
) -> None:
    revision = registry.push(NAME, {"model.onnx": b"model"})
    workshop = fake_workshop(measured())

    async with compose(workshop=workshop):
        await send(stores, committed(revision))
        await ended(jobs, id_of(revision), eventually)
        await send(stores, committed(revision))
        await send(stores, committed(revision), id="e2")
        await eventually(lambda: drained(stores))

    assert len(workshop.orders) == 1
    assert len(registry.commits(NAME, "optimized/int8")) == 1
    assert (await jobs.find(repository=NAME, status=None, limit=10, cursor=None)).total == 1


@pytest.mark.parametrize(
    "event",
    [
        committed("1" * 40, path="weights.safetensors"),
        committed("1" * 40, branch="experiment"),
        committed("1" * 40, branch="optimized/int8"),
        committed(
            "1" * 40, lineage=Lineage(kind="optimized", source_repository=NAME, source_revision="2" * 40, recipe="int8")
        ),
    ],
    ids=["no model", "other branch", "own branch", "own output, merged to main"],
)
async def test_commit_that_asks_for_nothing_makes_no_job(
    compose: Any, stores: Stores, jobs: OutboxJobs, eventually: Any, event: Event
) -> None:
    async with compose():
        await send(stores, event)
        await eventually(lambda: drained(stores))

    assert (await jobs.find(repository=None, status=None, limit=10, cursor=None)).total == 0


async def test_own_commit_announced_back_makes_no_second_job(
    compose: Any, stores: Stores, registry: Any, fake_workshop: Any, measured: Any, jobs: OutboxJobs, eventually: Any
) -> None:
    """INVARIANT: the optimizer never feeds itself, whatever branches it watches."""
    revision = registry.push(NAME, {"model.onnx": b"model"})

    async with compose(workshop=fake_workshop(measured()), branches=("*",)):
        await send(stores, committed(revision))
        job = await ended(jobs, id_of(revision), eventually)
        [commit] = registry.commits(NAME, "optimized/int8")
        own = committed(job.variant.revision, branch="optimized/int8", lineage=Lineage(**commit["lineage"]))
        await send(stores, own, id="e2")
        await eventually(lambda: drained(stores))

    assert (await jobs.find(repository=None, status=None, limit=10, cursor=None)).total == 1


async def test_upstream_request_sent_twice_is_answered_once(
    compose: Any, stores: Stores, registry: Any, fake_workshop: Any, measured: Any, jobs: OutboxJobs, eventually: Any
) -> None:
    registry.push(NAME, {"model.onnx": b"model"})
    workshop = fake_workshop(measured())
    wish = OptimizationRequested(repository=NAME, ref="main")

    async with compose(workshop=workshop):
        await send(stores, wish, id="r1", source="/ci")
        await send(stores, wish, id="r1", source="/ci")
        await eventually(lambda: drained(stores))
        await send(stores, wish, id="r1", source="/other-ci")
        await eventually(lambda: drained(stores))

    found = await jobs.find(repository=NAME, status="succeeded", limit=10, cursor=None)
    assert found.total == 2
    assert {job.actor for job in found.jobs} == {"alice"}


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (OptimizationRequested(repository="no/such"), "'no/such' does not exist"),
        (OptimizationRequested(repository=NAME, ref="nowhere"), "ref 'nowhere' does not exist"),
        (OptimizationRequested(repository=NAME, recipe="int3"), "recipe 'int3' is unknown; known are: int8"),
    ],
)
async def test_impossible_request_goes_to_the_dead_letters_with_its_reason(
    compose: Any, stores: Stores, registry: Any, eventually: Any, wish: Event, reason: str
) -> None:
    registry.push(NAME, {"model.onnx": b"model"})

    async with compose():
        await send(stores, wish)
        letters = await eventually(stores.bus.dead_letters)

    assert reason in letters[0].error
    assert letters[0].attempts == 1


async def test_request_waits_while_the_registry_is_away(
    compose: Any, stores: Stores, registry: Any, fake_workshop: Any, measured: Any, jobs: OutboxJobs, eventually: Any
) -> None:
    registry.push(NAME, {"model.onnx": b"model"})
    registry.away = True

    async with compose(workshop=fake_workshop(measured())) as service:
        await send(stores, OptimizationRequested(repository=NAME))
        await eventually(lambda: len(registry.calls) >= 2)
        with pytest.raises(Unavailable, match="registry does not answer"):
            await service.checks["consumers"]()
        registry.away = False

        async def done() -> int:
            return (await jobs.find(repository=NAME, status="succeeded", limit=10, cursor=None)).total

        await eventually(done)


async def test_orderly_stop_lets_the_job_go_and_the_next_start_finishes_it(
    compose: Any, stores: Stores, registry: Any, fake_workshop: Any, measured: Any, jobs: OutboxJobs, eventually: Any
) -> None:
    revision = registry.push(NAME, {"model.onnx": b"model"})
    began = asyncio.Event()

    async def hang(order: Any, tick: Any) -> Any:
        began.set()
        await asyncio.Event().wait()

    async with compose(workshop=fake_workshop(hang)):
        await send(stores, committed(revision))
        await asyncio.wait_for(began.wait(), 10)
    let_go = await jobs.get(id_of(revision))
    # One registry of metrics serves one composition: the second gets its own.
    from modelworks.kit.telemetry import Telemetry

    async with compose(workshop=fake_workshop(measured()), telemetry=Telemetry()):
        job = await ended(jobs, id_of(revision), eventually)

    assert let_go is not None
    assert let_go.job.status == "queued"
    assert job.status == "succeeded"
    assert (job.fence, job.crashes) == (2, 0)


async def test_trace_of_the_commit_goes_on_in_the_announcement_of_the_variant(
    compose: Any, stores: Stores, registry: Any, fake_workshop: Any, measured: Any, jobs: OutboxJobs, eventually: Any
) -> None:
    revision = registry.push(NAME, {"model.onnx": b"model"})
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    seen: list[str] = []

    async def look() -> None:
        async for delivery in stores.bus.tail(["optimizer.variant-built.v1"]):
            seen.append(delivery.message.headers["traceparent"])  # noqa: PERF401 - the tail never ends

    async with compose(workshop=fake_workshop(measured())):
        tail = asyncio.create_task(look())
        await asyncio.sleep(0)
        envelope = Envelope(
            event=committed(revision), id="e1", source="/services/registry", time=datetime.now(UTC),
            trace={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"},
        )  # fmt: skip
        await stores.bus.publish([message_of(envelope)])
        await eventually(lambda: seen)
        tail.cancel()

    assert trace in seen[0]


async def drained(stores: Stores) -> bool:
    lags = [*await stores.bus.lag("optimizer"), *await stores.bus.lag("optimizer-runners")]
    return bool(lags) and all(lag.messages == 0 for lag in lags)
