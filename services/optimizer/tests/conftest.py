"""Models made on the spot, the registry's port in a folder, and the service composed on the embedded column."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from modelworks.kit.platform import Platform
from modelworks.kit.service import Service
from modelworks.optimizer.app import build
from modelworks.optimizer.measurement import (
    Agreement,
    CandidateMeasurement,
    Inputs,
    Latency,
    Machine,
    Measurement,
    OutputAgreement,
    Profile,
    Size,
    TargetMeasurement,
)
from modelworks.optimizer.passes import PASSES
from modelworks.optimizer.settings import OptimizerSettings
from modelworks.stores.stores import Stores


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"optimizer_tests_{name}", Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fake_registry = _load("fake_registry")
onnx_models = _load("onnx_models")


@pytest.fixture
def models() -> ModuleType:
    """Functions that make small ONNX models as bytes."""
    return onnx_models


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    return fake_registry.FakeRegistry(tmp_path / "registry")


@pytest.fixture(scope="session")
def magika_model() -> Path:
    """The real model that the `magika` package ships: file bytes to file types."""
    spec = importlib.util.find_spec("magika")
    assert spec is not None, "install the test requirements: `magika` ships the real model of these tests"
    assert spec.origin is not None
    return Path(spec.origin).parent / "models" / "standard_v3_3" / "model.onnx"


@pytest.fixture(scope="session")
def magika_inputs() -> np.ndarray[Any, np.dtype[np.int32]]:
    """96 real files of this Python, as magika reads them: `[96, 2048]`."""
    from modelworks.optimizer.evaluation.inputs import tokens
    from modelworks.optimizer.manifest import FileBytes

    rule = FileBytes(kind="file-bytes", first=1024, last=1024, padding=256, strip=True)
    files = sorted(path for path in Path(np.__file__).parent.rglob("*") if path.is_file() and path.stat().st_size > 64)
    chosen = files[:: max(1, len(files) // 96)][:96]
    return np.array([tokens(path.read_bytes(), rule) for path in chosen], dtype=np.int32)


@pytest.fixture
def settings(tmp_path: Path) -> OptimizerSettings:
    """Little measuring, quick looks."""
    return OptimizerSettings(
        client_secret="secret", work_folder=tmp_path / "work", evaluation_rounds=5, evaluation_seconds_max=0.3,
        evaluation_samples_max=64, progress_ms_min=10, watch_ms=20, worker_seconds_max=60,
    )  # fmt: skip


Compose = Callable[..., Any]


@pytest.fixture
def compose(stores: Stores, platform: Platform, registry: Any, settings: OptimizerSettings) -> Compose:
    """`async with compose(workshop=..., **settings) as service:` the service, running."""

    @asynccontextmanager
    async def composed(*, workshop: Any = None, telemetry: Any = None, **changed: Any) -> AsyncIterator[Service]:
        ground = platform if telemetry is None else replace(platform, telemetry=telemetry)
        service = build(stores, settings.model_copy(update=changed), ground, models=registry, workshop=workshop)
        async with service.run():
            yield service

    return composed


@pytest.fixture
def measured() -> Callable[..., Measurement]:
    """A measurement with the given figures."""

    def make(
        *, size: float = 3.8, latency: float = 0.6, agreement: float = 1.0, samples: int = 600, source: Any = "repository",
        cosine: float | None = None, flags: tuple[str, ...] = ("avx2",), bad_original: int = 0, path: str = "model.onnx",
        batched: float | None = None,
    ) -> Measurement:  # fmt: skip
        def point(batch: int, ratio: float) -> Latency:
            return Latency(
                batch=batch, threads=1, rounds=15, runs=4, original_ms=4.0 * batch, variant_ms=4.0 * batch * ratio,
                ratio=ratio, ratio_low=ratio * 0.98, ratio_high=ratio * 1.02, spread=0.02, load_average=0.4, cpu_share=1.0,
            )  # fmt: skip

        dot = next((flag for flag in flags if "vnni" in flag), None)
        target = TargetMeasurement(
            path=path,
            candidates=(CandidateMeasurement(name="int8", facts={}, size_ratio=size, chosen=True),),
            inputs=Inputs(source=source, description="evaluation/inputs.npz", samples=samples),
            size=Size(original_bytes=3_800_000, variant_bytes=int(3_800_000 / size), ratio=size),
            latency=(point(1, latency), point(8, latency if batched is None else batched)),
            agreement=Agreement(
                samples=samples, batch=8, agreement=agreement, cosine_mean=cosine, original_not_finite=bad_original,
                variant_not_finite=0,
                outputs=(OutputAgreement(name="probabilities", kind="classes", declared=True, agreement=agreement),),
            ),
            profile=Profile(
                original=({"operator": "Conv", "ms": 3.0},), variant=({"operator": "ConvInteger", "ms": 3.0 + 4 * (latency - 1)},)
            ),
        )  # fmt: skip
        machine = Machine(cpu="test", architecture="x86_64", cores=2, flags=flags, flags_known=True, int8_dot=dot)
        return Measurement(targets=(target,), machine=machine, versions={}, seconds=1.0, memory_bytes_peak=1)

    return make


class FakeWorkshop:
    """See `ports.Workshop`: writes a variant of its own and answers with a prepared measurement."""

    def __init__(self, folder: Path, answer: Any) -> None:
        self.root = folder
        self.answer = answer
        """A measurement, an exception, or an async function of (order, tick)."""
        self.orders: list[Any] = []

    @asynccontextmanager
    async def folder(self, job: Any) -> AsyncIterator[Path]:
        path = self.root / f"{job.id}.{job.fence}"
        path.mkdir(parents=True)
        yield path

    async def clear(self, job: Any) -> None:
        pass

    async def work(self, order: Any, tick: Any) -> Measurement:
        self.orders.append(order)
        for target in order.targets:
            into = Path(order.folder) / "variant" / PASSES[order.pass_name].takes.variant_path(target)
            into.parent.mkdir(parents=True, exist_ok=True)
            into.write_bytes(b"variant of " + (Path(order.folder) / "source" / target).read_bytes())
        if isinstance(self.answer, Exception):
            raise self.answer
        if callable(self.answer):
            return await self.answer(order, tick)
        return self.answer


@pytest.fixture
def fake_workshop(tmp_path: Path) -> Callable[[Any], FakeWorkshop]:
    return lambda answer: FakeWorkshop(tmp_path / "fake-work", answer)
