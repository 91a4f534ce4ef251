"""The service in a process of its own, on a data folder, that kills itself (SIGKILL) at a named point, once.

    python serve_and_die.py FOLDER POINT [real]

Points are calls of the registry's port, before or after (`before-commit`), or `working`: while the worker works.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fake_registry import FakeRegistry
from modelworks.kit.platform import Platform
from modelworks.kit.policy import Policy
from modelworks.kit.telemetry import Telemetry
from modelworks.kit.tokens import TokenVerifier
from modelworks.optimizer.app import build
from modelworks.optimizer.measurement import Measurement
from modelworks.optimizer.settings import OptimizerSettings
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import opened

folder, point = Path(sys.argv[1]), sys.argv[2]
marker = folder / "died"


def die() -> None:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class Mortal(FakeRegistry):
    """Dies at the point."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        when, _, call = point.partition("-")
        if name != call:
            return found

        async def lethal(*args: Any, **named: Any) -> Any:
            if when == "before":
                die()
            answer = await found(*args, **named)
            if when == "after":
                die()
            return answer

        return lethal


class Workshop:
    """Instead of a worker: a variant and a prepared measurement, other bytes each time."""

    @asynccontextmanager
    async def folder(self, job: Any) -> Any:
        path = folder / "work" / f"{job.id}.{job.fence}"
        await self.clear(job)
        path.mkdir(parents=True)
        yield path
        shutil.rmtree(path)

    async def clear(self, job: Any) -> None:
        for left in (folder / "work").glob(f"{job.id}.*"):
            shutil.rmtree(left)

    async def work(self, order: Any, tick: Any) -> Measurement:
        into = Path(order.folder) / "variant" / "model.onnx"
        into.parent.mkdir()
        into.write_bytes(os.urandom(16))
        if point == "working":
            die()
        return Measurement.model_validate_json((folder / "measurement.json").read_text())


async def main() -> None:
    settings = OptimizerSettings(
        client_secret="secret", work_folder=folder / "work", evaluation_rounds=5, evaluation_seconds_max=0.2,
        evaluation_samples_max=16, progress_ms_min=10, watch_ms=20,
    )  # fmt: skip

    async def no_keys() -> Any:
        return {"keys": []}

    verifier = TokenVerifier(issuer="http://issuer.test", audience="api", fetch_keys=no_keys)
    platform = Platform(verifier=verifier, policy=Policy(), telemetry=Telemetry())
    workshop: Any = None if "real" in sys.argv else Workshop()
    async with opened(StoresSettings(column="embedded", data=folder / "data")) as stores:
        service = build(stores, settings, platform, models=Mortal(folder / "registry"), workshop=workshop)
        async with service.run():
            (folder / "up").touch()
            while not (folder / "stop").exists():
                await asyncio.sleep(0.02)


asyncio.run(main())
