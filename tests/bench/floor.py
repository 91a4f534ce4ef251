"""The floor: a bare ASGI server that parses the same request, runs the same session and answers in the same form.

No token, no policy, no routing, no batching: what a protocol costs at least in
Python. Run as `python -m tests.bench.floor MODEL.onnx PORT`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
import uvicorn

_DTYPES = {"INT32": np.dtype("<i4"), "FP32": np.dtype("<f4")}


def make_session(path: str) -> ort.InferenceSession:
    """One thread inside a run, as the suite's default."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _app(session: ort.InferenceSession) -> Any:
    executor = ThreadPoolExecutor(1)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = dict(scope["headers"])
        header_bytes = int(headers.get(b"inference-header-content-length", len(body)))
        request = json.loads(body[:header_bytes])
        feeds, position = {}, header_bytes
        for tensor in request["inputs"]:
            size = tensor["parameters"]["binary_data_size"]
            raw = np.frombuffer(body, _DTYPES[tensor["datatype"]], offset=position, count=size // 4)
            feeds[tensor["name"]] = raw.reshape(tensor["shape"])
            position += size
        outputs = await asyncio.get_running_loop().run_in_executor(executor, session.run, None, feeds)
        chunks = [np.ascontiguousarray(array).tobytes() for array in outputs]
        described = [
            {
                "name": meta.name,
                "datatype": "FP32",
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(raw)},
            }
            for meta, array, raw in zip(session.get_outputs(), outputs, chunks, strict=True)
        ]
        head = json.dumps({"model_name": "floor", "outputs": described}).encode()
        answer = b"".join([head, *chunks])
        await send(
            {"type": "http.response.start", "status": 200, "headers": [
                (b"content-length", str(len(answer)).encode()), (b"inference-header-content-length", str(len(head)).encode()),
            ]}
        )  # fmt: skip
        await send({"type": "http.response.body", "body": answer})

    return app


if __name__ == "__main__":
    uvicorn.run(
        _app(make_session(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), access_log=False, log_level="error",
        lifespan="off", server_header=False, date_header=False,
    )  # fmt: skip
