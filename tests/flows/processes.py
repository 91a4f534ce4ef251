"""The suite as it is deployed: each service in a process of its own, on real servers, behind the edge."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
from modelworks.audit.tlog.note import generate_key
from modelworks.client.connection import AdminFile
from modelworks.kit.service import listen

NAMES = ("auth", "registry", "audit", "optimizer", "inference", "edge")
_CALLERS = ("optimizer", "inference")


def free_port() -> int:
    """A port that was free a moment ago."""
    sock = listen("127.0.0.1", 0)
    port: int = sock.getsockname()[1]
    sock.close()
    return port


class ServiceProcesses:
    """Six processes; each can be killed and started again by name."""

    def __init__(self, folder: Path, stores: Mapping[str, str], *, trace_file: Path | None = None) -> None:
        """`stores`: the STORES_* variables of the real servers."""
        self._folder = folder
        self._ports = {name: free_port() for name in NAMES}
        self.url = f"http://127.0.0.1:{self._ports['edge']}"
        self.admin = AdminFile(self.url, f"{self.url}/oauth/token", "admin", secrets.token_urlsafe(32))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        callers = {name: secrets.token_urlsafe(32) for name in _CALLERS}
        urls = {name: f"http://127.0.0.1:{port}" for name, port in self._ports.items()}
        shared = {
            **stores,
            "MODELWORKS_ISSUER": self.url,
            "MODELWORKS_JWKS_URL": f"{urls['auth']}/.well-known/jwks.json",
            "MODELWORKS_LOG_FORMAT": "json",
            "MODELWORKS_ENVIRONMENT": "production",
            "STORES_KAFKA_PARTITIONS": "4",
            **({"MODELWORKS_TRACE_FILE": str(trace_file)} if trace_file else {}),
        }
        own: dict[str, dict[str, str]] = {
            "auth": {
                "AUTH_MASTER_KEY": secrets.token_urlsafe(32),
                "AUTH_ADMIN_CLIENT_SECRET": self.admin.client_secret,
                "AUTH_SERVICE_CLIENTS": json.dumps(
                    {name: {"secret": secret, "roles": ["service"]} for name, secret in callers.items()}
                ),
            },
            "registry": {},
            "audit": {"AUDIT_SIGNING_KEY": generate_key("modelworks-audit")},
            "edge": {f"EDGE_{name.upper()}_URL": urls[name] for name in NAMES if name != "edge"},
        }
        for name in _CALLERS:
            prefix = name.upper()
            own[name] = {
                f"{prefix}_REGISTRY_URL": urls["registry"],
                f"{prefix}_TOKEN_URL": f"{urls['auth']}/oauth/token",
                f"{prefix}_CLIENT_ID": name,
                f"{prefix}_CLIENT_SECRET": callers[name],
            }
        own["optimizer"]["OPTIMIZER_WORK_FOLDER"] = str(folder / "optimizer")
        own["inference"]["INFERENCE_CACHE"] = str(folder / "models")
        self._environments = {
            name: {**os.environ, **shared, "MODELWORKS_PORT": str(self._ports[name]), **own[name]} for name in NAMES
        }

    def start(self, *names: str) -> None:
        """Start the named services, or all, and wait until each is ready."""
        for name in names or NAMES:
            log = (self._folder / f"{name}.log").open("ab")
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", f"modelworks.{name}"],
                env=self._environments[name], stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            log.close()
        for name in names or NAMES:
            self._wait(name)

    def kill(self, name: str) -> None:
        """End a service as a power cut would."""
        self._processes[name].kill()
        self._processes[name].wait(10)

    def stop(self) -> dict[str, int]:
        """Ask all to end; returns their exit statuses."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        statuses = {}
        for name, process in self._processes.items():
            try:
                statuses[name] = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                statuses[name] = process.wait(10)
        return statuses

    def log(self, name: str) -> str:
        """The end of a service's log."""
        return (self._folder / f"{name}.log").read_text("utf-8", "replace")[-3000:]

    def _wait(self, name: str, within_seconds: float = 60) -> None:
        deadline = time.monotonic() + within_seconds
        answer = "no answer"
        while time.monotonic() < deadline:
            if self._processes[name].poll() is not None:
                raise AssertionError(f"{name} ended with {self._processes[name].returncode}:\n{self.log(name)}")
            try:
                response = httpx.get(f"http://127.0.0.1:{self._ports[name]}/readyz", timeout=5)
                if response.status_code == 200:
                    return
                answer = response.text
            except httpx.HTTPError as error:
                answer = repr(error)
            time.sleep(0.1)
        raise AssertionError(f"{name} is not ready after {within_seconds} s: {answer}\n{self.log(name)}")
