"""A registry in memory, small ONNX models, and the service on a loopback port."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from modelworks.events import BY_TOPIC
from modelworks.inference.app import Composition, compose
from modelworks.inference.domain import Artifact
from modelworks.inference.ports import Ownership, SourceRevision
from modelworks.inference.settings import InferenceSettings
from modelworks.kit.errors import NotFound, Unavailable
from modelworks.kit.platform import Platform
from modelworks.kit.service import Service
from modelworks.stores.outbox import envelope_of
from modelworks.stores.stores import Stores
from onnx import TensorProto, checker, helper, numpy_helper

FLOAT = TensorProto.FLOAT


class FakeRegistry:
    """The ModelSource port: repositories, commits and refs in memory, and damage on request."""

    def __init__(self) -> None:
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}
        self.refs: dict[tuple[str, str], str] = {}
        self.private: dict[str, str] = {}
        self.damaged = False
        self.down = False
        self.downloads = 0

    def commit(self, model: str, files: Mapping[str, bytes], *, ref: str = "main") -> str:
        names = "".join(f"{path}{hashlib.sha256(data).hexdigest()}" for path, data in sorted(files.items()))
        revision = hashlib.sha1(f"{model}{len(self.commits)}{names}".encode()).hexdigest()
        self.commits[model, revision] = dict(files)
        self.refs[model, ref] = revision
        return revision

    async def ownership(self, model: str) -> Ownership:
        self._up()
        if not any(name == model for name, _ in self.commits):
            raise NotFound(f"no repository {model!r}")
        return Ownership(private=model in self.private, owner=self.private.get(model, "somebody"))

    async def resolve(self, model: str, ref: str) -> SourceRevision:
        self._up()
        revision = self.refs.get((model, ref), ref)
        files = self.commits.get((model, revision))
        if files is None:
            raise NotFound(f"no ref {ref!r} in {model}")
        tree = {path: (hashlib.sha256(data).hexdigest(), len(data)) for path, data in files.items()}
        return SourceRevision(model, revision, tree)

    async def read(self, model: str, revision: str, path: str, *, bytes_max: int) -> bytes:
        self._up()
        try:
            return self.commits[model, revision][path]
        except KeyError as error:
            raise NotFound(f"no file {path!r}") from error

    async def download(self, model: str, revision: str, artifact: Artifact, into: Path) -> None:
        self._up()
        self.downloads += 1
        data = self.commits[model, revision][artifact.path]
        if self.damaged:
            data = data[:-1] + b"!"
        if hashlib.sha256(data).hexdigest() != artifact.sha256:
            raise Unavailable(f"{artifact.path} was damaged on the way")
        into.write_bytes(data)

    def _up(self) -> None:
        if self.down:
            raise Unavailable("the registry does not answer")


def _serialized(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: list[Any] | None = None
) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    return model.SerializeToString()


class Onnx:
    """Small models."""

    info = staticmethod(helper.make_tensor_value_info)

    def affine(self, *, factor: float = 2.0, shift: float = 1.0, width: int = 3) -> bytes:
        """y = factor * x + shift, FP32 [n, width]."""
        return _serialized(
            [helper.make_node("Mul", ["x", "f"], ["m"]), helper.make_node("Add", ["m", "s"], ["y"])],
            [self.info("x", FLOAT, ["n", width])],
            [self.info("y", FLOAT, ["n", width])],
            [
                numpy_helper.from_array(np.array(factor, np.float32), "f"),
                numpy_helper.from_array(np.array(shift, np.float32), "s"),
            ],
        )

    def identity(self, kind: int, shape: list[Any] | None = None) -> bytes:
        """y = x of any type."""
        shape = shape or ["batch", "k"]
        return _serialized(
            [helper.make_node("Identity", ["x"], ["y"])], [self.info("x", kind, shape)], [self.info("y", kind, shape)]
        )

    def lookup(self, rows: int = 4) -> bytes:
        """y = table[x]; fails for an index that the table does not have."""
        table = np.arange(rows, dtype=np.float32) * 10
        return _serialized(
            [helper.make_node("Gather", ["t", "x"], ["y"])],
            [self.info("x", TensorProto.INT64, ["n", 1])],
            [self.info("y", FLOAT, ["n", 1])],
            [numpy_helper.from_array(table, "t")],
        )

    def total(self) -> bytes:
        """The sum of all rows: its output has no batch dimension of its own, though it claims one."""
        return _serialized(
            [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)],
            [self.info("x", FLOAT, ["n", 2])],
            [self.info("y", FLOAT, ["m", 1])],
        )

    def pair(self) -> bytes:
        """sum = a + b, difference = a - b."""
        both = [self.info("a", FLOAT, ["n", 2]), self.info("b", FLOAT, ["n", 2])]
        return _serialized(
            [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
            both,
            [self.info("sum", FLOAT, ["n", 2]), self.info("difference", FLOAT, ["n", 2])],
        )

    def slow(self, *, layers: int = 400, width: int = 768) -> bytes:
        """Many matrix products in a row: a run that takes a while and can be stopped between nodes."""
        weights = numpy_helper.from_array((np.eye(width) * 0.999).astype(np.float32), "w")
        nodes = [
            helper.make_node("MatMul", ["x" if n == 0 else f"h{n}", "w"], ["y" if n == layers - 1 else f"h{n + 1}"])
            for n in range(layers)
        ]
        return _serialized(
            nodes, [self.info("x", FLOAT, ["n", width])], [self.info("y", FLOAT, ["n", width])], [weights]
        )


@pytest.fixture
def onnx_models() -> Onnx:
    return Onnx()


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def magika_model() -> bytes:
    """The real model that the package magika ships: INT32 [n, 2048] -> FP32 [n, 214]."""
    spec = importlib.util.find_spec("magika")
    if spec is None or spec.origin is None:
        pytest.skip("the package magika is not installed")
    return next(Path(spec.origin).parent.rglob("model.onnx")).read_bytes()


@pytest.fixture
def settings(tmp_path: Path) -> InferenceSettings:
    return InferenceSettings(
        client_secret="unused",
        worker="worker-1",
        cache=tmp_path / "cache",
        slots=2,
        reconcile_seconds=0.2,
        cancel_poll_ms=20,
        completions_flush_ms=5,
        drain_seconds=5,
    )


@dataclass
class Running:
    """The service behind a loopback port."""

    service: Service
    parts: Composition
    http: httpx.AsyncClient
    address: str
    """host:port"""
    events: list[Any] = field(default_factory=list)


Serve = Callable[..., Any]


@pytest.fixture
def serve(
    stores: Stores, settings: InferenceSettings, platform: Platform, registry: FakeRegistry, issuer: Any
) -> Serve:
    """`async with serve() as running`: the whole service, listening."""

    @asynccontextmanager
    async def start(*, loader: Any = None, **changes: Any) -> AsyncIterator[Running]:
        wanted = settings.model_copy(update=changes)
        parts = Composition(stores, wanted, platform, source=registry, loader=loader)
        service = compose(parts)
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        config = uvicorn.Config(service.app, log_config=None, access_log=False, lifespan="off")
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        async with service.run():
            task = asyncio.create_task(server.serve(sockets=[sock]))
            while not server.started:
                await asyncio.sleep(0.005)
            address = f"127.0.0.1:{sock.getsockname()[1]}"
            async with httpx.AsyncClient(base_url=f"http://{address}", headers=issuer.headers(), timeout=30) as http:
                yield Running(service, parts, http, address)
            server.should_exit = True
            await task

    return start


@pytest.fixture
def deploy(registry: FakeRegistry) -> Callable[..., Any]:
    """`await deploy(running, name, model_bytes)`: commits it, serves it and waits; returns the revision."""

    async def do(running: Running, model: str, data: bytes, *, card: str = "", **body: Any) -> str:
        files = {"model.onnx": data, **({"README.md": card.encode()} if card else {})}
        revision = registry.commit(model, files)
        answer = await running.http.post("/api/v1/deployments", json={"model": model, **body})
        assert answer.status_code == 202, answer.text
        answer = await running.http.get(f"/api/v1/deployments/{model}", headers={"Prefer": "wait=20"})
        assert answer.json()["status"] == "ready", answer.text
        return revision

    return do


@pytest.fixture
async def heard(stores: Stores) -> AsyncIterator[Callable[..., list[Any]]]:
    """`heard(EventClass)`: the events of a class published since the test began, as envelopes."""
    envelopes: list[Any] = []

    async def listen() -> None:
        async for delivery in stores.bus.tail(sorted(BY_TOPIC)):
            envelopes.append(envelope_of(delivery.message))  # noqa: PERF401 - it never ends

    listening = asyncio.create_task(listen())
    # The reader must be in place before anything is published.
    await asyncio.sleep(0.05)
    yield lambda kind: [envelope for envelope in envelopes if isinstance(envelope.event, kind)]
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
