"""The V2 door with an unmodified tritonclient, over a real socket."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

http = pytest.importorskip("tritonclient.http")


async def deployed(running: Any, registry: Any, model: str, data: bytes, **body: Any) -> str:
    revision = registry.commit(model, {"model.onnx": data})
    answer = await running.http.post("/api/v1/deployments", json={"model": model, **body})
    assert answer.status_code == 202, answer.text
    answer = await running.http.get(f"/api/v1/deployments/{model}", headers={"Prefer": "wait=20"})
    assert answer.json()["status"] == "ready", answer.text
    return revision


async def test_tritonclient_predicts_with_binary_tensors(
    serve: Any, registry: Any, issuer: Any, onnx_models: Any
) -> None:
    async with serve() as running:
        revision = await deployed(running, registry, "acme/affine", onnx_models.affine())

        def call() -> Any:
            with http.InferenceServerClient(f"{running.address}/oip") as client:
                tensor = http.InferInput("x", [2, 3], "FP32")
                tensor.set_data_from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))
                return client.infer("acme/affine", [tensor], headers=issuer.headers(), request_id="r-1")

        result = await asyncio.to_thread(call)

        np.testing.assert_allclose(result.as_numpy("y"), np.arange(6).reshape(2, 3) * 2 + 1)
        assert result.get_response()["id"] == "r-1"
        assert result.get_response()["model_version"] == revision
