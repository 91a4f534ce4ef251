"""Bytes in and out: verified while they pass, never held.

On the way in nothing becomes readable before its sha256 is right. On the way
out the last chunk is held back until the whole is known to be right, so that a
reader of damaged bytes sees a broken transfer, never a complete wrong file.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from modelworks.events import UploadRefused
from modelworks.kit.errors import InvalidInput, ModelworksError, NotFound, TooLarge
from modelworks.kit.logging import get_logger
from modelworks.registry.domain import Damaged, Repository
from modelworks.registry.metrics import Metrics
from modelworks.registry.names import check_sha256
from modelworks.registry.ports import Announcer, Blobs
from modelworks.registry.settings import RegistrySettings

Reason = Literal["digest-mismatch", "truncated", "too-large"]

log = get_logger("registry")


class Truncated(InvalidInput):
    """The body ended, or paused for too long, before it was complete."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A blob that is stored."""

    sha256: str
    size_bytes: int
    created: bool
    """False: the space had it before."""


class Transfers:
    """Uploads and downloads."""

    def __init__(self, *, blobs: Blobs, announcer: Announcer, settings: RegistrySettings, metrics: Metrics) -> None:
        self._blobs = blobs
        self._announcer = announcer
        self._settings = settings
        self._metrics = metrics

    async def upload(
        self,
        repository: Repository,
        sha256: str,
        body: AsyncIterator[bytes],
        *,
        announced_bytes: int | None,
        actor: str,
    ) -> Uploaded:
        """Store a blob; whatever is wrong with it, nothing readable is left and the audit is told.

        Args:
            body: may raise ConnectionError when the sender goes away.
            announced_bytes: the Content-Length; None when the sender did not say.

        Raises:
            InvalidInput: the digest is not one, or the bytes have another, or they ended early.
            TooLarge: more bytes than REGISTRY_UPLOAD_BYTES_MAX.
        """
        check_sha256(sha256)
        received = _Received(body, self._settings, announced_bytes)
        try:
            if announced_bytes is not None and announced_bytes > self._settings.upload_bytes_max:
                raise received.too_large(announced_bytes)
            existed = await self._blobs.size(repository.space, sha256) is not None
            size = await self._blobs.put(repository.space, sha256, received.chunks())
        except (InvalidInput, TooLarge) as error:
            await self._refuse(repository, sha256, error, received, actor)
            if "actual_sha256" not in error.data:
                raise
            raise _altered(str(error.data["actual_sha256"]), sha256, received) from error
        finally:
            self._metrics.uploaded_bytes.inc(received.size_bytes)
        self._metrics.uploads.labels("stored").inc()
        return Uploaded(sha256, size, created=not existed)

    async def _refuse(
        self, repository: Repository, sha256: str, error: ModelworksError, received: _Received, actor: str
    ) -> None:
        reason: Reason = "digest-mismatch"
        if isinstance(error, TooLarge):
            reason = "too-large"
        elif isinstance(error, Truncated):
            reason = "truncated"
        self._metrics.uploads.labels(reason).inc()
        log.warning("upload.refused", repository=repository.name, reason=reason, size_bytes=received.size_bytes)
        event = UploadRefused(
            repository=repository.name, reason=reason, expected_sha256=sha256,
            actual_sha256=error.data.get("actual_sha256"), size_bytes=received.size_bytes,
        )  # fmt: skip
        # The sender may be gone, which cancels this task: the audit is told all the same.
        await asyncio.shield(asyncio.ensure_future(self._announcer.upload_refused(event, actor=actor)))

    async def size(self, repository: Repository, sha256: str) -> int:
        """Size of a blob of the repository's space.

        Raises:
            NotFound: it has no such blob.
        """
        size = await self._blobs.size(repository.space, check_sha256(sha256))
        if size is None:
            raise NotFound(f"{repository.name} has no blob {sha256}", repository=repository.name, sha256=sha256)
        return size

    async def whole(self, repository: Repository, sha256: str, size_bytes: int) -> AsyncIterator[bytes]:
        """All bytes of a blob, its first chunk read already: damage that shows early is an error, not a broken answer.

        Raises:
            Damaged: the blob is missing or of another size, or its (only) chunk is altered. Later damage is raised
                by the iterator, in place of the last chunk.
        """
        await self._check_size(repository, sha256, size_bytes)
        chunks = self._verified(repository, sha256)
        first = await anext(chunks, None)
        return _rejoin(first, chunks)

    async def _verified(self, repository: Repository, sha256: str) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        digest = hashlib.sha256()
        held: bytes | None = None
        async for chunk in self._blobs.read(repository.space, sha256):
            # One chunk is hashed, in a thread, while the one before is sent.
            hashing = loop.run_in_executor(None, digest.update, chunk)
            if held is not None:
                self._metrics.downloaded_bytes.inc(len(held))
                yield held
            await hashing
            held = chunk
        if digest.hexdigest() != sha256:
            raise self._damaged(repository, sha256, f"has sha256 {digest.hexdigest()}")
        if held is not None:
            self._metrics.downloaded_bytes.inc(len(held))
            yield held

    async def part(
        self, repository: Repository, sha256: str, size_bytes: int, *, start: int, length: int
    ) -> AsyncIterator[bytes]:
        """A range of a blob. A part has no digest, so it is not verified.

        Raises:
            Damaged: the blob is missing or of another size.
        """
        await self._check_size(repository, sha256, size_bytes)
        return self._part(repository, sha256, start, length)

    async def _part(self, repository: Repository, sha256: str, start: int, length: int) -> AsyncIterator[bytes]:
        async for chunk in self._blobs.read(repository.space, sha256, start=start, length=length):
            self._metrics.downloaded_bytes.inc(len(chunk))
            yield chunk

    async def _check_size(self, repository: Repository, sha256: str, size_bytes: int) -> None:
        stored = await self._blobs.size(repository.space, sha256)
        if stored != size_bytes:
            found = "is missing" if stored is None else f"has {stored} bytes, not {size_bytes}"
            raise self._damaged(repository, sha256, found)

    def _damaged(self, repository: Repository, sha256: str, what: str) -> Damaged:
        self._metrics.damaged_reads.inc()
        log.error("blob.damaged", repository=repository.name, sha256=sha256, found=what)
        return Damaged(
            f"blob {sha256} of {repository.name} {what}: its stored bytes are damaged; upload it again to heal it",
            repository=repository.name, sha256=sha256,
        )  # fmt: skip


class _Received:
    """The body of an upload, counted and bounded."""

    def __init__(self, body: AsyncIterator[bytes], settings: RegistrySettings, announced_bytes: int | None) -> None:
        self._body = body
        self._settings = settings
        self._announced_bytes = announced_bytes
        self.size_bytes = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(self._settings.upload_idle_ms_max / 1000):
                    chunk = await anext(self._body, None)
            except TimeoutError as error:
                wait = self._settings.upload_idle_ms_max
                raise Truncated(
                    f"the upload paused for {wait} ms after {self.size_bytes} bytes: send it again"
                ) from error
            except ConnectionError as error:
                raise Truncated(f"the sender went away after {self.size_bytes} bytes: send it again") from error
            if chunk is None:
                break
            self.size_bytes += len(chunk)
            if self.size_bytes > self._settings.upload_bytes_max:
                raise self.too_large(self.size_bytes)
            if chunk:
                yield chunk
        if self._announced_bytes is not None and self.size_bytes != self._announced_bytes:
            raise Truncated(
                f"the upload has {self.size_bytes} bytes, its Content-Length says {self._announced_bytes}: send it again"
            )

    def too_large(self, size_bytes: int) -> TooLarge:
        limit = self._settings.upload_bytes_max
        return TooLarge(
            f"a blob of {size_bytes} bytes or more: at most {limit} are taken (REGISTRY_UPLOAD_BYTES_MAX)",
            limit_bytes=limit,
        )


def _altered(actual: str, sha256: str, received: _Received) -> InvalidInput:
    # The store's own words name its key; these name what the sender sent.
    return InvalidInput(
        f"the upload has sha256 {actual} ({received.size_bytes} bytes), not {sha256}: it was altered or cut off on the "
        "way, or the digest was taken of something else; nothing was stored",
        expected_sha256=sha256, actual_sha256=actual, size_bytes=received.size_bytes,
    )  # fmt: skip


async def _rejoin(first: bytes | None, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first is None:
        return
    yield first
    async for chunk in rest:
        yield chunk
