"""OpenSearch as one node, from its Maven artifacts: the runner carries the modules that the distribution has."""

import secrets
from collections.abc import Sequence
from pathlib import Path

from tests.stack import artifacts
from tests.stack.endpoints import OpenSearchEndpoint
from tests.stack.native.server import NativeServer
from tests.stack.server import free_ports

_JAVA_MINIMUM = 21
_LAUNCHER = Path(__file__).with_name("OpenSearchNode.java")


class OpenSearchServer(NativeServer[OpenSearchEndpoint]):
    name = "opensearch"

    @staticmethod
    def fetch() -> None:
        artifacts.java(_JAVA_MINIMUM, compiler=True)
        artifacts.jars("opensearch").fetch()

    def configure(self, folder: Path) -> OpenSearchEndpoint:
        self._http, transport = free_ports(2)
        self._cluster = f"stack-{secrets.token_hex(4)}"
        config = folder / "config"
        config.mkdir()
        settings = {
            "cluster.name": self._cluster,
            "network.host": "127.0.0.1",
            "transport.port": transport,
            "discovery.type": "single-node",
            # A developer's nearly full disk would turn every index read-only.
            "cluster.routing.allocation.disk.threshold_enabled": "false",
        }
        (config / "opensearch.yml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
        return OpenSearchEndpoint(f"http://127.0.0.1:{self._http}")

    def command(self, folder: Path) -> Sequence[str]:
        runner = {
            "-basePath": folder,
            "-confPath": folder / "config",
            "-clusterName": self._cluster,
            "-numOfNode": 1,
            "-baseHttpPort": self._http - 1,  # the runner adds the node's number, which is 1
        }
        return [
            artifacts.java(_JAVA_MINIMUM, compiler=True),
            *("-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            *("-cp", f"{artifacts.jars('opensearch').path}/*"),
            str(_LAUNCHER),
            *(str(word) for option in runner.items() for word in option),
        ]
