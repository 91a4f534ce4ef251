"""MinIO on one folder, with root credentials made at every first start."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.stack import artifacts
from tests.stack.endpoints import MinioEndpoint
from tests.stack.native.server import NativeServer
from tests.stack.server import free_ports


class MinioServer(NativeServer[MinioEndpoint]):
    name = "minio"

    @staticmethod
    def fetch() -> None:
        artifacts.minio().fetch()

    def configure(self, folder: Path) -> MinioEndpoint:
        (port,) = free_ports(1)
        return MinioEndpoint(
            url=f"http://127.0.0.1:{port}",
            access_key=f"stack-{secrets.token_hex(6)}",
            secret_key=secrets.token_hex(24),
            bucket="modelworks",
        )

    def process_environment(self) -> Mapping[str, str]:
        return {
            "MINIO_ROOT_USER": self.endpoint.access_key,
            "MINIO_ROOT_PASSWORD": self.endpoint.secret_key,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
        }

    def command(self, folder: Path) -> Sequence[str]:
        program = artifacts.minio().path / "minio"
        address = self.endpoint.url.removeprefix("http://")
        return [str(program), "server", str(folder / "data"), "--address", address, "--quiet"]
