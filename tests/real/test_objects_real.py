"""The object contract on MinIO, and what only a server can do: be away, come back, and outlive a killed writer."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from modelworks.kit.errors import StoreUnavailable
from modelworks.stores import Objects, PresignedRequest
from modelworks.stores.objects.s3 import S3Objects
from modelworks.stores.settings import StoresSettings

pytest.register_assert_rewrite("libs.stores.tests.contract_objects")

from libs.stores.tests.contract_objects import (  # noqa: E402
    HELLO,
    MIB,
    WRITER,
    ObjectsContract,
    OpenObjects,
    Send,
    collected,
    keys,
    noise,
    stream,
)
from tests.stack.endpoints import MinioEndpoint  # noqa: E402
from tests.stack.server import Server  # noqa: E402

pytestmark = pytest.mark.real


@pytest.fixture
def settings(minio: Server[MinioEndpoint]) -> StoresSettings:
    """A bucket of its own for each test: the store makes it."""
    endpoint = minio.endpoint
    return StoresSettings(
        column="real",
        s3_endpoint=endpoint.url,
        s3_access_key=endpoint.access_key,
        s3_secret_key=endpoint.secret_key,
        s3_bucket=f"t-{uuid.uuid4().hex}",
        timeout_ms=5_000,
    )


@pytest.fixture
async def open_objects(settings: StoresSettings) -> AsyncIterator[OpenObjects]:
    opened: list[S3Objects] = []

    def open_objects() -> S3Objects:
        opened.append(S3Objects(settings))
        return opened[-1]

    yield open_objects
    for objects in opened:
        await objects.close()


@pytest.fixture
def objects(open_objects: OpenObjects) -> Objects:
    return open_objects()


class TestS3Objects(ObjectsContract):
    @pytest.fixture
    def send(self) -> Send:
        async def send(
            request: PresignedRequest, *, content: bytes = b"", headers: dict[str, str] | None = None
        ) -> tuple[int, bytes]:
            async with httpx.AsyncClient(trust_env=False) as client:
                answer = await client.request(request.method, request.url, content=content or None, headers=headers)
                return answer.status_code, answer.content

        return send


async def test_a_put_that_was_killed_leaves_nothing_readable(settings: StoresSettings, objects: Objects) -> None:
    """INVARIANT: a reader sees whole objects only; would break if parts were joined before the digest is known."""
    script = WRITER.format(
        imports="from modelworks.stores.objects.s3 import S3Objects; from modelworks.stores.settings import StoresSettings",
        make="S3Objects(StoresSettings())",
    )
    environment = {
        **os.environ,
        "STORES_S3_ENDPOINT": settings.s3_endpoint,
        "STORES_S3_ACCESS_KEY": settings.s3_access_key,
        "STORES_S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
        "STORES_S3_BUCKET": settings.s3_bucket,
    }
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert writer.stdout is not None
    assert await asyncio.to_thread(writer.stdout.readline) == b"sent\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()

    assert await objects.head("killed") is None
    assert await keys(objects, "") == []


async def test_memory_stays_flat_while_256_mebibytes_pass(objects: Objects) -> None:
    chunk = noise(256 * 1024)
    await objects.put("warm", stream(*[chunk] * 160))
    async for _ in objects.get("warm"):
        pass
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def large() -> AsyncIterator[bytes]:
        for _ in range(1024):
            yield chunk

    await objects.put("large", large(), size_bytes=256 * MIB)
    async for _ in objects.get("large"):
        pass

    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 32 * 1024


async def test_presigned_urls_name_the_public_endpoint(settings: StoresSettings) -> None:
    objects = S3Objects(settings.model_copy(update={"s3_public_endpoint": "https://files.example.org"}))

    request = await objects.presign("GET", "a/b", expires=timedelta(minutes=1))

    assert request.url.startswith(f"https://files.example.org/{settings.s3_bucket}/a/b?")
    assert settings.s3_secret_key.get_secret_value() not in request.url
    await objects.close()


async def test_wrong_credentials_are_told_without_the_secret(settings: StoresSettings) -> None:
    wrong = StoresSettings(
        s3_endpoint=settings.s3_endpoint, s3_access_key="nobody", s3_secret_key="hunter2-hunter2", s3_bucket="b-b-b"
    )
    objects = S3Objects(wrong)

    with pytest.raises(StoreUnavailable, match="credentials") as refused:
        await objects.put("a", HELLO)
    with pytest.raises(StoreUnavailable):
        await objects.check()

    assert "hunter2" not in str(refused.value)
    await objects.close()


async def test_a_server_that_is_down_at_the_start_is_told_and_used_when_it_comes(
    minio: Server[MinioEndpoint], objects: Objects
) -> None:
    minio.kill()
    for attempt in (
        objects.check(),
        objects.put("a", HELLO),
        objects.head("a"),
        objects.read("a"),
        objects.delete("a"),
    ):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="is it up"):
            await attempt
        assert time.monotonic() - began < 5

    await asyncio.to_thread(minio.restart)

    await objects.check()
    await objects.put("a", HELLO)
    assert await objects.read("a") == HELLO


async def test_a_server_that_goes_away_in_the_middle_leaves_the_old_object(
    minio: Server[MinioEndpoint], objects: Objects, eventually: Any
) -> None:
    data = noise(40 * MIB)
    await objects.put("a", data)

    async def killing() -> AsyncIterator[bytes]:
        yield noise(20 * MIB, seed=2)
        await asyncio.to_thread(minio.kill)
        yield noise(20 * MIB, seed=3)

    with pytest.raises(StoreUnavailable):
        await objects.put("a", killing())
    await asyncio.to_thread(minio.restart)

    assert await collected(objects.get("a")) == data

    reading = objects.get("a")
    await anext(reading)
    await asyncio.to_thread(minio.kill)
    with pytest.raises(StoreUnavailable):
        async for _ in reading:
            pass
    await asyncio.to_thread(minio.restart)
    assert await collected(objects.get("a")) == data


async def test_a_server_that_does_not_answer_is_given_up_in_time(
    minio: Server[MinioEndpoint], settings: StoresSettings
) -> None:
    objects = S3Objects(settings.model_copy(update={"timeout_ms": 500}))
    await objects.put("a", HELLO)
    minio.pause()

    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="did not answer"):
        await objects.put("b", HELLO)
    with pytest.raises(StoreUnavailable, match="did not answer"):
        await objects.head("a")
    waited = time.monotonic() - began
    minio.resume()

    assert waited < 6
    assert await objects.read("a") == HELLO
    await objects.close()
