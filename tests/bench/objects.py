"""Upload and download through the registry, beside a raw copy in the store it writes to."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from modelworks.client import AsyncModelworks
from modelworks.client.demo.suite import SuiteProcess

from tests.bench.harness import Result, paired, resident_mb

MIB = 256
_CHUNK = 1 << 20


def _make_file(path: Path, mib: int) -> None:
    block = os.urandom(_CHUNK)
    with path.open("wb") as file:
        for number in range(mib):
            # Each MiB differs, and each call's file does: nothing is found to be there already.
            file.write(number.to_bytes(8, "big") + block[8:])


async def _settled() -> None:
    """Nobody pays for the writes of the measurement before."""
    await asyncio.to_thread(os.sync)


def _digest_and_sync(path: Path) -> None:
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
        os.fsync(file.fileno())


def _copy_with_digest(source: Path, target: Path) -> None:
    hasher = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            hasher.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())


async def through_registry(
    suite: SuiteProcess,
    client: AsyncModelworks,
    folder: Path,
    *,
    column: str,
    raw_up: Callable[[Path], Awaitable[None]],
    raw_down: Callable[[Path], Awaitable[None]],
    raw_name: str,
) -> list[Result]:
    """Both directions, and the memory of the suite while it works. Goal: at least 0.6 of the raw copy."""
    repository = f"bench/files-{uuid.uuid4().hex[:8]}"
    await client.create_repository(repository)
    source = folder / "source.bin"
    stored: list[str] = []
    peak = resident_mb(suite.pid)
    before = peak

    async def up() -> float:
        nonlocal peak
        await asyncio.to_thread(_make_file, source, MIB)
        await _settled()
        watching = asyncio.create_task(watch())
        started = time.perf_counter()
        stored.append(await client.upload(repository, source))
        seconds = time.perf_counter() - started
        watching.cancel()
        return MIB / seconds

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, resident_mb(suite.pid))
            await asyncio.sleep(0.05)

    async def down() -> float:
        commit = await client.commit(repository, message="bench", puts={"file.bin": stored[-1]})
        (folder / "down.bin").unlink(missing_ok=True)
        await _settled()
        started = time.perf_counter()
        await client.download(repository, "file.bin", commit.revision, folder / "down.bin")
        return MIB / (time.perf_counter() - started)

    def timed(work: Callable[[Path], Awaitable[None]]) -> Callable[[], Awaitable[float]]:
        async def run() -> float:
            await asyncio.to_thread(_make_file, source, MIB)
            # Both sides write a new file: what it costs to free an old one is no part of either.
            for written in ("copy.bin", "raw.bin"):
                (folder / written).unlink(missing_ok=True)
            await _settled()
            started = time.perf_counter()
            await work(source)
            return MIB / (time.perf_counter() - started)

        return run

    uploaded = await paired(
        f"{column}: upload {MIB} MiB through the door", unit="MiB/s", ours=up, baseline_name=raw_name,
        baseline=timed(raw_up), rounds=3, goal="ratio >= 0.60",
    )  # fmt: skip
    uploaded.notes["suite MB before"] = round(before)
    uploaded.notes["suite MB at most"] = round(peak)
    downloaded = await paired(
        f"{column}: download {MIB} MiB through the door", unit="MiB/s", ours=down, baseline_name=raw_name,
        baseline=timed(raw_down), rounds=3, goal="ratio >= 0.60",
    )  # fmt: skip
    return [uploaded, downloaded]


async def embedded(suite: SuiteProcess, client: AsyncModelworks, folder: Path) -> list[Result]:
    """Beside a file copy with sha256 and fsync."""

    async def copy(source: Path) -> None:
        await asyncio.to_thread(_copy_with_digest, source, folder / "copy.bin")

    return await through_registry(
        suite, client, folder, column="embedded", raw_up=copy, raw_down=copy, raw_name="file copy with sha256"
    )


async def on_s3(
    suite: SuiteProcess,
    client: AsyncModelworks,
    folder: Path,
    *,
    url: str,
    access_key: str,
    secret_key: str,
    bucket: str,
) -> list[Result]:
    """Beside the MinIO SDK's own transfer of the same file."""
    from urllib.parse import urlsplit

    from minio import Minio

    raw = Minio(urlsplit(url).netloc, access_key=access_key, secret_key=secret_key, secure=False)

    async def put(source: Path) -> None:
        await asyncio.to_thread(raw.fput_object, bucket, "bench/raw.bin", str(source))

    async def get(_: Path) -> None:
        await asyncio.to_thread(raw.fget_object, bucket, "bench/raw.bin", str(folder / "raw.bin"))
        # As the suite's client does: the bytes are checked and on disk.
        await asyncio.to_thread(_digest_and_sync, folder / "raw.bin")

    return await through_registry(
        suite, client, folder, column="real", raw_up=put, raw_down=get, raw_name="MinIO SDK, down with sha256 and fsync"
    )
