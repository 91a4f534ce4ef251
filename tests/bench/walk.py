"""From a commit to the first prediction: how long the walk takes, and what the suite costs at rest."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from modelworks.client import AsyncModelworks
from modelworks.client.demo.magika import INPUT, find_magika
from modelworks.client.demo.suite import SuiteProcess
from modelworks.client.tensors import Tensor, encode_request

from tests.bench.floor import make_session
from tests.bench.harness import Result, resident_mb, summarize

ROUNDS = 5


async def commit_to_served(client: AsyncModelworks, folder: Path) -> Result:
    """Commit, deploy, load, first answer; beside reading and running the same file directly."""
    model = find_magika().model
    tensor = Tensor(INPUT, np.full((1, 2048), 65, np.int32))
    body, header_bytes = encode_request([tensor])
    pairs = []
    for number in range(ROUNDS):
        name = f"bench/walk-{time.time_ns()}"
        await client.create_repository(name)
        started = time.perf_counter()
        sha256 = await client.upload(name, model)
        await client.commit(name, message="walk", puts={"model.onnx": sha256}, branch="bench")
        deployment = await client.deploy(name, ref="bench")
        while deployment["status"] == "loading":
            deployment = await client.deployment(name, wait_seconds=10)
        await client.predict_binary(name, body, header_bytes)
        mine = time.perf_counter() - started

        copy = folder / f"walk-{number}.onnx"
        started = time.perf_counter()
        copy.write_bytes(model.read_bytes())
        make_session(str(copy)).run(None, {INPUT: tensor.array})
        pairs.append((1000 * mine, 1000 * (time.perf_counter() - started)))
        await client.undeploy(name)
    return summarize("commit to first prediction", "ms", pairs, "copy, load and run the file directly", "")


def at_rest(suite: SuiteProcess, python_mb: float) -> list[Result]:
    """Readiness and resident memory of the embedded suite with a model loaded."""
    resident = resident_mb(suite.pid)
    ready = summarize("embedded suite: ready", "s", [(suite.ready_seconds, 5.0)], "goal of 5 s", "< 5 s")
    memory = summarize("embedded suite: resident, models loaded", "MB", [(resident, python_mb)], "bare Python with onnxruntime", "< 350 MB")  # fmt: skip
    return [ready, memory]
