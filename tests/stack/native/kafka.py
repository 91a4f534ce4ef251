"""Kafka as one KRaft node: broker and controller in one JVM."""

import base64
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.stack import artifacts
from tests.stack.endpoints import KafkaEndpoint
from tests.stack.native.server import NativeServer
from tests.stack.server import free_ports

SINGLE_NODE: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # Topics are made by the deploy step with their partition counts; a misspelt name must fail.
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    # One node cannot hold the three copies that are the default. Share groups fail without a word to the client.
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # Fifty partitions each are the default, made at the first use while a test waits.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
    # A broker that was killed may register again only when its last session has ended: 9 s by default.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # Tests of a lost consumer need not wait for the default floor of 6 s.
    "group.min.session.timeout.ms": "1000",
}
"""Settings that hold for a single node, native or in a container, without addresses and folders."""

_JAVA_MINIMUM = 17


class KafkaServer(NativeServer[KafkaEndpoint]):
    name = "kafka"

    @staticmethod
    def fetch() -> None:
        artifacts.java(_JAVA_MINIMUM)
        artifacts.jars("kafka").fetch()

    def configure(self, folder: Path) -> KafkaEndpoint:
        client, controller = free_ports(2)
        settings = {
            **SINGLE_NODE,
            "listeners": f"PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "log.dirs": str(folder / "data"),
        }
        lines = [f"{name}={value}\n" for name, value in settings.items()]
        (folder / "server.properties").write_text("".join(lines))
        return KafkaEndpoint(f"127.0.0.1:{client}")

    def preparation(self, folder: Path) -> Sequence[str]:
        # An id that begins with a dash would be read as an option: one start in 64 failed.
        cluster = "M" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
        return [
            *self._java(),
            "kafka.tools.StorageTool",
            "format",
            "-t",
            cluster,
            "-c",
            str(folder / "server.properties"),
        ]

    def command(self, folder: Path) -> Sequence[str]:
        return [*self._java(), "kafka.Kafka", str(folder / "server.properties")]

    def _java(self) -> list[str]:
        # Compiling with C1 only starts a third sooner (2.5 s against 3.7 s on two cores).
        options = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return [artifacts.java(_JAVA_MINIMUM), *options, "-cp", f"{artifacts.jars('kafka').path}/*"]
