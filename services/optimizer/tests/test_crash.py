"""INVARIANT: whenever the process is killed, the next one finishes the job, and there is exactly one commit.

Saving the plan after the commit, or building the report anew on a resume, would break it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from modelworks.events import Envelope, FileChange, RevisionCommitted
from modelworks.optimizer.adapters.jobs_outbox import SCHEMA, OutboxJobs
from modelworks.optimizer.domain import Job, job_id
from modelworks.optimizer.recipe import parse_recipe
from modelworks.stores import Subscription
from modelworks.stores.outbox import Outbox, envelope_of, message_of
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import opened

NAME = "vision/magic"
SCRIPT = Path(__file__).parent / "serve_and_die.py"

Process = asyncio.subprocess.Process


@asynccontextmanager
async def process(folder: Path, point: str, *more: str) -> AsyncIterator[Process]:
    """The service in a process of its own, ended at the latest on leaving."""
    (folder / "stop").unlink(missing_ok=True)
    running = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPT), str(folder), point, *more, stderr=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            running.kill()
        await running.wait()


async def prepare(folder: Path, registry: Any, model: bytes, measurement: Any) -> str:
    """A pushed model and its event on the bus; returns the job's id."""
    revision = registry.push(NAME, {"model.onnx": model})
    (folder / "measurement.json").write_text(measurement.model_dump_json())
    event = RevisionCommitted(
        repository=NAME, revision=revision, branch="main", parents=[], message="", changes_total=1,
        changes=[FileChange(path="model.onnx", change="added", sha256="a" * 64, size_bytes=1)],
    )  # fmt: skip
    async with opened(StoresSettings(column="embedded", data=folder / "data")) as stores:
        envelope = Envelope(event=event, id="e1", source="/services/registry", time=datetime.now(UTC))
        await stores.bus.publish([message_of(envelope)])
    return job_id(NAME, revision, parse_recipe("int8").digest)


async def job_of(folder: Path, id: str) -> Job | None:
    async with opened(StoresSettings(column="embedded", data=folder / "data")) as stores:
        outbox = Outbox(documents=stores.documents, bus=stores.bus, schema=SCHEMA, source="/services/optimizer")
        stored = await OutboxJobs(outbox, stores.documents).get(id)
        return stored.job if stored else None


async def announced(folder: Path, eventually: Any) -> list[str]:
    """Ids of the announcements of variants on the bus, from its beginning."""
    ids: list[str] = []

    async def handle(batch: Any) -> None:
        ids.extend(envelope_of(delivery.message).id for delivery in batch)

    async with opened(StoresSettings(column="embedded", data=folder / "data")) as stores:
        consumer = await stores.bus.subscribe(Subscription("test", ("optimizer.variant-built.v1",), handle))

        async def drained() -> bool:
            return bool(ids) and all(lag.messages == 0 for lag in await stores.bus.lag("test"))

        await eventually(drained)
        await consumer.stop()
    return ids


@pytest.mark.parametrize(
    "point",
    [
        "before-revision", "after-download", "working", "after-upload", "before-head", "before-commit", "after-commit",
        "before-tag", "before-set_tag", "after-set_tag",
    ],
)  # fmt: skip
async def test_killed_service_finishes_after_the_next_start_with_one_commit(
    tmp_path: Path, registry: Any, measured: Any, point: str, eventually: Any
) -> None:
    id = await prepare(tmp_path, registry, b"model", measured())

    async with process(tmp_path, point) as first:
        assert await asyncio.wait_for(first.wait(), 30) == -signal.SIGKILL
    interrupted = await job_of(tmp_path, id)
    async with process(tmp_path, "never"):
        await eventually(lambda: registry.ref(NAME, "tag", "recommended"), within=30)

        async def done() -> bool:
            job = await job_of(tmp_path, id)
            return job is not None and job.ended

        await eventually(done, within=30, every=0.1)

    assert interrupted is not None
    assert interrupted.status == "running"
    job = await job_of(tmp_path, id)
    [commit] = registry.commits(NAME, "optimized/int8")
    assert job is not None
    assert (job.status, job.crashes) == ("succeeded", 1)
    assert job.variant is not None
    assert job.variant.revision == commit["revision"] == registry.ref(NAME, "tag", "recommended")
    assert len(set(await announced(tmp_path, eventually))) == 1
    assert list((tmp_path / "work").iterdir()) == []


async def test_killed_service_takes_its_worker_along_and_the_next_one_measures_anew(
    tmp_path: Path, registry: Any, measured: Any, models: ModuleType, eventually: Any
) -> None:
    id = await prepare(tmp_path, registry, models.classifier(width=512), measured())

    async with process(tmp_path, "never", "real") as first:
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
        worker = int(await eventually(lambda: children.read_text().strip(), within=30))
        first.kill()
        await first.wait()
    await eventually(lambda: not _alive(worker))
    async with process(tmp_path, "never", "real"):
        await eventually(lambda: registry.ref(NAME, "tag", "recommended"), within=60)

        async def done() -> bool:
            job = await job_of(tmp_path, id)
            return job is not None and job.ended

        await eventually(done, within=30, every=0.1)

    job = await job_of(tmp_path, id)
    assert job is not None
    assert job.status == "succeeded", job.error
    assert len(registry.commits(NAME, "optimized/int8")) == 1
    assert list((tmp_path / "work").iterdir()) == []


async def test_killed_worker_fails_the_job_with_a_reason(
    tmp_path: Path, registry: Any, measured: Any, models: ModuleType, eventually: Any
) -> None:
    id = await prepare(tmp_path, registry, models.classifier(width=512), measured())

    async with process(tmp_path, "never", "real") as service:
        children = Path(f"/proc/{service.pid}/task/{service.pid}/children")
        worker = int(await eventually(lambda: children.read_text().strip(), within=30))
        os.kill(worker, signal.SIGKILL)

        async def done() -> bool:
            job = await job_of(tmp_path, id)
            return job is not None and job.ended

        await eventually(done, within=30, every=0.1)

    job = await job_of(tmp_path, id)
    assert job is not None
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "worker-crashed")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
