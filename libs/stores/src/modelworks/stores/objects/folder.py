"""Objects as files of a folder: written to a temporary file, synced, then renamed to their name.

    data/<key>@        an object; the mark keeps key `a` apart from the folder of key `a/b`
    temporary/<id>     what is being written; locked by its writer, so that a start can tell what a crash left
    uploads/<id>/      a multipart upload: its key in `key`, and one file a part
    locks/<n>          held while an object is looked at and replaced
    presign.key        the secret of presigned URLs, mode 0600

All blocking calls run in threads.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TypeVar

from modelworks.kit.errors import Conflict, InvalidInput, NotFound, StoreUnavailable, TooLarge, VersionConflict
from modelworks.stores.objects.keys import (
    check_content,
    check_digest,
    check_key,
    check_part_number,
    check_parts,
    check_prefix,
    check_presign,
    check_range,
    no_upload,
    not_found,
    range_behind_end,
)
from modelworks.stores.objects.port import ObjectInfo, Part, PresignedRequest
from modelworks.stores.objects.presigned import PresignedApp, Signer
from modelworks.stores.objects.writing import KeyLocks, TemporaryFile, commit, etag_of, remove_stale

CHUNK_BYTES = 1024 * 1024
_MARK = "@"
_LIST_BATCH = 500
_UPLOAD_AGE_MAX = timedelta(days=7)

T = TypeVar("T")


class FolderObjects:
    """The embedded object store."""

    def __init__(self, root: Path, *, base_url: str = "", put_bytes_max: int = 5 * 1024**3) -> None:
        """Touches nothing yet: the folder is made on first use.

        Args:
            base_url: where `presigned_app` is mounted, as clients reach it; may be set later.
            put_bytes_max: largest body that a presigned PUT takes (S3's own bound is 5 GiB).
        """
        self.base_url = base_url
        self._root = root
        self._data = root / "data"
        self._temporary = root / "temporary"
        self._uploads = root / "uploads"
        self._put_bytes_max = put_bytes_max
        self._opened = False
        self._closed = False
        # Threads of its own: a slow disk must not hold up whoever else uses the default ones.
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="objects")
        self._opening = threading.Lock()
        self._signer: Signer | None = None
        # A commit looks at the stored object and then replaces it: one at a time for a key.
        self._locks = KeyLocks(root / "locks")

    async def put(
        self,
        key: str,
        data: bytes | AsyncIterable[bytes],
        *,
        sha256: str | None = None,
        size_bytes: int | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> ObjectInfo:
        check_key(key)
        check_digest(sha256)

        def finish(file: TemporaryFile) -> ObjectInfo:
            actual = file.hexdigest() if sha256 is not None else None
            check_content(
                key, sha256=sha256, size_bytes=size_bytes, actual_sha256=actual, actual_size_bytes=file.size_bytes
            )
            return self._commit(key, file, if_absent=if_absent, if_match=if_match)

        def whole(content: bytes) -> ObjectInfo:
            with self._temporary_file(hashing=sha256 is not None) as file:
                file.write(content)
                return finish(file)

        if isinstance(data, (bytes, bytearray, memoryview)):
            return await self._run(whole, bytes(data))
        return await self._put_stream(data, finish, hashing=sha256 is not None, bytes_max=size_bytes)

    async def _put_stream(
        self,
        data: AsyncIterable[bytes],
        finish: Callable[[TemporaryFile], ObjectInfo],
        *,
        hashing: bool,
        bytes_max: int | None,
    ) -> ObjectInfo:
        file = await self._run(self._temporary_file, hashing)
        writing: asyncio.Future[None] | None = None
        try:
            async for chunk in _gathered(data):
                # One chunk is written and hashed while the next is received.
                if writing is not None:
                    await writing
                writing = asyncio.ensure_future(self._run(file.write, chunk))
                if bytes_max is not None and file.size_bytes > bytes_max:
                    break  # `finish` says what is wrong; the rest need not be received
            if writing is not None:
                await writing
            return await self._run(finish, file)
        finally:
            if writing is not None and not writing.done():
                with suppress(Exception, asyncio.CancelledError):
                    await writing
            file.close()

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        check_key(key)
        check_range(start, length)
        descriptor, left = await self._run(self._open_range, key, start, length)
        try:
            while left > 0:
                chunk = await self._run(os.read, descriptor, min(left, CHUNK_BYTES))
                if not chunk:
                    raise StoreUnavailable(f"object {key!r} ended {left} bytes early: its file was cut from outside")
                left -= len(chunk)
                yield chunk
        finally:
            os.close(descriptor)

    async def read(self, key: str, *, bytes_max: int = 16 * 1024 * 1024) -> bytes:
        def whole() -> bytes:
            descriptor, size_bytes = self._open_range(key, 0, None)
            with os.fdopen(descriptor, "rb") as file:
                if size_bytes > bytes_max:
                    raise TooLarge(f"object {key!r} has {size_bytes} bytes, more than {bytes_max}: stream it")
                return file.read()

        check_key(key)
        return await self._run(whole)

    async def head(self, key: str) -> ObjectInfo | None:
        check_key(key)
        return await self._run(self._head, key)

    async def delete(self, key: str) -> None:
        def remove() -> None:
            path = self._path(key)
            with self._locks.hold(key):
                path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self._data:
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break  # not empty, or gone

        check_key(key)
        await self._run(remove)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectInfo]:
        check_prefix(prefix)
        await self._run(lambda: None)
        # The folder part of the prefix says where to walk; its last segment may be the start of a name.
        folder = prefix.rpartition("/")[0]
        found = self._walk(self._data / folder, f"{folder}/" if folder else "", prefix, after)
        while batch := await self._run(lambda: list(islice(found, _LIST_BATCH))):
            for info in batch:
                yield info

    async def start_multipart(self, key: str) -> str:
        def start() -> str:
            upload = uuid.uuid4().hex
            folder = self._uploads / upload
            folder.mkdir()
            (folder / "key").write_text(key, encoding="ascii")
            return upload

        check_key(key)
        return await self._run(start)

    async def put_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        def store() -> Part:
            folder = self._upload_folder(key, upload)
            with self._temporary_file(hashing=False) as file:
                file.write(data)
                etag = file.seal()
                try:
                    commit(file, folder / f"{number:05}", root=folder)
                except FileNotFoundError as error:  # completed or aborted meanwhile
                    raise NotFound(no_upload(key, upload)) from error
            return Part(number, etag, len(data))

        check_key(key)
        check_part_number(number)
        return await self._run(store)

    async def parts(self, key: str, upload: str) -> Sequence[Part]:
        check_key(key)
        return await self._run(self._parts, key, upload)

    async def complete_multipart(self, key: str, upload: str, parts: Sequence[Part]) -> ObjectInfo:
        def join() -> ObjectInfo:
            folder = self._upload_folder(key, upload)
            stored = {part.number: part for part in self._parts(key, upload)}
            for part in wanted:
                there = stored.get(part.number)
                if there is None or there.etag != part.etag:
                    raise InvalidInput(f"part {part.number} of {key!r} is missing or another: send it again")
            with self._temporary_file(hashing=False) as file:
                for part in wanted:
                    with (folder / f"{part.number:05}").open("rb") as source:
                        while chunk := source.read(CHUNK_BYTES):
                            file.write(chunk)
                info = self._commit(key, file)
            shutil.rmtree(folder, ignore_errors=True)
            return info

        check_key(key)
        wanted = check_parts(key, parts)
        return await self._run(join)

    async def abort_multipart(self, key: str, upload: str) -> None:
        def abort() -> None:
            with suppress(NotFound):
                shutil.rmtree(self._upload_folder(key, upload), ignore_errors=True)

        check_key(key)
        await self._run(abort)

    async def presign(self, method: str, key: str, *, expires: timedelta) -> PresignedRequest:
        """As the port.

        Raises:
            Conflict: `base_url` was not set.
        """
        check_key(key)
        check_presign(method, expires)
        if not self.base_url:
            raise Conflict(
                "presigned requests have no address yet: set FolderObjects.base_url to where they are served"
            )
        signer = await self._run(self._make_signer)
        query = signer.query(method, key, expires=expires)
        return PresignedRequest(method, f"{self.base_url.rstrip('/')}/{key}?{query}")

    def presigned_app(self) -> PresignedApp:
        """The ASGI app that answers presigned requests: mount it at `base_url`, in an app of `kit.http.create_app`."""

        async def signer() -> Signer:
            return await self._run(self._make_signer)

        return PresignedApp(self, signer, put_bytes_max=self._put_bytes_max)

    async def check(self) -> None:
        def probe() -> None:
            with self._temporary_file(hashing=False) as file:
                file.write(b"probe")

        await self._run(probe)

    async def close(self) -> None:
        self._closed = True
        self._threads.shutdown(wait=False)

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        """`work` in a thread, with the folder there and its errors in the port's words."""
        if self._closed:
            raise StoreUnavailable(f"object store {self._root} was closed")
        loop = asyncio.get_running_loop()
        try:
            if not self._opened:
                await loop.run_in_executor(self._threads, self._open)
            return await loop.run_in_executor(self._threads, work, *arguments)
        except OSError as error:
            raise StoreUnavailable(
                f"object folder {self._root} cannot be used: {error.strerror or error}. "
                "Give a folder on a disk with space that this user may write"
            ) from error

    def _open(self) -> None:
        with self._opening:
            if self._opened:
                return
            for folder in (self._data, self._temporary, self._uploads, self._root / "locks"):
                folder.mkdir(parents=True, exist_ok=True)
            remove_stale(self._temporary)
            for upload in self._uploads.iterdir():
                with suppress(OSError):
                    if time.time() - upload.stat().st_mtime > _UPLOAD_AGE_MAX.total_seconds():
                        shutil.rmtree(upload, ignore_errors=True)
            self._opened = True

    def _make_signer(self) -> Signer:
        with self._opening:
            if self._signer is None:
                self._signer = Signer.load(self._root / "presign.key")
            return self._signer

    def _path(self, key: str) -> Path:
        return self._data / (key + _MARK)

    def _temporary_file(self, hashing: bool) -> TemporaryFile:
        return TemporaryFile(self._temporary, hashing=hashing)

    def _head(self, key: str) -> ObjectInfo | None:
        try:
            status = self._path(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return ObjectInfo(key, status.st_size, etag_of(status))

    def _commit(
        self, key: str, file: TemporaryFile, *, if_absent: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        etag = file.seal()
        with self._locks.hold(key):
            if if_match is not None:
                stored = self._head(key)
                if stored is None or stored.etag != if_match:
                    raise VersionConflict(f"object {key!r} is not the one with etag {if_match[:80]!r} any more")
            try:
                commit(file, self._path(key), root=self._root, exclusive=if_absent)
            except FileExistsError as error:
                raise VersionConflict(f"object {key!r} exists already") from error
        return ObjectInfo(key, file.size_bytes, etag)

    def _open_range(self, key: str, start: int, length: int | None) -> tuple[int, int]:
        """An open file at `start`, and how many bytes to read from it."""
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(not_found(key)) from error
        size_bytes = os.fstat(descriptor).st_size
        if start and start >= size_bytes:
            os.close(descriptor)
            raise InvalidInput(range_behind_end(key, start, size_bytes))
        os.lseek(descriptor, start, os.SEEK_SET)
        return descriptor, min(size_bytes - start, size_bytes if length is None else length)

    def _walk(self, folder: Path, base: str, prefix: str, after: str) -> Iterator[ObjectInfo]:
        """Objects below `folder`, whose keys start with `base`, in bytewise order of keys."""
        try:
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        # '-' and '.' come before '/', digits behind: a folder takes its place with its slash.
        names = sorted(
            (f"{base}{entry.name}/" if entry.is_dir() else f"{base}{entry.name.removesuffix(_MARK)}", entry)
            for entry in entries
        )
        for key, entry in names:
            if key.endswith("/"):
                may_match = key.startswith(prefix) or prefix.startswith(key)
                if may_match and (key > after or after.startswith(key)):
                    yield from self._walk(folder / entry.name, key, prefix, after)
            elif key.startswith(prefix) and key > after:
                with suppress(FileNotFoundError):  # deleted since
                    status = entry.stat()
                    yield ObjectInfo(key, status.st_size, etag_of(status))

    def _upload_folder(self, key: str, upload: str) -> Path:
        folder = self._uploads / upload
        try:
            known = upload.isalnum() and (folder / "key").read_text(encoding="ascii") == key
        except (FileNotFoundError, NotADirectoryError):
            known = False
        if not known:
            raise NotFound(no_upload(key, upload))
        return folder

    def _parts(self, key: str, upload: str) -> Sequence[Part]:
        folder = self._upload_folder(key, upload)
        parts = []
        for entry in os.scandir(folder):
            if entry.name != "key":
                status = entry.stat()
                parts.append(Part(int(entry.name), etag_of(status), status.st_size))
        return sorted(parts, key=lambda part: part.number)


async def _gathered(data: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in chunks of at least CHUNK_BYTES (but the last): a trip to a thread costs 0.1 ms."""
    waiting: list[bytes] = []
    size_bytes = 0
    async for chunk in data:
        waiting.append(chunk)
        size_bytes += len(chunk)
        if size_bytes >= CHUNK_BYTES:
            yield waiting[0] if len(waiting) == 1 else b"".join(waiting)
            waiting, size_bytes = [], 0
    if waiting:
        yield b"".join(waiting)
