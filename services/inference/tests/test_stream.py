"""Jobs on the bus: done once, whatever is delivered, killed, cancelled or late."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modelworks.events import (
    BlobRef,
    Envelope,
    PredictionCompleted,
    PredictionQueuedStandard,
    PredictionRequested,
    TensorValue,
)
from modelworks.inference.domain import job_id, start
from modelworks.inference.engine.errors import ModelNotReady
from modelworks.inference.engine.session_onnx import OnnxSession
from modelworks.inference.queueing import Submission
from modelworks.kit.clock import utc_now
from modelworks.stores.outbox import message_of

SOURCE = "/upstream/trainer"
TENSOR = TensorValue(name="x", datatype="FP32", shape=[1, 3], data=[1, 2, 3])


async def send(
    stores: Any, event: PredictionRequested, *, id: str = "ce-1", actor: str = "ann", time: Any = None
) -> None:
    await stores.bus.publish([message_of(Envelope(event, id, SOURCE, time or utc_now(), actor=actor))])


def asked(body: dict[str, Any] | None = None, **more: Any) -> Submission:
    raw = json.dumps(body or {"inputs": [TENSOR.model_dump()]}).encode()
    fields = {
        "model": "acme/affine",
        "ref": None,
        "lane": "standard",
        "owner": "ann",
        "body": raw,
        "header_bytes": None,
    }
    return Submission(**{**fields, **more})


async def ended(running: Any, id: str, eventually: Any) -> Any:
    async def look() -> Any:
        found = await running.parts.jobs.get(id)
        return found.state if found is not None and found.state.final else None

    return await eventually(look)


def results(heard: Any, id: str) -> list[PredictionCompleted]:
    return [envelope.event for envelope in heard(PredictionCompleted) if envelope.event.job == id]


# --- events from upstream -----------------------------------------------------------------------------------


async def test_upstream_event_is_answered_by_a_result_event(
    serve: Any, deploy: Any, onnx_models: Any, stores: Any, heard: Any, eventually: Any, issuer: Any
) -> None:
    async with serve() as running:
        revision = await deploy(running, "acme/affine", onnx_models.affine())
        await send(stores, PredictionRequested(model="acme/affine", inputs=[TENSOR], lane="interactive"))
        id = job_id("event", SOURCE, "ce-1")
        await eventually(lambda: results(heard, id))
        (event,) = results(heard, id)
        assert event.result is not None

        result = await running.http.get(event.result.uri, headers=issuer.headers("ann", "consumer"))

        assert (event.request, event.status, event.principal, event.lane) == ("ce-1", "succeeded", "ann", "interactive")
        assert event.revision == revision
        assert hashlib.sha256(result.content).hexdigest() == event.result.sha256
        assert result.json()["outputs"][0]["data"] == [3.0, 5.0, 7.0]
        envelope = next(e for e in heard(PredictionCompleted) if e.event.job == id)
        assert envelope.actor == "ann"


async def test_same_event_twice_is_answered_once(
    serve: Any, deploy: Any, onnx_models: Any, stores: Any, heard: Any, eventually: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        for _ in range(3):
            await send(stores, PredictionRequested(model="acme/affine", inputs=[TENSOR]))
        await send(stores, PredictionRequested(model="acme/affine", inputs=[TENSOR]), id="ce-2")
        await ended(running, job_id("event", SOURCE, "ce-1"), eventually)
        await ended(running, job_id("event", SOURCE, "ce-2"), eventually)

        assert running.parts.models.get("acme/affine").statistics.inference_count == 2
        assert (await running.parts.jobs.find(owner="ann", model=None, status=None, limit=10, cursor=None)).total == 2


@pytest.mark.parametrize(
    ("event", "code", "says"),
    [
        (PredictionRequested(model="acme/affine"), "invalid-input", "exactly one"),
        (
            PredictionRequested(
                model="acme/affine", inputs=[TENSOR], inputs_ref=BlobRef(uri="/x", sha256="0" * 64, size_bytes=1)
            ),
            "invalid-input",
            "exactly one",
        ),
        (
            PredictionRequested(
                model="acme/affine", inputs=[TensorValue(name="x", datatype="FP32", shape=[1, 3], data=[1, 2])]
            ),
            "invalid-input",
            "2 values of data",
        ),
        (
            PredictionRequested(
                model="acme/affine", inputs=[TensorValue(name="z", datatype="FP32", shape=[1, 3], data=[1, 2, 3])]
            ),
            "invalid-input",
            "takes inputs 'x'",
        ),
        (PredictionRequested(model="acme/none", inputs=[TENSOR]), "not-found", "not deployed"),
        (PredictionRequested(model="acme/affine", ref="other", inputs=[TENSOR]), "not-found", "not at 'other'"),
    ],
)
async def test_event_that_cannot_be_done_is_answered_as_failed(
    serve: Any,
    deploy: Any,
    onnx_models: Any,
    stores: Any,
    heard: Any,
    eventually: Any,
    event: Any,
    code: str,
    says: str,
) -> None:
    async with serve(model_wait_seconds=0) as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        await send(stores, event)
        id = job_id("event", SOURCE, "ce-1")
        await eventually(lambda: results(heard, id))

    (told,) = results(heard, id)
    assert (told.request, told.status) == ("ce-1", "failed")
    assert told.error is not None
    assert told.error.code == code
    assert says in told.error.message


@pytest.mark.parametrize(
    "uri",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.org/api/v1/repositories/acme/data/files/in.bin",
        "//example.org/api/v1/repositories/acme/data/files/in.bin",
        "file:///etc/passwd",
        "/api/v1/jobs/other/result",
        "/api/v1/clients",
        "/api/v1/repositories/acme/../x/files/in.bin",
        "/api/v1/repositories/acme/data/files/",
    ],
)
async def test_foreign_reference_is_never_opened(
    serve: Any, stores: Any, heard: Any, eventually: Any, uri: str, registry: Any
) -> None:
    async with serve():
        reference = BlobRef(uri=uri, sha256="0" * 64, size_bytes=10)
        await send(stores, PredictionRequested(model="acme/affine", inputs_ref=reference))
        id = job_id("event", SOURCE, "ce-1")
        await eventually(lambda: results(heard, id))

    (told,) = results(heard, id)
    assert told.status == "failed"
    assert told.error is not None
    assert told.error.code in ("invalid-input", "not-found")


async def test_inputs_are_read_from_a_repository_by_reference(
    serve: Any, deploy: Any, onnx_models: Any, stores: Any, heard: Any, eventually: Any, registry: Any
) -> None:
    raw = np.array([[1, 2, 3]], np.float32).tobytes()
    head = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}]}
    ).encode()
    body = head + raw
    registry.commit("acme/data", {"in put.bin": body})
    registry.commit("acme/hidden", {"in.bin": body})
    registry.private["acme/hidden"] = "somebody"
    good = {"sha256": hashlib.sha256(body).hexdigest(), "size_bytes": len(body)}
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        base = "/api/v1/repositories"
        for id, reference in (
            ("good", BlobRef(uri=f"{base}/acme/data/files/in%20put.bin?ref=main", **good)),
            ("other bytes", BlobRef(uri=f"{base}/acme/data/files/in%20put.bin", **{**good, "sha256": "0" * 64})),
            ("too long", BlobRef(uri=f"{base}/acme/data/files/in%20put.bin", **{**good, "size_bytes": 10**12})),
            ("private", BlobRef(uri=f"{base}/acme/hidden/files/in.bin", **good)),
            ("missing", BlobRef(uri=f"{base}/acme/data/files/none", **good)),
        ):
            await send(stores, PredictionRequested(model="acme/affine", inputs_ref=reference), id=id)
        told = {
            id: await ended(running, job_id("event", SOURCE, id), eventually)
            for id in ("good", "other bytes", "too long", "private", "missing")
        }

    assert told["good"].status == "succeeded"
    assert told["good"].output.header_bytes
    assert {id: job.error.code for id, job in told.items() if job.error} == {
        "other bytes": "invalid-input", "too long": "too-large", "private": "not-found", "missing": "not-found",
    }  # fmt: skip


async def test_event_whose_time_is_over_costs_no_compute(
    serve: Any, deploy: Any, onnx_models: Any, stores: Any, heard: Any, eventually: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        event = PredictionRequested(model="acme/affine", inputs=[TENSOR], timeout_ms=1000)
        await send(stores, event, time=datetime.now(UTC) - timedelta(seconds=2))
        job = await ended(running, job_id("event", SOURCE, "ce-1"), eventually)

        assert job.status == "expired"
        assert running.parts.models.get("acme/affine").statistics.execution_count == 0


async def test_event_that_breaks_its_schema_goes_to_the_dead_letters(serve: Any, stores: Any, eventually: Any) -> None:
    async with serve():
        message = message_of(Envelope(PredictionRequested(model="a/b"), "bad", SOURCE, utc_now()))
        await stores.bus.publish([type(message)(message.topic, message.key, b'{"model": 7}', message.headers)])

        letters = await eventually(lambda: stores.bus.dead_letters(topic=message.topic))

    assert letters[0].group == "inference-ingest"


# --- jobs ---------------------------------------------------------------------------------------------------


async def test_job_waits_for_a_model_that_is_deployed_soon(
    serve: Any, deploy: Any, onnx_models: Any, stores: Any, eventually: Any
) -> None:
    async with serve() as running:
        job = await running.parts.queueing.submit(asked())

        async def tried() -> bool:
            lag = await stores.bus.lag("inference-jobs-standard")
            return sum(entry.messages for entry in lag) == 1 and running.parts.models.complete

        await eventually(tried)
        await deploy(running, "acme/affine", onnx_models.affine())

        assert (await ended(running, job.id, eventually)).status == "succeeded"


async def test_old_job_waits_for_a_model_that_a_restarted_worker_still_loads(
    serve: Any, deploy: Any, onnx_models: Any, eventually: Any
) -> None:
    release = threading.Event()

    def slowly(path: Path) -> OnnxSession:
        release.wait(20)
        return OnnxSession(path, intra_op_threads=1)

    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
    job = await running.parts.queueing.submit(asked())

    async with serve(loader=slowly, model_wait_seconds=0) as second:
        await eventually(lambda: second.parts.models.missing())
        held = asyncio.create_task(second.parts.runner.perform(job.id, last=False))
        await asyncio.wait({held}, timeout=2.5)
        assert isinstance(held.exception(), ModelNotReady)
        release.set()

        assert (await ended(second, job.id, eventually)).status == "succeeded"


async def test_job_of_a_model_that_cannot_be_loaded_fails_with_the_reason(
    serve: Any, registry: Any, eventually: Any
) -> None:
    registry.commit("acme/broken", {"model.onnx": b"not a model"})
    async with serve(model_wait_seconds=0) as running:
        await running.http.post("/api/v1/deployments", json={"model": "acme/broken"})
        await eventually(lambda: "failed" in running.parts.models.missing().get("acme/broken", ""))
        job = await running.parts.queueing.submit(asked(model="acme/broken"))
        done = await ended(running, job.id, eventually)

    assert done.status == "failed"
    assert "cannot load the model" in done.error.message


async def test_redelivered_job_changes_nothing(
    serve: Any, deploy: Any, onnx_models: Any, stores: Any, heard: Any, eventually: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        job = await running.parts.queueing.submit(asked())
        before = await ended(running, job.id, eventually)

        queued = heard(PredictionQueuedStandard)[0]
        await stores.bus.publish([message_of(queued)] * 3)
        await running.parts.runner.perform(job.id)
        other = await running.parts.queueing.submit(asked())
        await ended(running, other.id, eventually)

        found = await running.parts.jobs.get(job.id)
        assert found.state == before
        assert running.parts.models.get("acme/affine").statistics.inference_count == 2
    assert len(results(heard, job.id)) == 1


async def test_two_workers_on_the_same_job_give_one_result(
    serve: Any, deploy: Any, onnx_models: Any, heard: Any, eventually: Any
) -> None:
    """INVARIANT: a job ends exactly once, however many workers were handed it."""
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        job = await running.parts.queueing.submit(asked())

        await asyncio.gather(*(running.parts.runner.perform(job.id) for _ in range(5)))
        await ended(running, job.id, eventually)
        # A job after it in the lane is told only when all copies of the first were handled.
        last = await running.parts.queueing.submit(asked())
        await eventually(lambda: results(heard, last.id))

        found = await running.parts.jobs.get(job.id)
        kept = [info.key async for info in running.parts.stores.objects.list(f"inference/jobs/{job.id}/")]
        assert found.state.output.key in kept
        assert found.state.status == "succeeded"
    assert len(results(heard, job.id)) == 1


async def test_job_that_was_running_when_the_worker_died_is_done_by_the_next(
    serve: Any, deploy: Any, onnx_models: Any, stores: Any, eventually: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
    # Nobody runs: a job is accepted, taken up by a worker, and the worker is no more.
    job = await running.parts.queueing.submit(asked())
    found = await running.parts.jobs.get(job.id)
    await running.parts.jobs.save(start(found.state, worker="dead", at=utc_now()), expected=found.version, actor="ann")

    async with serve(worker="worker-2") as second:
        done = await ended(second, job.id, eventually)

    assert (done.status, done.attempts, done.worker) == ("succeeded", 2, "worker-2")


async def test_job_that_keeps_killing_its_worker_fails_in_the_end(
    serve: Any, deploy: Any, onnx_models: Any, eventually: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
    job = await running.parts.queueing.submit(asked())
    for _ in range(2):
        found = await running.parts.jobs.get(job.id)
        await running.parts.jobs.save(
            start(found.state, worker="dead", at=utc_now()), expected=found.version, actor="ann"
        )

    async with serve(job_attempts_max=2) as second:
        done = await ended(second, job.id, eventually)

    assert done.status == "failed"
    assert "kill its worker" in done.error.message


async def test_poisoned_job_fails_and_its_companions_do_not(
    serve: Any, deploy: Any, onnx_models: Any, eventually: Any
) -> None:
    async with serve(slots=1) as running:
        await deploy(running, "acme/lookup", onnx_models.lookup())
        jobs = [
            await running.parts.queueing.submit(
                asked(
                    {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [n]}]}, model="acme/lookup"
                )
            )
            for n in (0, 99, 2)
        ]

        done = [await ended(running, job.id, eventually) for job in jobs]

    assert [job.status for job in done] == ["succeeded", "failed", "succeeded"]
    assert done[1].error.message


async def test_running_job_is_cancelled(
    serve: Any, deploy: Any, onnx_models: Any, heard: Any, eventually: Any, issuer: Any
) -> None:
    async with serve(slots=1) as running:
        await deploy(running, "acme/slow", onnx_models.slow())
        data = [1] * (512 * 768)
        body = {"inputs": [{"name": "x", "shape": [512, 768], "datatype": "FP32", "data": data}]}
        job = await running.parts.queueing.submit(asked(body, model="acme/slow"))
        await eventually(lambda: running.parts.scheduler.running == 1)

        answer = await running.http.delete(f"/api/v1/jobs/{job.id}", headers=issuer.headers("ann", "consumer"))

        assert answer.json()["status"] == "cancelled"
        await eventually(lambda: running.parts.scheduler.running == 0, within=5)
        assert running.parts.models.get("acme/slow").statistics.execution_count == 0
        await eventually(lambda: results(heard, job.id))
    assert [event.status for event in results(heard, job.id)] == ["cancelled"]


async def test_cancelled_job_that_waits_never_runs(serve: Any, onnx_models: Any, deploy: Any, eventually: Any) -> None:
    async with serve() as running:
        job = await running.parts.queueing.submit(asked())
        await running.parts.queueing.cancel(job.id, by="ann")
        await deploy(running, "acme/affine", onnx_models.affine())
        other = await running.parts.queueing.submit(asked())
        await ended(running, other.id, eventually)

        assert (await running.parts.jobs.get(job.id)).state.status == "cancelled"
        assert running.parts.models.get("acme/affine").statistics.inference_count == 1


async def test_job_expires_while_its_model_is_missing(serve: Any, eventually: Any) -> None:
    async with serve() as running:
        job = await running.parts.queueing.submit(asked(timeout=timedelta(milliseconds=300)))

        assert (await ended(running, job.id, eventually)).status == "expired"


async def test_trace_goes_from_the_request_through_the_bus_to_the_batch_and_the_result(
    serve: Any, deploy: Any, onnx_models: Any, platform: Any, heard: Any, eventually: Any
) -> None:
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans = InMemorySpanExporter()
    platform.telemetry.provider.add_span_processor(SimpleSpanProcessor(spans))
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        body = {"model": "acme/affine", "inputs": [TENSOR.model_dump()]}
        answer = await running.http.post("/api/v1/jobs", json=body)
        id = answer.json()["id"]
        await eventually(lambda: results(heard, id))
        await eventually(lambda: any(span.name == "batch" for span in spans.get_finished_spans()))

    request = next(span for span in spans.get_finished_spans() if span.name == "POST /api/v1/jobs")
    trace = [span.name for span in spans.get_finished_spans() if span.context.trace_id == request.context.trace_id]
    completed = next(envelope for envelope in heard(PredictionCompleted) if envelope.event.job == id)
    assert "process inference.prediction-queued-standard.v1" in trace
    assert "batch" in trace
    assert format(request.context.trace_id, "032x") in completed.trace["traceparent"]


async def test_metrics_tell_the_queues(serve: Any, deploy: Any, onnx_models: Any, eventually: Any) -> None:
    async with serve(model_wait_seconds=60) as running:
        await running.parts.queueing.submit(asked(model="acme/later"))
        await deploy(running, "acme/affine", onnx_models.affine())
        job = await running.parts.queueing.submit(asked())
        await ended(running, job.id, eventually)
        await running.parts.queue_metrics.look()

        text = (await running.http.get("/metrics")).text

    assert 'modelworks_inference_queue_depth{lane="standard"} 1.0' in text
    assert 'modelworks_inference_queue_oldest_age_seconds{lane="standard"} 0.0' not in text
    assert 'modelworks_inference_queue_work_seconds{lane="standard"}' in text
    assert 'modelworks_inference_requests_total{mouth="queued",outcome="succeeded"} 1.0' in text
    assert "modelworks_inference_loaded_models 1.0" in text


async def test_old_jobs_are_deleted_with_their_tensors(
    serve: Any, deploy: Any, onnx_models: Any, stores: Any, eventually: Any
) -> None:
    async with serve(job_retention_hours=1e-9) as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        done = await running.parts.queueing.submit(asked())
        await ended(running, done.id, eventually)
        waiting = await running.parts.queueing.submit(asked(model="acme/later"))

        async def swept() -> bool:
            await running.parts.retention.sweep()
            return await running.parts.jobs.get(done.id) is None

        await eventually(swept)

        left = [info.key async for info in stores.objects.list("inference/jobs/")]
        assert left == [f"inference/jobs/{waiting.id}/inputs"]
        assert await running.parts.jobs.get(waiting.id) is not None
