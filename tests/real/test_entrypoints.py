"""Every container of ours started as a process of its own, with the environment that `docker-compose.yml` gives it.

Only what no machine without an engine can have is replaced: host names by this machine's ports, the servers'
addresses and keys by those of the native ones, and the volumes by a temporary folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from modelworks.audit.verify import verify_search_answer
from modelworks.client.connection import AdminFile

from tests.flows.test_walk import walk_of
from tests.repo.compose import made_env, raw, services
from tests.repo.dockerfile import stages
from tests.stack.isolation import isolated
from tests.stack.server import free_ports
from tests.stack.stack import Stack

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]

CONTAINERS = ("auth", "registry", "audit", "optimizer", "inference", "edge")
START_SECONDS = 120.0
TOPIC_PARTITIONS = {"STORES_KAFKA_PARTITIONS": "3"}
"""Twelve partitions of thirty topics take a small native Kafka a while to make."""


class Collector:
    """Takes what the services export to the OpenTelemetry collector."""

    def __init__(self) -> None:
        collector = self
        self.exports = 0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                collector.exports += self.path == "/v1/traces"
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


OWN = ("STORES_S3_BUCKET", "STORES_OPENSEARCH_PREFIX")
"""What sets this suite apart from others on the same servers."""


def _of_the_image() -> dict[str, str]:
    """What the image sets for every process in it, the paths aside."""
    words = [word for item in stages()["runtime"].all("ENV") for word in item.arguments.split()]
    pairs = (word.split("=", 1) for word in words)
    return {name: value for name, value in pairs if name != "PATH"}


class Containers:
    """The six, as processes."""

    def __init__(self, folder: Path, servers: Mapping[str, str], collector: Collector) -> None:
        self.folder = folder
        self.secrets = made_env(folder)
        self.ports = dict(zip(CONTAINERS, free_ports(len(CONTAINERS)), strict=True))
        self.url = f"http://127.0.0.1:{self.ports['edge']}"
        self._servers = servers
        self._collector = collector
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._found = services({**self.secrets, "MODELWORKS_PUBLIC_URL": self.url})

    def environment(self, name: str) -> dict[str, str]:
        """The container's, for a process on this machine."""
        values = {key: str(value) for key, value in self._found[name]["environment"].items()}
        for key, value in values.items():
            for other, port in self.ports.items():
                value = value.replace(f"http://{other}:8080", f"http://127.0.0.1:{port}")
            value = value.replace("otel-collector:4318", self._collector.address)
            values[key] = value.replace("/var/lib/modelworks", str(self.folder / name))
        replaced = {key: value for key, value in self._servers.items() if key in values or key in OWN}
        return {
            **values, **replaced, **TOPIC_PARTITIONS, "MODELWORKS_HOST": "127.0.0.1",
            "MODELWORKS_PORT": str(self.ports[name]), "PATH": os.environ["PATH"],
        }  # fmt: skip

    def start(self, name: str) -> None:
        """With the image's own command, by this interpreter."""
        work = self.folder / name
        work.mkdir(exist_ok=True)
        (command,) = stages()[name].all("CMD")
        with self.log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, *command.words[1:]], cwd=work, env=self.environment(name), stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def ended(self) -> dict[str, str]:
        """Who ended by itself, with the end of its log."""
        return {
            name: self.log(name).read_text("utf-8", "replace")[-3000:]
            for name, process in self._processes.items()
            if process.poll() is not None
        }

    def stop(self, name: str) -> tuple[int, float]:
        """Ask it to end as an engine does; its exit status, and the seconds it took."""
        process, started = self._processes[name], time.monotonic()
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        return status, time.monotonic() - started

    def kill(self) -> None:
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def until(condition: Callable[[], Any], *, within: float, tell: Callable[[], object]) -> Any:
    deadline = time.monotonic() + within
    while not (found := condition()):
        assert time.monotonic() < deadline, tell()
        time.sleep(0.1)
    return found


def ready(url: str) -> Any:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).json()
    return {}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def suite(stack: Stack, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """All six, started in the worst order: the door first, auth last."""
    containers = Containers(tmp_path_factory.mktemp("suite"), isolated(stack.environment()), collector)
    try:
        for name in reversed(CONTAINERS):
            containers.start(name)
        until(
            lambda: containers.ended() or ready(containers.url).get("status") == "ready",
            within=START_SECONDS, tell=lambda: ready(containers.url),
        )  # fmt: skip
        assert containers.ended() == {}
        yield containers
    finally:
        containers.kill()


def test_door_says_ready_when_every_service_is(suite: Containers) -> None:
    answer = ready(suite.url)

    assert answer["status"] == "ready"
    assert {"auth", "registry", "optimizer", "inference", "audit"} <= set(answer["checks"])


@pytest.mark.parametrize("name", CONTAINERS)
def test_service_passes_the_health_check_of_its_container(suite: Containers, name: str) -> None:
    """The very command that compose runs inside the container, pointed at this machine's port."""
    _, program, *words = raw()["services"][name]["healthcheck"]["test"]
    words = [word.replace("8080", str(suite.ports[name])) for word in words]

    assert program == "python"
    assert subprocess.run([sys.executable, *words], check=False, timeout=10).returncode == 0


@pytest.fixture
def administrator(suite: Containers) -> Iterator[httpx.Client]:
    """With the secret that `make env` made."""
    with httpx.Client(base_url=suite.url, timeout=30, trust_env=False) as http:
        answer = http.post(
            "/oauth/token",
            data={"grant_type": "client_credentials"},
            auth=("admin", suite.secrets["AUTH_ADMIN_CLIENT_SECRET"]),
        )
        assert answer.status_code == 200, answer.text
        http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        yield http


@pytest.mark.parametrize(
    "path",
    ["/api/v1/clients", "/api/v1/repositories", "/api/v1/optimizations", "/api/v1/deployments", "/api/v1/audit/events",
     "/api/v1/dead-letters", "/metrics"],
)  # fmt: skip
def test_every_service_answers_the_administrator_through_the_door(administrator: httpx.Client, path: str) -> None:
    assert administrator.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/api/v1/clients", "/api/v1/repositories", "/api/v1/audit/events", "/metrics"])
def test_nobody_answers_a_stranger(suite: Containers, path: str) -> None:
    assert httpx.get(suite.url + path, trust_env=False).status_code == 401


@pytest.mark.parametrize("name", ["optimizer", "inference"])
def test_services_log_in_with_the_secrets_that_compose_gives_both_sides(suite: Containers, name: str) -> None:
    environment = suite.environment(name)
    prefix = name.upper()

    answer = httpx.post(
        environment[f"{prefix}_TOKEN_URL"],
        data={"grant_type": "client_credentials"},
        auth=(environment[f"{prefix}_CLIENT_ID"], environment[f"{prefix}_CLIENT_SECRET"]),
        trust_env=False,
    )

    assert answer.status_code == 200, answer.text


def test_audit_signs_with_the_key_that_make_env_made(administrator: httpx.Client, suite: Containers) -> None:
    served = administrator.get("/api/v1/audit/key").text

    name, digest = suite.secrets["AUDIT_SIGNING_KEY"].removeprefix("PRIVATE+KEY+").split("+")[:2]
    assert served.startswith(f"{name}+{digest}+")


async def test_model_goes_the_whole_way_in_this_environment(suite: Containers, tmp_path: Path) -> None:
    """Publish, optimize, deploy, predict, ask by event, be refused, and find it all in the audit."""
    admin = AdminFile(suite.url, f"{suite.url}/oauth/token", "admin", suite.secrets["AUTH_ADMIN_CLIENT_SECRET"])
    walk = walk_of(suite.url, admin, tmp_path / "work")

    await walk.log_in()
    await walk.publish()
    await walk.optimize(lambda _: None)
    await walk.deploy()
    await walk.predict()
    await walk.answer_event()
    await walk.refuse()
    await walk.audit(verify_search_answer)
    await walk.close()

    assert walk.found["proofs"] > 8


def test_spans_are_exported(administrator: httpx.Client, collector: Collector) -> None:
    administrator.get("/api/v1/repositories")

    until(lambda: collector.exports, within=30, tell=lambda: "nothing was exported")


def test_logs_are_json_and_hold_no_secret(suite: Containers) -> None:
    logged = {name: suite.log(name).read_text("utf-8") for name in CONTAINERS}

    for name, text in logged.items():
        lines = text.splitlines()
        assert lines, name
        assert all(line.startswith("{") for line in lines), [line for line in lines if not line.startswith("{")][:3]
        for key, secret in suite.secrets.items():
            if key != "S3_ACCESS_KEY":
                assert secret not in text, f"{key} in the log of {name}"


def test_service_restarts_after_a_kill_as_compose_would_restart_it(
    suite: Containers, administrator: httpx.Client
) -> None:
    suite._processes["registry"].kill()
    suite._processes["registry"].wait(10)
    down = administrator.get("/api/v1/repositories")

    suite.start("registry")
    until(lambda: ready(suite.url).get("status") == "ready", within=START_SECONDS, tell=lambda: ready(suite.url))

    assert down.status_code == 503
    assert administrator.get("/api/v1/repositories").status_code == 200


def test_embedded_column_is_refused_with_this_environment(suite: Containers) -> None:
    """`production`, as compose gives it, and no real servers: the laptop's adapters must not start by mistake."""
    environment = suite.environment("registry") | {"STORES_COLUMN": "embedded", "MODELWORKS_PORT": "0"}

    ended = subprocess.run(
        [sys.executable, "-m", "modelworks.registry"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 1
    assert "STORES_COLUMN=real" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_every_service_stops_on_sigterm_within_its_grace_time(suite: Containers) -> None:
    """Last: it ends the suite. The door stops first, as compose stops who depends on others first."""
    took: dict[str, float] = {}
    for name in reversed(CONTAINERS):
        grace = float(raw()["services"][name]["stop_grace_period"].removesuffix("s"))
        status, took[name] = suite.stop(name)
        assert status == 0, f"{name}: {suite.log(name).read_text()[-2000:]}"
        assert took[name] < grace / 2, took

    assert all("Traceback" not in suite.log(name).read_text() for name in CONTAINERS if name != "registry")
