"""V2 predictions with binary tensors: overhead over the floor server and over raw `session.run`."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnx
from modelworks.client import AsyncModelworks
from modelworks.client.demo.magika import find_magika
from modelworks.client.tensors import Tensor, encode_request
from modelworks.kit.service import listen
from onnx import TensorProto, helper, numpy_helper

from tests.bench.floor import make_session
from tests.bench.harness import Result, summarize

SECONDS = 2.0
ROUNDS = 5


@dataclass(frozen=True)
class Target:
    """A server that answers the same request."""

    host: str
    port: int
    path: str
    headers: Mapping[str, str]


class Connection:
    """A keep-alive HTTP/1.1 connection that costs as little as a client in Python can."""

    def __init__(self, target: Target, body: bytes, header_bytes: int) -> None:
        self._target = target
        lines = [f"POST {target.path} HTTP/1.1", f"Host: {target.host}:{target.port}", f"Content-Length: {len(body)}",
                 f"Inference-Header-Content-Length: {header_bytes}", *(f"{k}: {v}" for k, v in target.headers.items())]  # fmt: skip
        self._request = "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._target.host, self._target.port)

    async def send(self) -> float:
        """Seconds from the first byte out to the last byte in."""
        started = time.perf_counter()
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(head.decode("latin-1") + (await self._reader.read(500)).decode("latin-1"))
        lower = head.lower()
        length = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]) if b"\ncontent-length:" in lower else 0
        await self._reader.readexactly(length)
        return time.perf_counter() - started

    def close(self) -> None:
        self._writer.close()


async def _load(target: Target, body: bytes, header_bytes: int, concurrency: int) -> tuple[float, float]:
    """Median latency in ms and requests a second, closed loop."""
    latencies: list[float] = []
    deadline = time.perf_counter() + SECONDS

    async def one() -> None:
        connection = Connection(target, body, header_bytes)
        await connection.open()
        while time.perf_counter() < deadline:
            latencies.append(await connection.send())
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(concurrency)))
    return 1000 * statistics.median(latencies), len(latencies) / (time.perf_counter() - started)


@asynccontextmanager
async def _floor(model: Path) -> AsyncIterator[Target]:
    probe = listen("127.0.0.1", 0)
    port = probe.getsockname()[1]
    probe.close()
    command = [sys.executable, "-m", "tests.bench.floor", str(model), str(port)]
    with subprocess.Popen(command) as process:
        try:
            for _ in range(200):
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                except OSError:
                    await asyncio.sleep(0.05)
            yield Target("127.0.0.1", port, "/", {})
        finally:
            process.terminate()


def write_mlp(path: Path) -> None:
    """A tiny network (64 -> 32 -> 8): next to nothing to compute, so that what is measured is the way there."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in (("w1", (64, 32)), ("w2", (32, 8)))
    ]
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
             helper.make_node("MatMul", ["r", "w2"], ["y"])]  # fmt: skip
    graph = helper.make_graph(
        nodes, "mlp", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])], weights,
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


async def _serve(client: AsyncModelworks, model: Path) -> str:
    name = f"bench/{model.stem}-{uuid.uuid4().hex[:8]}"
    await client.create_repository(name)
    sha256 = await client.upload(name, model)
    # On a branch of its own, so that no optimization job starts beside the measurement.
    await client.commit(name, message="bench", puts={"model.onnx": sha256}, branch="bench")
    deployment = await client.deploy(name, ref="bench")
    while deployment["status"] == "loading":
        deployment = await client.deployment(name, wait_seconds=10)
    if deployment["status"] != "ready":
        raise RuntimeError(f"{name}: {deployment}")
    return name


def _raw_ms(model: Path, name: str, array: np.ndarray) -> float:
    session = make_session(str(model))
    for _ in range(20):
        session.run(None, {name: array})
    times = []
    deadline = time.perf_counter() + 1
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        session.run(None, {name: array})
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


async def overhead(client: AsyncModelworks, token: str, url: str, folder: Path) -> list[Result]:
    """Both models at concurrency 1, 8 and 32. Goal: p50 at most 2 ms over the floor at concurrency 1."""
    mlp = folder / "mlp.onnx"
    write_mlp(mlp)
    cases = [
        (mlp, Tensor("x", np.ones((1, 64), np.float32))),
        (find_magika().model, Tensor("bytes", np.full((1, 2048), 65, np.int32))),
    ]
    results = []
    place = urlsplit(url)
    assert place.hostname is not None
    assert place.port is not None
    for model, tensor in cases:
        name = await _serve(client, model)
        ours = Target(place.hostname, place.port, f"/oip/v2/models/{name}/infer", {"Authorization": f"Bearer {token}"})
        body, header_bytes = encode_request([tensor])
        raw_ms = await asyncio.to_thread(_raw_ms, model, tensor.name, tensor.array)
        async with _floor(model) as floor:
            for concurrency in (1, 8, 32):
                results += await _compare(model.parent.name + "/" + model.name if model.stem == "model" else model.name,
                                          ours, floor, body, header_bytes, concurrency, raw_ms)  # fmt: skip
    return results


async def _compare(
    label: str, ours: Target, floor: Target, body: bytes, header_bytes: int, concurrency: int, raw_ms: float
) -> list[Result]:
    latency, rate = [], []
    for number in range(ROUNDS + 1):
        order = (ours, floor) if number % 2 else (floor, ours)
        found = {target.path: await _load(target, body, header_bytes, concurrency) for target in order}
        if number:  # the first round warms up
            (mine_ms, mine_rate), (base_ms, base_rate) = found[ours.path], found[floor.path]
            latency.append((mine_ms, base_ms))
            rate.append((mine_rate, base_rate))
    goal = "p50 - floor < 2 ms" if concurrency == 1 else ""
    p50 = summarize(f"predict {label}, concurrency {concurrency}: p50", "ms", latency, "floor server", goal)
    p50.notes["over the floor, ms"] = round(p50.ours - p50.baseline, 2)
    p50.notes["raw session.run, ms"] = round(raw_ms, 3)
    throughput = summarize(f"predict {label}, concurrency {concurrency}: rate", "requests/s", rate, "floor server", "")
    return [p50, throughput]
