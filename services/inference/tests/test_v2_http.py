"""The V2 door with an unmodified tritonclient, over a real socket."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

http = pytest.importorskip("tritonclient.http")


async def test_tritonclient_predicts_with_binary_tensors(
    serve: Any, deploy: Any, issuer: Any, onnx_models: Any
) -> None:
    async with serve() as running:
        revision = await deploy(running, "acme/affine", onnx_models.affine())

        def call() -> Any:
            with http.InferenceServerClient(f"{running.address}/oip") as client:
                tensor = http.InferInput("x", [2, 3], "FP32")
                tensor.set_data_from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))
                return client.infer("acme/affine", [tensor], headers=issuer.headers(), request_id="r-1")

        result = await asyncio.to_thread(call)

        np.testing.assert_allclose(result.as_numpy("y"), np.arange(6).reshape(2, 3) * 2 + 1)
        assert result.get_response()["id"] == "r-1"
        assert result.get_response()["model_version"] == revision
