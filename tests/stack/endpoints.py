"""Where each server is, in the words of the product's settings, and the question whether it serves.

An endpoint knows nothing of who started its server, so the same readiness check covers a native process, a container
and a server named in the environment.
"""

import asyncio
import os
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import ClassVar, Self

import httpx
import redis
from minio import Minio

_PROBE_TIMEOUT_S = 5.0


def _variable(name: str) -> str:
    """A field that the product reads from the environment variable `name`."""
    value: str = field(metadata={"variable": name}, repr="SECRET" not in name and "REDIS" not in name)
    return value


@dataclass(frozen=True)
class Endpoint:
    """Root of the four; each field is one environment variable."""

    name: ClassVar[str]

    @classmethod
    def variables(cls) -> tuple[str, ...]:
        """The names of the environment variables, in the order of the fields."""
        return tuple(item.metadata["variable"] for item in fields(cls))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self | None:
        """The endpoint that the environment names completely, else None."""
        values = [environ.get(name, "") for name in cls.variables()]
        return cls(*values) if all(values) else None

    def environment(self) -> dict[str, str]:
        return {item.metadata["variable"]: getattr(self, item.name) for item in fields(self)}

    def probe(self) -> None:
        """Return when the server answers in its own protocol; any exception means not yet."""
        raise NotImplementedError


@dataclass(frozen=True)
class KafkaEndpoint(Endpoint):
    name = "kafka"

    bootstrap: str = _variable("STORES_KAFKA_BOOTSTRAP")
    """`host:port`, without TLS and without authentication."""

    def probe(self) -> None:
        host, _, port = self.bootstrap.split(",")[0].rpartition(":")
        # aiokafka logs an error for every refused connection; a plain socket asks quietly first.
        socket.create_connection((host, int(port)), timeout=_PROBE_TIMEOUT_S).close()
        # A loop of its own in a thread of its own: an async test that restarts Kafka already runs one in this thread.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(self._read_metadata())).result()

    async def _read_metadata(self) -> None:
        from aiokafka.client import AIOKafkaClient

        client = AIOKafkaClient(bootstrap_servers=self.bootstrap)
        try:
            await asyncio.wait_for(client.bootstrap(), _PROBE_TIMEOUT_S)
            # A broker that still waits for its controller is missing from its own metadata.
            if not client.cluster.brokers():
                raise ConnectionError("the metadata names no broker yet")
        finally:
            await client.close()


@dataclass(frozen=True)
class OpenSearchEndpoint(Endpoint):
    name = "opensearch"

    url: str = _variable("STORES_OPENSEARCH_URL")
    """`http://host:port`, without authentication."""

    def probe(self) -> None:
        answer = httpx.get(
            f"{self.url}/_cluster/health",
            params={"wait_for_status": "yellow", "timeout": "3s"},
            timeout=_PROBE_TIMEOUT_S,
            trust_env=False,
        )
        answer.raise_for_status()


@dataclass(frozen=True)
class MinioEndpoint(Endpoint):
    name = "minio"

    url: str = _variable("STORES_S3_ENDPOINT")
    """`http://host:port`."""
    access_key: str = _variable("STORES_S3_ACCESS_KEY")
    secret_key: str = _variable("STORES_S3_SECRET_KEY")
    bucket: str = _variable("STORES_S3_BUCKET")
    """Made before the first probe succeeds."""

    def probe(self) -> None:
        httpx.get(f"{self.url}/minio/health/ready", timeout=_PROBE_TIMEOUT_S, trust_env=False).raise_for_status()
        scheme, _, address = self.url.partition("://")
        client = Minio(
            address,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=scheme == "https",
            region="us-east-1",
        )
        if not client.bucket_exists(self.bucket):
            client.make_bucket(self.bucket)


@dataclass(frozen=True)
class RedisEndpoint(Endpoint):
    name = "redis"

    url: str = _variable("STORES_REDIS_URL")
    """`redis://:password@host:port/0`."""

    def probe(self) -> None:
        with redis.Redis.from_url(self.url, socket_timeout=_PROBE_TIMEOUT_S) as client:
            client.ping()
