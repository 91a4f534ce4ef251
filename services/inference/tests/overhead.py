"""Measures what the V2 door costs over a bare server. Not a test: `python services/inference/tests/overhead.py`.

Floor: uvicorn with a bare ASGI app that slices the same body, runs the same
session in one thread and writes the same answer; no token, no policy, no
scheduler, no event. Both servers run in processes of their own and are asked in
turns, so that what else the machine does hits both.
"""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS, REQUESTS = 7, 400


def mlp() -> bytes:
    """Two dense layers: a model that costs next to nothing, so that the door's price shows."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = [numpy_helper.from_array(random.standard_normal((32, 32)).astype(np.float32), name) for name in "ab"]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 32]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", [shape[0]], [shape[1]], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def floor_app(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    thread = ThreadPoolExecutor(1)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        length = int(dict(scope["headers"])[b"inference-header-content-length"])
        head = json.loads(body[:length])
        entry = head["inputs"][0]
        x = np.frombuffer(body, "<f4", offset=length).reshape(entry["shape"])
        (y,) = await asyncio.get_running_loop().run_in_executor(thread, session.run, ["y"], {"x": x})
        out = json.dumps(
            {
                "model_name": "m",
                "outputs": [
                    {
                        "name": "y", "datatype": "FP32", "shape": list(y.shape),
                        "parameters": {"binary_data_size": y.nbytes},
                    }
                ],
            }
        ).encode()  # fmt: skip
        answer = out + y.tobytes()
        headers = [
            (b"content-length", str(len(answer)).encode()), (b"inference-header-content-length", str(len(out)).encode())
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


async def serve_ours(sock: socket.socket, folder: Path) -> None:
    here, root = Path(__file__).parent, Path(__file__).parents[3]
    FakeRegistry = load("inference_conftest", here / "conftest.py").FakeRegistry
    shared = load("root_conftest", root / "conftest.py")
    from modelworks.inference.app import Composition, compose
    from modelworks.inference.settings import InferenceSettings
    from modelworks.kit.platform import Platform
    from modelworks.kit.policy import Policy
    from modelworks.kit.telemetry import Telemetry
    from modelworks.kit.tokens import TokenVerifier
    from modelworks.stores.settings import StoresSettings
    from modelworks.stores.stores import open_stores

    issuer = shared.Issuer()
    verifier = TokenVerifier(issuer=shared.ISSUER, audience="api", fetch_keys=issuer.fetch)
    platform = Platform(verifier=verifier, policy=Policy(), telemetry=Telemetry())
    stores = open_stores(StoresSettings(column="embedded", data=folder / "data"), environment="development")
    registry = FakeRegistry()
    registry.commit("acme/mlp", {"model.onnx": mlp()})
    settings = InferenceSettings(client_secret="unused", cache=folder / "cache")
    parts = Composition(stores, settings, platform, source=registry)
    service = compose(parts)
    async with service.run():
        await parts.deploying.deploy("acme/mlp", "main", pinned=False, by="measure")
        while parts.models.peek("acme/mlp") is None:
            await asyncio.sleep(0.05)
        (folder / "token").write_text(issuer.token("measure"))
        await listen(service.app, sock)


async def listen(app: Any, sock: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", server_header=False, date_header=False
    )
    await uvicorn.Server(config).serve(sockets=[sock])


def child(kind: str, descriptor: int, folder: Path) -> None:
    import uvloop

    sock = socket.socket(fileno=descriptor)
    main = serve_ours(sock, folder) if kind == "ours" else listen(floor_app(mlp()), sock)
    uvloop.run(main)


class Client:
    """One keep-alive connection."""

    def __init__(self, port: int, token: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.connection.connect()
        self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        x = np.random.default_rng(1).standard_normal((1, 32)).astype(np.float32)
        head = json.dumps(
            {
                "inputs": [
                    {"name": "x", "shape": [1, 32], "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        self.body = head + x.tobytes()
        self.headers = {"Inference-Header-Content-Length": str(len(head)), "Authorization": f"Bearer {token}"}

    def ask(self) -> float:
        started = time.perf_counter()
        self.connection.request("POST", "/oip/v2/models/acme/mlp/infer", self.body, self.headers)
        answer = self.connection.getresponse()
        data = answer.read()
        took = time.perf_counter() - started
        assert answer.status == 200, data
        return took


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        children, ports = [], {}
        for kind in ("floor", "ours"):
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            sock.listen(128)
            ports[kind] = sock.getsockname()[1]
            command = [sys.executable, __file__, kind, str(sock.fileno()), name]
            children.append(subprocess.Popen(command, pass_fds=[sock.fileno()]))
            sock.close()
        try:
            while not (folder / "token").exists():
                time.sleep(0.1)
            token = (folder / "token").read_text()
            measure({kind: Client(port, token) for kind, port in ports.items()})
        finally:
            for process in children:
                process.terminate()
                process.wait(20)


def measure(clients: dict[str, Client]) -> None:
    for client in clients.values():
        for _ in range(300):
            client.ask()
    p50s: dict[str, list[float]] = {kind: [] for kind in clients}
    for number in range(ROUNDS):
        order = list(clients) if number % 2 else list(reversed(clients))
        for kind in order:
            took = [clients[kind].ask() for _ in range(REQUESTS)]
            p50s[kind].append(statistics.median(took) * 1000)
    for kind, values in p50s.items():
        print(f"{kind}: p50 {statistics.median(values):.3f} ms ({min(values):.3f} to {max(values):.3f})")
    over = [ours - floor for ours, floor in zip(p50s["ours"], p50s["floor"], strict=True)]
    print(
        f"over the floor: {statistics.median(over):.3f} ms ({min(over):.3f} to {max(over):.3f}), "
        f"{ROUNDS} rounds of {REQUESTS}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
