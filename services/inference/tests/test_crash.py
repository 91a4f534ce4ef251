"""The worker killed with -9 in the middle of its work, and started again on the same data."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from modelworks.stores.bus.port import Subscription
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import open_stores

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


class Child:
    """A running service process."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(Path(__file__).parent / "crash_child.py"), str(ROOT), str(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=(folder / "log").open("a"), text=True)
        assert self.process.stdout is not None
        line = ""
        while not line.strip().startswith(tuple("0123456789")) or len(line.split()) != 2:
            line = self.process.stdout.readline()
            assert line, "the service did not start"
        port, token = line.split()
        self.http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {token}"}, timeout=30
        )

    async def kill(self) -> None:
        self.process.kill()
        await asyncio.to_thread(self.process.wait)
        await self.http.aclose()


async def test_killed_worker_loses_no_job_and_repeats_no_result(
    tmp_path: Path, onnx_models: Any, eventually: Any
) -> None:
    """INVARIANT: every accepted job ends exactly once, however often its worker is killed."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "slow.onnx").write_bytes(onnx_models.slow(layers=40, width=256))
    row = {"name": "x", "shape": [8, 256], "datatype": "FP32", "data": [1] * (8 * 256)}
    body = {"model": "acme/slow", "inputs": [row]}
    child = Child(tmp_path)
    accepted: list[str] = []
    try:
        answer = await child.http.post("/api/v1/deployments", json={"model": "acme/slow"})
        assert answer.status_code == 202, answer.text
        for number in range(30):
            answer = await child.http.post("/api/v1/jobs", json=body)
            accepted.append(answer.json()["id"])
            if number % 10 == 9:
                await child.kill()
                child = Child(tmp_path)

        async def all_ended() -> bool:
            page = (await child.http.get("/api/v1/jobs", params={"limit": 200})).json()
            return {job["id"] for job in page["items"] if job["status"] == "succeeded"} >= set(accepted)

        await eventually(all_ended, within=60, every=0.2)
        deployment = (await child.http.get("/api/v1/deployments/acme/slow", headers={"Prefer": "wait=20"})).json()
    finally:
        await child.kill()

    stores = open_stores(StoresSettings(column="embedded", data=tmp_path / "data"), environment="development")
    told: Counter[str] = Counter()
    ids: set[str] = set()

    async def count(deliveries: Any) -> None:
        for delivery in deliveries:
            told[json.loads(delivery.message.value)["job"]] += 1
            ids.add(delivery.message.headers["ce_id"])

    topic = "inference.prediction-completed.v1"
    await stores.bus.subscribe(Subscription(group="counter", topics=(topic,), handler=count))

    async def read() -> bool:
        return sum(lag.messages for lag in await stores.bus.lag("counter")) == 0 and bool(told)

    await eventually(read, within=20)
    await stores.close()
    # An event may be published twice (a crash between publishing and clearing it): then under the same id.
    assert set(told) == set(accepted)
    assert len(ids) == len(accepted)
    assert deployment["status"] == "ready"
