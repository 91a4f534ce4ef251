"""Queued predictions through the HTTP door: accepted durably, run once, read by their owner."""

from __future__ import annotations

from typing import Any


async def test_job_is_queued_run_and_read(serve: Any, registry: Any, onnx_models: Any, deploy: Any) -> None:
    async with serve() as running:
        await deploy(running, "acme/affine", onnx_models.affine())
        body = {
            "model": "acme/affine",
            "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}],
        }

        answer = await running.http.post("/api/v1/jobs", json=body)
        job = (await running.http.get(answer.headers["location"], headers={"Prefer": "wait=20"})).json()
        result = await running.http.get(job["result"])

        assert answer.status_code == 202
        assert job["status"] == "succeeded"
        assert result.json()["outputs"][0]["data"] == [3.0, 5.0, 7.0]
