"""The four servers together: found or started, side by side, and described in the words of the product's settings."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Self, TypeVar

from tests.stack import containers
from tests.stack.endpoints import Endpoint, KafkaEndpoint, MinioEndpoint, OpenSearchEndpoint, RedisEndpoint
from tests.stack.errors import StackError, StartFailed, Unavailable
from tests.stack.native.kafka import KafkaServer
from tests.stack.native.minio import MinioServer
from tests.stack.native.opensearch import OpenSearchServer
from tests.stack.native.redis import RedisServer
from tests.stack.server import External, Server

E = TypeVar("E", bound=Endpoint)
Name = Literal["kafka", "opensearch", "minio", "redis"]
NAMES: tuple[Name, ...] = ("opensearch", "kafka", "minio", "redis")
"""The slowest first, since they start side by side."""


class Stack:
    """The four servers, each started when it is first asked for.

    A server is looked for in this order: named in the environment (all its variables are set), then a container
    where a Docker engine answers, then a native process. `native_only` goes straight to the last.
    """

    def __init__(self, *, native_only: bool = False, environ: Mapping[str, str] = os.environ) -> None:
        def find(endpoint: type[E], container: Callable[[], Server[E]], native: Callable[[], Server[E]]) -> Server[E]:
            if native_only:
                return native()
            if named := endpoint.from_environment(environ):
                return External(named)
            return container() if containers.docker_answers() else native()

        self.kafka = find(KafkaEndpoint, lambda: containers.ContainerServer(containers.kafka), KafkaServer)
        self.opensearch = find(
            OpenSearchEndpoint, lambda: containers.ContainerServer(containers.opensearch), OpenSearchServer
        )
        self.minio = find(MinioEndpoint, lambda: containers.ContainerServer(containers.minio), MinioServer)
        self.redis = find(RedisEndpoint, lambda: containers.ContainerServer(containers.redis), RedisServer)
        self._started: set[Name] = set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def server(self, name: Name) -> Server[Endpoint]:
        servers: dict[Name, Server[Endpoint]] = {
            "kafka": self.kafka,
            "opensearch": self.opensearch,
            "minio": self.minio,
            "redis": self.redis,
        }
        return servers[name]

    def start(self, *names: Name) -> None:
        """Return when the named servers, or all of them, serve; those that do already cost nothing.

        Raises:
            StartFailed: at least one did not come up; `Unavailable` when all that failed cannot be had here. The
                message tells every failure. The others keep running until `stop`.
        """
        wanted = names or NAMES
        with ThreadPoolExecutor(len(wanted), thread_name_prefix="stack") as pool:
            failures = [failure for failure in pool.map(self._start, wanted) if failure]
        if not failures:
            return
        message = "\n".join(str(failure) for failure in failures)
        raise Unavailable(message) if all(isinstance(item, Unavailable) for item in failures) else StartFailed(message)

    def stop(self) -> None:
        """End everything and remove the data; stopping again changes nothing."""
        with ThreadPoolExecutor(len(NAMES), thread_name_prefix="stack") as pool:
            list(pool.map(lambda name: self.server(name).stop(), NAMES))
        self._started.clear()

    def heal(self) -> None:
        """Bring back every started server that a test killed or paused and left so."""
        if self._started:
            self.start(*self._started)

    def environment(self) -> dict[str, str]:
        """What the product's settings read: the column, and the endpoints of the servers that were started."""
        return {"STORES_COLUMN": "real"} | {
            key: value for name in self._ordered() for key, value in self._variables(name)
        }

    def _ordered(self) -> Iterator[Name]:
        return (name for name in NAMES if name in self._started)

    def _variables(self, name: Name) -> Iterator[tuple[str, str]]:
        return iter(self.server(name).endpoint.environment().items())

    def _start(self, name: Name) -> StackError | None:
        try:
            self.server(name).start()
        except StackError as failure:
            return failure
        self._started.add(name)
        return None
