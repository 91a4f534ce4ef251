"""The four servers as containers, where a Docker engine answers; testcontainers removes what a lost run leaves.

Each container gets a host port of our own choice, because Docker picks a new one at every restart otherwise.
"""

import os
import secrets
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from tests.stack.artifacts import say
from tests.stack.endpoints import Endpoint, KafkaEndpoint, MinioEndpoint, OpenSearchEndpoint, RedisEndpoint
from tests.stack.errors import StackError, StartFailed, Unavailable
from tests.stack.native.kafka import SINGLE_NODE
from tests.stack.server import free_ports, wait_until_ready

E = TypeVar("E", bound=Endpoint)

KAFKA_IMAGE = "apache/kafka:4.4.0"
OPENSEARCH_IMAGE = "opensearchproject/opensearch:3.8.0"
MINIO_IMAGE = "minio/minio:RELEASE.2025-09-07T16-13-09Z"
"""The last release that was published as an image."""
REDIS_IMAGE = "redis:7.4-alpine"

_START_LIMIT = timedelta(seconds=120)
_STOP_LIMIT = timedelta(seconds=15)
_ENGINE_TIMEOUT_S = 1
_TAIL_LINES = 25


@cache
def docker_answers() -> bool:
    """Whether a Docker engine is there; looks for a socket first, which costs nothing where there is none."""
    sockets = [Path("/var/run/docker.sock"), Path.home() / ".docker" / "run" / "docker.sock"]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        sockets.append(Path(runtime) / "docker.sock")
    if not os.environ.get("DOCKER_HOST") and not any(path.exists() for path in sockets):
        return False
    try:
        from testcontainers.core.docker_client import DockerClient

        return bool(DockerClient(timeout=_ENGINE_TIMEOUT_S).client.ping())
    except Exception:  # any answer but yes means that there is no engine to use
        return False


class ContainerServer(Generic[E]):
    """One container and the endpoint at which it serves."""

    origin = "container"

    def __init__(self, make: Callable[[str, int], tuple[Any, E]]) -> None:
        """`make` gets the host's address and a free port; it gives the container, not started, and its endpoint."""
        self._make = make
        self._container: Any = None
        self._endpoint: E | None = None

    @property
    def endpoint(self) -> E:
        if self._endpoint is None:
            raise StackError("a container has no endpoint before it is started")
        return self._endpoint

    def start(self) -> None:
        if self._container is None:
            self._create()
            return
        docker = self._docker()
        docker.reload()
        if docker.status == "paused":
            docker.unpause()
        elif docker.status != "running":
            docker.start()
            self._await_ready()

    def stop(self) -> None:
        container, self._container, self._endpoint = self._container, None, None
        if container is not None:
            container.stop()

    def kill(self) -> None:
        self._docker().kill("SIGKILL")
        self._docker().wait()

    def restart(self) -> None:
        docker = self._docker()
        docker.reload()
        if docker.status == "paused":
            docker.unpause()
        docker.restart(timeout=int(_STOP_LIMIT.total_seconds()))
        self._await_ready()

    def pause(self) -> None:
        self._docker().pause()

    def resume(self) -> None:
        self._docker().unpause()

    def _docker(self) -> Any:
        if self._container is None:
            raise StackError("the container is not started")
        return self._container.get_wrapped_container()

    def _create(self) -> None:
        (port,) = free_ports(1)
        host = os.environ.get("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")
        container, self._endpoint = self._make(host, port)
        self._container = container
        say(f"starting the image {container.image}, pulled where it is missing")
        try:
            container.start()
        except Exception as error:
            self.stop()
            raise Unavailable(f"the image {container.image} cannot be run: {error}") from error
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def _await_ready(self) -> None:
        try:
            wait_until_ready(self.endpoint, _START_LIMIT, self._ended)
        except StartFailed as error:
            lines = self._docker().logs(tail=_TAIL_LINES).decode(errors="replace")
            raise StartFailed(f"{error}. The end of its log:\n{lines}") from None

    def _ended(self) -> str | None:
        docker = self._docker()
        docker.reload()
        return "ended by itself" if docker.status in {"exited", "dead"} else None


def _container(image: str, inner_port: int, port: int) -> Any:
    from testcontainers.core.container import DockerContainer

    return DockerContainer(image).with_bind_ports(inner_port, port)


def kafka(host: str, port: int) -> tuple[Any, KafkaEndpoint]:
    container = _container(KAFKA_IMAGE, 9092, port)
    settings = {
        **SINGLE_NODE,
        "listeners": "PLAINTEXT://0.0.0.0:9092,CONTROLLER://0.0.0.0:9093",
        "advertised.listeners": f"PLAINTEXT://{host}:{port}",
        "controller.quorum.voters": "1@localhost:9093",
    }
    for name, value in settings.items():
        container.with_env("KAFKA_" + name.upper().replace(".", "_"), value)
    container.with_env("KAFKA_HEAP_OPTS", "-Xmx512m")
    return container, KafkaEndpoint(f"{host}:{port}")


def opensearch(host: str, port: int) -> tuple[Any, OpenSearchEndpoint]:
    container = _container(OPENSEARCH_IMAGE, 9200, port)
    settings = {
        "discovery.type": "single-node",
        "cluster.routing.allocation.disk.threshold_enabled": "false",
        "DISABLE_SECURITY_PLUGIN": "true",
        "DISABLE_INSTALL_DEMO_CONFIG": "true",
        "OPENSEARCH_JAVA_OPTS": "-Xms512m -Xmx1g",
    }
    for name, value in settings.items():
        container.with_env(name, value)
    return container, OpenSearchEndpoint(f"http://{host}:{port}")


def minio(host: str, port: int) -> tuple[Any, MinioEndpoint]:
    endpoint = MinioEndpoint(
        url=f"http://{host}:{port}",
        access_key=f"stack-{secrets.token_hex(6)}",
        secret_key=secrets.token_hex(24),
        bucket="modelworks",
    )
    container = _container(MINIO_IMAGE, 9000, port).with_command("server /data --quiet")
    container.with_env("MINIO_ROOT_USER", endpoint.access_key).with_env("MINIO_ROOT_PASSWORD", endpoint.secret_key)
    return container, endpoint


def redis(host: str, port: int) -> tuple[Any, RedisEndpoint]:
    password = secrets.token_hex(24)
    container = _container(REDIS_IMAGE, 6379, port)
    container.with_command(f"redis-server --requirepass {password} --appendonly yes")
    return container, RedisEndpoint(f"redis://:{password}@{host}:{port}/0")
