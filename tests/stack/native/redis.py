"""Redis from the system's package, with a password and an append-only file."""

import secrets
from collections.abc import Sequence
from pathlib import Path

from tests.stack import artifacts
from tests.stack.endpoints import RedisEndpoint
from tests.stack.native.server import NativeServer
from tests.stack.server import free_ports


class RedisServer(NativeServer[RedisEndpoint]):
    name = "redis"

    @staticmethod
    def fetch() -> None:
        artifacts.redis_server()

    def configure(self, folder: Path) -> RedisEndpoint:
        (port,) = free_ports(1)
        password = secrets.token_hex(24)
        # A file and not the command line, which every user of the machine can read.
        config = folder / "redis.conf"
        config.touch(mode=0o600)
        config.write_text(
            f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {folder}\n"
            'appendonly yes\nappendfsync everysec\nsave ""\ndaemonize no\n'
        )
        return RedisEndpoint(f"redis://:{password}@127.0.0.1:{port}/0")

    def command(self, folder: Path) -> Sequence[str]:
        return [artifacts.redis_server(), str(folder / "redis.conf")]
