"""Events in, jobs run, events out: on the embedded column, with the registry's port in a folder."""

from __future__ import annotations

import asyncio
import io
import json
from datetime import UTC, datetime
from pathlib import Path
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
        into.append(envelope_of(delivery.message).event)


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
