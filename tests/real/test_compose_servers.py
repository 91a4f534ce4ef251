"""The servers' settings in `docker-compose.yml`, given to the same servers started natively.

What the images add (users, entry points, health commands) cannot be had without an engine. OpenSearch's security
plugin is in its image only, so its users and roles are read by tests/repo/test_deploy_servers.py and not proven here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import redis
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from modelworks.stores.bus.kafka import KafkaBus
from modelworks.stores.bus.port import Message
from modelworks.stores.settings import StoresSettings

from tests.repo.compose import environment_of, made_env, services
from tests.stack.endpoints import KafkaEndpoint, MinioEndpoint, RedisEndpoint
from tests.stack.errors import Unavailable
from tests.stack.native.kafka import KafkaServer
from tests.stack.native.minio import MinioServer
from tests.stack.native.redis import RedisServer
from tests.stack.plugin import unavailable
from tests.stack.server import Server, free_ports

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(180, func_only=True)]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return made_env(tmp_path_factory.mktemp("env"))


class ComposedKafka(KafkaServer):
    """Kafka with the properties that the image's entry point makes of the container's environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__()
        self._environment = environment

    def configure(self, folder: Path) -> KafkaEndpoint:
        client, controller = free_ports(2)
        lines = []
        for name, value in self._environment.items():
            if name.startswith("KAFKA_") and name != "KAFKA_HEAP_OPTS":
                # The rule of apache/kafka: KAFKA_NODE_ID becomes node.id.
                key = name.removeprefix("KAFKA_").lower().replace("_", ".")
                value = value.replace("kafka:9092", f"127.0.0.1:{client}").replace(
                    "kafka:9093", f"127.0.0.1:{controller}"
                )
                value = value.replace("://:9092", f"://127.0.0.1:{client}").replace(
                    "://:9093", f"://127.0.0.1:{controller}"
                )
                lines.append(f"{key}={value.replace('/var/lib/kafka', str(folder))}\n")
        (folder / "server.properties").write_text("".join(lines))
        return KafkaEndpoint(f"127.0.0.1:{client}")


class ComposedMinio(MinioServer):
    def __init__(self, service: Mapping[str, object], environment: Mapping[str, str]) -> None:
        super().__init__()
        self._service = service
        self._environment = environment

    def configure(self, folder: Path) -> MinioEndpoint:
        (port,) = free_ports(1)
        user, password = self._environment["MINIO_ROOT_USER"], self._environment["MINIO_ROOT_PASSWORD"]
        return MinioEndpoint(f"http://127.0.0.1:{port}", user, password, "modelworks")

    def process_environment(self) -> Mapping[str, str]:
        return self._environment

    def command(self, folder: Path) -> Sequence[str]:
        program, *_ = super().command(folder)
        words = [str(word) for word in self._service["command"]]  # type: ignore[attr-defined]
        address = self.endpoint.url.removeprefix("http://")
        return [program, *(word.replace(":9000", address).replace("/data", str(folder / "data")) for word in words)]


class ComposedRedis(RedisServer):
    def __init__(self, service: Mapping[str, object], environment: Mapping[str, str]) -> None:
        super().__init__()
        self._service = service
        self._environment = environment

    def configure(self, folder: Path) -> RedisEndpoint:
        (self._port,) = free_ports(1)
        return RedisEndpoint(f"redis://:{self._environment['REDIS_PASSWORD']}@127.0.0.1:{self._port}/0")

    def process_environment(self) -> Mapping[str, str]:
        return self._environment

    def command(self, folder: Path) -> Sequence[str]:
        program, *_ = super().command(folder)
        shell, flag, script = (str(word) for word in self._service["command"])  # type: ignore[attr-defined]
        assert script.startswith("exec redis-server ")
        script = script.replace("redis-server", program, 1)
        return [shell, flag, f"{script} --port {self._port} --bind 127.0.0.1"]


def running(server: Server[KafkaEndpoint] | Server[MinioEndpoint] | Server[RedisEndpoint]) -> None:
    try:
        server.start()
    except Unavailable as error:
        unavailable(str(error))


@pytest.fixture(scope="module")
def kafka(env: Mapping[str, str]) -> Iterator[ComposedKafka]:
    server = ComposedKafka(environment_of("kafka", env))
    running(server)
    yield server
    server.stop()


async def test_kafka_serves_our_bus_with_the_properties_of_compose(kafka: ComposedKafka) -> None:
    bus = KafkaBus(StoresSettings(column="real", kafka_bootstrap=kafka.endpoint.bootstrap, kafka_partitions=3))
    tail = bus.tail(["registry.revision-committed.v1"])
    received = asyncio.ensure_future(anext(tail))
    try:
        deadline = time.monotonic() + 60
        while not received.done() and time.monotonic() < deadline:
            # The reader is in place some time after it was asked for; what came before it is not for it.
            await bus.publish([Message(topic="registry.revision-committed.v1", key="a/b", value=b"{}")])
            await asyncio.wait({received}, timeout=0.5)

        assert received.done()
        assert received.result().message.value == b"{}"
    finally:
        received.cancel()
        await bus.close()


async def test_kafka_makes_no_topic_by_itself(kafka: ComposedKafka) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.endpoint.bootstrap, request_timeout_ms=3000)
    await producer.start()
    try:
        with pytest.raises(KafkaError):
            await producer.send_and_wait("misspelt", b"x")
    finally:
        await producer.stop()


def test_minio_serves_with_the_command_and_keys_of_compose(env: Mapping[str, str]) -> None:
    server = ComposedMinio(services(env)["minio"], environment_of("minio", env))
    running(server)
    try:
        server.endpoint.probe()
    finally:
        server.stop()


def test_redis_asks_for_the_password_that_make_env_made(env: Mapping[str, str]) -> None:
    server = ComposedRedis(services(env)["redis"], environment_of("redis", env))
    running(server)
    try:
        server.endpoint.probe()
        with redis.Redis.from_url(server.endpoint.url) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("save") == {"save": ""}
        stranger = server.endpoint.url.replace(f":{env['REDIS_PASSWORD']}@", "")
        with redis.Redis.from_url(stranger) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
    finally:
        server.stop()
