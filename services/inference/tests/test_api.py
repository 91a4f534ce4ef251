"""`/api/v1/jobs` and `/api/v1/deployments` as callers see them."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import numpy as np
import pytest
from modelworks.inference.api import wait_seconds
from onnx import TensorProto

TENSOR = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
BODY = {"model": "acme/affine", "inputs": [TENSOR]}


def binary(array: Any, datatype: str = "FP32", **more: Any) -> tuple[bytes, dict[str, str]]:
    raw = array.tobytes()
    entry = {
        "name": "x",
        "shape": list(array.shape),
        "datatype": datatype,
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [entry], **more}).encode()
    return head + raw, {"Inference-Header-Content-Length": str(len(head))}


async def done(running: Any, answer: Any) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    job = await running.http.get(answer.headers["location"], headers={"Prefer": "wait=20"})
    return job.json()  # type: ignore[no-any-return]


async def test_json_job_is_accepted_run_and_read_as_json(serve: Any, deploy: Any, onnx_models: Any) -> None:
    async with serve() as running:
        revision = await deploy(running, "acme/affine", onnx_models.affine())

        answer = await running.http.post("/api/v1/jobs", json={**BODY, "lane": "bulk", "id": "mine"})
        job = await done(running, answer)
        result = await running.http.get(job["result"])

        assert answer.json()["status"] == "queued"
        assert (job["status"], job["lane"], job["revision"], job["owner"]) == ("succeeded", "bulk", revision, "tester")
        assert result.json()["id"] == "mine"
        assert result.json()["outputs"][0]["data"] == [3.0, 5.0, 7.0]


async def test_binary_job_is_read_in_the_form_that_is_asked_for(serve: Any, deploy: Any, onnx_models: Any) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        body, headers = binary(np.array([[1, 2, 3]], np.float32))

        answer = await running.http.post("/api/v1/jobs?model=acme/affine", content=body, headers=headers)
        job = await done(running, answer)
        stored = await running.http.get(job["result"])
        as_json = await running.http.get(job["result"], headers={"Accept": "application/json"})
        as_bytes = await running.http.get(job["result"], headers={"Accept": "application/octet-stream"})

        length = int(stored.headers["inference-header-content-length"])
        assert np.frombuffer(stored.content[length:], np.float32).tolist() == [3.0, 5.0, 7.0]
        assert as_bytes.content == stored.content
        assert as_json.json()["outputs"][0]["data"] == [3.0, 5.0, 7.0]
        assert "inference-header-content-length" not in as_json.headers


async def test_result_without_json_form_is_kept_as_bytes(serve: Any, deploy: Any, onnx_models: Any) -> None:
    async with serve() as running:
        await deploy(running, "acme/half", onnx_models.identity(TensorProto.FLOAT16))
        body, headers = binary(np.array([[1.5]], np.float16), "FP16", outputs=[{"name": "y"}])

        job = await done(
            running, await running.http.post("/api/v1/jobs?model=acme/half", content=body, headers=headers)
        )
        stored = await running.http.get(job["result"])
        as_json = await running.http.get(job["result"], headers={"Accept": "application/json"})

        assert stored.content.endswith(np.float16(1.5).tobytes())
        assert as_json.status_code == 400
        assert "binary" in as_json.json()["detail"]


async def test_large_json_is_read_beside_the_loop(serve: Any, deploy: Any, onnx_models: Any) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        rows = 4000
        many = {**TENSOR, "shape": [rows, 3], "data": [0.123456] * (3 * rows)}

        job = await done(running, await running.http.post("/api/v1/jobs", json={**BODY, "inputs": [many]}))
        result = await running.http.get(job["result"])

        assert len(result.json()["outputs"][0]["data"]) == 3 * rows


async def test_same_key_gives_the_same_job(serve: Any, deploy: Any, onnx_models: Any, issuer: Any) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        key = {"Idempotency-Key": "k-1"}

        answers = await asyncio.gather(*(running.http.post("/api/v1/jobs", json=BODY, headers=key) for _ in range(5)))
        other_body = {**BODY, "inputs": [{**TENSOR, "data": [9, 9, 9]}]}
        other = await running.http.post("/api/v1/jobs", json=other_body, headers=key)
        somebody = await running.http.post(
            "/api/v1/jobs", json=BODY, headers={**key, **issuer.headers("bob", "consumer")}
        )
        await done(running, answers[0])

        assert {answer.json()["id"] for answer in answers} == {answers[0].json()["id"]}
        assert other.status_code == 409
        assert somebody.json()["id"] != answers[0].json()["id"]


async def test_owner_and_operators_see_a_job_and_nobody_else(
    serve: Any, deploy: Any, onnx_models: Any, issuer: Any, eventually: Any
) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        ann, bob = issuer.headers("ann", "consumer"), issuer.headers("bob", "consumer")
        oscar, otto = issuer.headers("oscar", "operator"), issuer.headers("otto", "auditor")
        answer = await running.http.post("/api/v1/jobs", json=BODY, headers=ann)
        path = answer.headers["location"]
        await done(running, answer)

        async def seen(headers: dict[str, str]) -> list[int]:
            return [
                (await running.http.get(path, headers=headers)).status_code,
                (await running.http.get(f"{path}/result", headers=headers)).status_code,
                (await running.http.delete(path, headers=headers)).status_code,
            ]

        assert await seen(bob) == [403, 403, 403]
        assert await seen(otto) == [403, 403, 403]
        # It has ended, so it cannot be cancelled by those who may.
        assert await seen(ann) == [200, 200, 409]
        assert await seen(oscar) == [200, 200, 409]
        totals = [
            (await running.http.get("/api/v1/jobs", headers=headers)).json()["total"]
            for headers in (ann, bob, oscar, otto)
        ]
        assert totals == [1, 0, 1, 0]


async def test_jobs_are_listed_newest_first_in_pages(serve: Any, deploy: Any, onnx_models: Any) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        made = []
        for _ in range(3):
            answer = await running.http.post("/api/v1/jobs", json=BODY)
            made.append(answer.json()["id"])
            await done(running, answer)

        first = (await running.http.get("/api/v1/jobs", params={"limit": 2, "status": "succeeded"})).json()
        second = (
            await running.http.get(
                "/api/v1/jobs", params={"limit": 2, "status": "succeeded", "cursor": first["cursor"]}
            )
        ).json()

        assert [job["id"] for job in first["items"] + second["items"]] == made[::-1]
        assert (first["total"], second["cursor"]) == (3, None)
        assert (await running.http.get("/api/v1/jobs", params={"model": "acme/none"})).json()["items"] == []


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"inputs": [TENSOR]}, 400, "model"),
        ({**BODY, "model": "nope"}, 400, "model"),
        ({**BODY, "lane": "fast"}, 400, "lane"),
        ({**BODY, "timeout_ms": 0}, 400, "timeout_ms"),
        ({**BODY, "timeout_ms": "soon"}, 400, "timeout_ms"),
        ({"model": "acme/affine"}, 400, "inputs"),
        ({**BODY, "inputs": [{**TENSOR, "data": [1]}]}, 400, "1 values of data"),
        ({**BODY, "inputs": [{**TENSOR, "shape": [-1, 3]}]}, 400, "-1 of its shape"),
        ([], 400, "must be a JSON object"),
        ("x", 400, "must be a JSON object"),
    ],
)
async def test_malformed_job_is_refused_before_it_is_queued(serve: Any, body: Any, status: int, says: str) -> None:
    async with serve() as running:
        answer = await running.http.post("/api/v1/jobs", json=body)

        assert answer.status_code == status
        assert says in answer.json()["detail"]
        assert answer.headers["content-type"] == "application/problem+json"
        assert (await running.http.get("/api/v1/jobs")).json()["total"] == 0


async def test_other_refusals_of_jobs(serve: Any) -> None:
    async with serve(body_bytes_max=4096, json_bytes_max=2048) as running:
        big = json.dumps({**BODY, "note": "x" * 3000})
        nan = b'{"model":"acme/affine","inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}'
        body, _ = binary(np.zeros((1, 3), np.float32))

        assert (await running.http.post("/api/v1/jobs", content=b"{")).status_code == 400
        assert (await running.http.post("/api/v1/jobs", content=nan)).status_code == 400
        assert (await running.http.post("/api/v1/jobs", content=big)).status_code == 413
        assert (await running.http.post("/api/v1/jobs", content=bytes(5000))).status_code == 413
        raw = await running.http.post(
            "/api/v1/jobs?model=acme/affine", content=body, headers={"Inference-Header-Content-Length": "0"}
        )
        assert raw.status_code == 400
        assert (await running.http.get("/api/v1/jobs/none")).status_code == 404
        assert (await running.http.get("/api/v1/jobs?status=odd")).status_code == 400
        assert (await running.http.get("/api/v1/jobs?limit=0")).status_code == 400


async def test_job_without_result_says_why(serve: Any) -> None:
    async with serve(model_wait_seconds=0) as running:
        answer = await running.http.post("/api/v1/jobs", json={**BODY, "model": "acme/none"})
        job = await done(running, answer)
        result = await running.http.get(f"{answer.headers['location']}/result")

        assert job["status"] == "failed"
        assert job["result"] is None
        assert result.status_code == 409
        assert "not deployed" in result.json()["detail"]


async def test_waiting_caller_hears_of_the_end_at_once_or_after_the_wait(serve: Any, eventually: Any) -> None:
    async with serve(model_wait_seconds=60) as running:
        answer = await running.http.post("/api/v1/jobs", json=BODY)
        path = answer.headers["location"]

        started = time.monotonic()
        waiting = await running.http.get(path, headers={"Prefer": "wait=1"})
        waited = time.monotonic() - started
        cancelling = asyncio.create_task(running.http.get(path, headers={"Prefer": "respond-async, wait=20"}))
        await eventually(lambda: running.parts.changes.waiting() == 1)
        await running.http.delete(path)
        cancelled = await asyncio.wait_for(cancelling, 5)

        assert waiting.json()["status"] == "queued"
        assert waited >= 0.9
        assert cancelled.json()["status"] == "cancelled"


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("wait=5", 5),
        ("respond-async, wait=10", 10),
        ("wait=999", 60),
        ("wait=-1", 0),
        ("wait=x", 0),
    ],
)
def test_preferred_wait_is_bounded(prefer: str | None, seconds: float) -> None:
    assert wait_seconds(prefer) == seconds


async def test_every_route_asks_for_a_token_and_tells_the_audit(serve: Any, heard: Any, eventually: Any) -> None:
    from modelworks.events import AccessDenied

    async with serve() as running:
        stranger = httpx.AsyncClient(base_url=f"http://{running.address}")
        routes = [
            ("POST", "/api/v1/deployments"), ("GET", "/api/v1/deployments"), ("GET", "/api/v1/deployments/a/b"),
            ("DELETE", "/api/v1/deployments/a/b"), ("POST", "/api/v1/jobs"), ("GET", "/api/v1/jobs"),
            ("GET", "/api/v1/jobs/x"), ("GET", "/api/v1/jobs/x/result"), ("DELETE", "/api/v1/jobs/x"),
            ("GET", "/oip/v2/models/a/b"), ("GET", "/oip/v2/models/stats"), ("POST", "/oip/v2/models/a/b/infer"),
            ("POST", "/oip/v2/repository/index"), ("POST", "/oip/v2/repository/models/a/b/load"),
        ]  # fmt: skip
        answers = [await stranger.request(method, path) for method, path in routes]
        await stranger.aclose()

        assert {answer.status_code for answer in answers} == {401}
        await eventually(lambda: heard(AccessDenied))


async def test_readiness_tells_the_truth(serve: Any, eventually: Any) -> None:
    async with serve() as running:

        async def ready(status: int = 200) -> bool:
            return (await running.http.get("/readyz")).status_code == status

        await eventually(ready)
        running.parts.models.complete = False

        assert await ready(503)
