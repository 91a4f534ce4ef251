"""The service in a process of its own, to be killed: `crash_child.py ROOT FOLDER`. Prints its address when it listens."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from modelworks.inference.app import Composition, compose
from modelworks.inference.settings import InferenceSettings
from modelworks.kit.logging import configure_logging
from modelworks.kit.platform import Platform
from modelworks.kit.policy import Policy
from modelworks.kit.telemetry import Telemetry
from modelworks.kit.tokens import TokenVerifier
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import open_stores


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"crash_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


async def main(root: Path, folder: Path) -> None:
    issuer = load(root / "conftest.py").Issuer()
    registry = load(Path(__file__).parent / "conftest.py").FakeRegistry()
    for file in sorted((folder / "models").iterdir()):
        registry.commit(f"acme/{file.stem}", {"model.onnx": file.read_bytes()})
    verifier = TokenVerifier(issuer="http://issuer.test", audience="api", fetch_keys=issuer.fetch)
    platform = Platform(verifier=verifier, policy=Policy(), telemetry=Telemetry())
    stores = open_stores(StoresSettings(column="embedded", data=folder / "data"), environment="development")
    settings = InferenceSettings(client_secret="unused", cache=folder / "cache", slots=1, reconcile_seconds=0.2)
    parts = Composition(stores, settings, platform, source=registry)
    service = compose(parts)
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(128)
    config = uvicorn.Config(service.app, log_config=None, access_log=False, lifespan="off")
    async with service.run():
        serving = asyncio.create_task(uvicorn.Server(config).serve(sockets=[sock]))
        print(sock.getsockname()[1], issuer.token("crash"), flush=True)
        await serving


if __name__ == "__main__":
    configure_logging(style="json")
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
