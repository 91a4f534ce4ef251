"""Objects in an S3 bucket: MinIO, or any other that knows conditional writes (`If-None-Match`, `If-Match`).

A small object is checked and then put. A large one goes up in parts, which no reader sees; they are joined only when
the digest of all of them is right. The client library blocks, so it works in a bounded pool of threads; part requests
are sent through its own signing (`_execute`), since its public ones know neither conditions nor resumed uploads.
"""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit
from xml.etree import ElementTree

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from modelworks.kit.errors import InvalidInput, ModelworksError, NotFound, StoreUnavailable, TooLarge, VersionConflict
from modelworks.kit.logging import get_logger
from modelworks.stores.objects.keys import (
    PARTS_MAX,
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
from modelworks.stores.settings import StoresSettings

CHUNK_BYTES = 1024 * 1024
PART_BYTES = 8 * 1024 * 1024
_PARTS_IN_FLIGHT = 2
_THREADS = 16
_LIST_BATCH = 500
_PROBE = "readiness-probe"

_NO_UPLOAD = frozenset({"NoSuchUpload", "NoSuchKey", "XMinioInvalidResourceName"})
_CONFLICT = (VersionConflict, "object {key!r} was written by somebody else, or exists already")
_PARTS = (InvalidInput, "parts of {key!r} are missing, others, or too small: send them again ({code})")
_REFUSED = (InvalidInput, "object store {where} refuses {key!r} ({code})")
_CREDENTIALS = (
    StoreUnavailable,
    "object store {where} refused our credentials ({code}): check STORES_S3_ACCESS_KEY and STORES_S3_SECRET_KEY",
)
_KINDS: Mapping[str, tuple[type[ModelworksError], str]] = {
    "NoSuchKey": (NotFound, "no object {key!r}"),
    "PreconditionFailed": _CONFLICT,
    "ConditionalRequestConflict": _CONFLICT,
    "InvalidPart": _PARTS,
    "InvalidPartOrder": _PARTS,
    "EntityTooSmall": _PARTS,
    "EntityTooLarge": _REFUSED,
    "InvalidArgument": _REFUSED,
    "KeyTooLongError": _REFUSED,
    "XMinioInvalidObjectName": _REFUSED,
    "AccessDenied": _CREDENTIALS,
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
}
"""S3's error codes in the port's words."""

T = TypeVar("T")
log = get_logger("objects")


class S3Objects:
    """The real object store."""

    def __init__(self, settings: StoresSettings) -> None:
        """Makes no connection yet.

        Raises:
            InvalidInput: an endpoint is not an http(s) URL without a path.
        """
        self._bucket = settings.s3_bucket
        self._where = f"{settings.s3_endpoint}/{settings.s3_bucket}"
        self._client = _client(settings, settings.s3_endpoint, "STORES_S3_ENDPOINT")
        self._public = _client(
            settings, settings.s3_public_endpoint or settings.s3_endpoint, "STORES_S3_PUBLIC_ENDPOINT"
        )
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="objects-s3")
        self._bucket_there = False
        self._making_bucket = threading.Lock()
        self._closed = False

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
        conditions = {"If-None-Match": "*"} if if_absent else {}
        if if_match is not None:
            conditions["If-Match"] = f'"{if_match}"'
        source = _once(bytes(data)) if isinstance(data, (bytes, bytearray, memoryview)) else data
        upload = _Upload(self, key, sha256=sha256, size_bytes=size_bytes, conditions=conditions)
        return await upload.run(source)

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        check_key(key)
        check_range(start, length)
        if length == 0:
            await self._nothing(key, start)
            return
        response = await self._run(self._open_range, key, start, length)
        if response is None:
            await self._nothing(key, start)
            return
        try:
            while chunk := await self._run(response.read, CHUNK_BYTES):
                yield chunk
        finally:
            # Not to the end: what is left on the connection must not be read as another answer.
            response.close()
            response.release_conn()

    async def read(self, key: str, *, bytes_max: int = 16 * 1024 * 1024) -> bytes:
        def whole() -> bytes:
            response = self._client.get_object(self._bucket, key)
            try:
                size_bytes = int(response.headers["Content-Length"])
                if size_bytes > bytes_max:
                    raise TooLarge(f"object {key!r} has {size_bytes} bytes, more than {bytes_max}: stream it")
                content: bytes = response.read()
                return content
            finally:
                response.close()
                response.release_conn()

        check_key(key)
        return await self._run(whole, key=key)

    async def head(self, key: str) -> ObjectInfo | None:
        check_key(key)
        try:
            found = await self._run(self._client.stat_object, self._bucket, key, key=key)
        except NotFound:
            return None
        return ObjectInfo(key, found.size, found.etag)

    async def delete(self, key: str) -> None:
        check_key(key)
        with suppress(NotFound):
            await self._run(self._client.remove_object, self._bucket, key, key=key)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectInfo]:
        def batch() -> Sequence[ObjectInfo]:
            return [ObjectInfo(each.object_name, each.size, each.etag) for each in islice(found, _LIST_BATCH)]

        check_prefix(prefix)
        found: Iterator[Any] = self._client.list_objects(
            self._bucket, prefix=prefix, start_after=after or None, recursive=True
        )
        while infos := await self._run(batch):
            for info in infos:
                yield info

    async def start_multipart(self, key: str) -> str:
        check_key(key)
        return str(await self._run(self._client._create_multipart_upload, self._bucket, key, {}, key=key))

    async def put_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        check_key(key)
        check_part_number(number)
        etag = await self._run(
            self._client._upload_part, self._bucket, key, data, {}, upload, number, key=key, upload=upload
        )
        return Part(number, etag, len(data))

    async def parts(self, key: str, upload: str) -> Sequence[Part]:
        def every() -> Sequence[Part]:
            found: builtins.list[Part] = []
            marker = None
            while True:
                page = self._client._list_parts(self._bucket, key, upload, part_number_marker=marker)
                found += [Part(each.part_number, each.etag, each.size) for each in page.parts]
                marker = page.next_part_number_marker
                if not page.is_truncated or not page.parts:
                    return found

        check_key(key)
        return await self._run(every, key=key, upload=upload)

    async def complete_multipart(self, key: str, upload: str, parts: Sequence[Part]) -> ObjectInfo:
        check_key(key)
        try:
            wanted = check_parts(key, parts)
        except InvalidInput:
            # An upload that is gone is told first, whatever is wrong with the parts besides.
            await self.parts(key, upload)
            raise
        etag = await self._run(self._complete, key, upload, wanted, {}, key=key, upload=upload)
        info = await self.head(key)
        size_bytes = sum(part.size_bytes for part in wanted)
        return info if info is not None and info.etag == etag else ObjectInfo(key, size_bytes, etag)

    async def abort_multipart(self, key: str, upload: str) -> None:
        check_key(key)
        with suppress(NotFound):
            await self._run(self._client._abort_multipart_upload, self._bucket, key, upload, key=key, upload=upload)

    async def presign(self, method: str, key: str, *, expires: timedelta) -> PresignedRequest:
        check_key(key)
        check_presign(method, expires)
        if method == "PUT":
            await self._run(lambda: None)  # the bucket must be there; all else is arithmetic, since the region is known
        url = self._public.get_presigned_url(method, self._bucket, key, expires=expires)
        return PresignedRequest(method, url)

    async def check(self) -> None:
        def probe() -> None:
            # A write that no reader can ever see.
            upload = self._client._create_multipart_upload(self._bucket, _PROBE, {})
            self._client._abort_multipart_upload(self._bucket, _PROBE, upload)

        await self._run(probe)

    async def close(self) -> None:
        self._closed = True
        self._threads.shutdown(wait=False)
        self._client._http.clear()

    async def _run(self, work: Callable[..., T], *arguments: object, key: str = "", upload: str = "") -> T:
        """`work` in a thread, with the bucket there and the library's errors in the port's words."""

        def mapped() -> T:
            try:
                self._ensure_bucket()
                return work(*arguments)
            except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
                raise self._translate(error, key, upload) from error

        if self._closed:
            raise StoreUnavailable(f"object store {self._where} was closed")
        return await asyncio.get_running_loop().run_in_executor(self._threads, mapped)

    def _ensure_bucket(self) -> None:
        if self._bucket_there:
            return
        with self._making_bucket:
            if self._bucket_there:
                return
            try:
                if not self._client.bucket_exists(self._bucket):
                    self._client.make_bucket(self._bucket)
            except S3Error as error:
                # Made by somebody else just now; or ours to use but not to look at.
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists", "AccessDenied"):
                    raise
            self._bucket_there = True

    def _translate(self, error: Exception, key: str, upload: str) -> ModelworksError:
        if not isinstance(error, (S3Error, ServerError, InvalidResponseError)):
            reason = type(getattr(error, "reason", None) or error).__name__
            return StoreUnavailable(f"object store {self._where} did not answer ({reason}): is it up?")
        code = error.code if isinstance(error, S3Error) else ""
        if upload and code in _NO_UPLOAD:
            return NotFound(no_upload(key, upload))
        if code in _KINDS:
            kind, message = _KINDS[code]
            return kind(message.format(key=key, where=self._where, code=code))
        if code == "NoSuchBucket":
            self._bucket_there = False
            return StoreUnavailable(f"bucket {self._bucket!r} was deleted: it is made again with the next request")
        return StoreUnavailable(f"object store {self._where} answered with {code or 'an error of its own'}")

    def _open_range(self, key: str, start: int, length: int | None) -> Any:
        """The answer to read from; None when the range is empty or lies behind the end."""
        try:
            return self._client.get_object(self._bucket, key, offset=start, length=length or 0)
        except S3Error as error:
            if error.code == "InvalidRange":
                return None
            raise self._translate(error, key, "") from error

    async def _nothing(self, key: str, start: int) -> None:
        """Return when an empty range is right, raise when it is not."""
        info = await self.head(key)
        if info is None:
            raise NotFound(not_found(key))
        if start and start >= info.size_bytes:
            raise InvalidInput(range_behind_end(key, start, info.size_bytes))

    def _put_whole(self, key: str, data: bytes, conditions: Mapping[str, str]) -> str:
        try:
            answer = self._client._execute("PUT", self._bucket, key, body=data, headers=_headers(conditions))
        except S3Error as error:
            raise self._conflict(error, key, conditions) from error
        return str(answer.headers["ETag"]).strip('"')

    def _complete(self, key: str, upload: str, parts: Sequence[Part], conditions: Mapping[str, str]) -> str:
        root = ElementTree.Element("CompleteMultipartUpload")
        for part in parts:
            element = ElementTree.SubElement(root, "Part")
            ElementTree.SubElement(element, "PartNumber").text = str(part.number)
            ElementTree.SubElement(element, "ETag").text = f'"{part.etag}"'
        try:
            answer = self._client._execute(
                "POST", self._bucket, key, body=ElementTree.tostring(root),
                headers={**_headers(conditions), "Content-Type": "application/xml"}, query_params={"uploadId": upload},
            )  # fmt: skip
        except S3Error as error:
            raise self._conflict(error, key, conditions) from error
        # S3 begins its answer before it is done: an error may come with status 200.
        etag = ElementTree.fromstring(answer.data).findtext("{*}ETag")  # noqa: S314 (from our own store)
        if not etag:
            raise StoreUnavailable(f"object store {self._where} could not join the parts of {key!r}")
        return etag.strip('"')

    def _conflict(self, error: S3Error, key: str, conditions: Mapping[str, str]) -> ModelworksError | S3Error:
        if error.code == "NoSuchKey" and "If-Match" in conditions:
            return VersionConflict(f"object {key!r} does not exist any more")
        return error


class _Upload:
    """One put: gathers, hashes, sends, and decides at the end."""

    def __init__(
        self,
        objects: S3Objects,
        key: str,
        *,
        sha256: str | None,
        size_bytes: int | None,
        conditions: Mapping[str, str],
    ) -> None:
        self._objects = objects
        self._key = key
        self._sha256 = sha256
        self._size_bytes = size_bytes
        self._conditions = conditions
        self._hash = hashlib.sha256() if sha256 is not None else None
        self._received = 0
        self._upload = ""
        self._sending: dict[int, asyncio.Task[Part]] = {}
        self._sent: list[Part] = []

    async def run(self, source: AsyncIterable[bytes]) -> ObjectInfo:
        try:
            waiting: list[bytes] = []
            waiting_bytes = 0
            async for chunk in source:
                waiting.append(chunk)
                waiting_bytes += len(chunk)
                self._received += len(chunk)
                if self._size_bytes is not None and self._received > self._size_bytes:
                    self._check(None)
                while waiting_bytes > self._part_bytes:
                    joined = b"".join(waiting)
                    part, rest = joined[: self._part_bytes], joined[self._part_bytes :]
                    await self._send(part)
                    waiting, waiting_bytes = [rest], len(rest)
            return await self._finish(b"".join(waiting))
        except BaseException:
            if self._upload:
                await asyncio.shield(self._discard())
            raise

    @property
    def _part_bytes(self) -> int:
        """Grows with what is announced, else with what came, so that 10 000 parts are enough."""
        if self._size_bytes is not None:
            return max(PART_BYTES, -(-self._size_bytes // (PARTS_MAX - 1)))
        return PART_BYTES << ((len(self._sent) + len(self._sending)) // 1000)

    async def _send(self, data: bytes) -> None:
        """Hash the part and send it beside at most one other."""
        objects, number = self._objects, len(self._sent) + len(self._sending) + 1
        if self._hash is not None:
            await objects._run(self._hash.update, data)
        if not self._upload:
            self._upload = await objects.start_multipart(self._key)
        while len(self._sending) >= _PARTS_IN_FLIGHT:
            await self._collect()
        self._sending[number] = asyncio.create_task(objects.put_part(self._key, self._upload, number, data))

    async def _collect(self) -> None:
        """Wait for the oldest part on its way."""
        number = min(self._sending)
        self._sent.append(await self._sending[number])
        del self._sending[number]

    async def _finish(self, last: bytes) -> ObjectInfo:
        objects = self._objects
        if not self._upload:
            if self._hash is not None:
                await objects._run(self._hash.update, last)
            self._check(self._hash.hexdigest() if self._hash is not None else None)
            etag = await objects._run(objects._put_whole, self._key, last, self._conditions, key=self._key)
            return ObjectInfo(self._key, self._received, etag)
        await self._send(last)
        while self._sending:
            await self._collect()
        self._check(self._hash.hexdigest() if self._hash is not None else None)
        etag = await objects._run(
            objects._complete, self._key, self._upload, self._sent, self._conditions, key=self._key, upload=self._upload
        )
        return ObjectInfo(self._key, self._received, etag)

    def _check(self, actual_sha256: str | None) -> None:
        check_content(
            self._key, sha256=self._sha256, size_bytes=self._size_bytes, actual_sha256=actual_sha256,
            actual_size_bytes=self._received,
        )  # fmt: skip

    async def _discard(self) -> None:
        """Throw away what was sent. When that fails too, it stays invisible until the store's own cleaning."""
        await asyncio.gather(*self._sending.values(), return_exceptions=True)
        try:
            await self._objects.abort_multipart(self._key, self._upload)
        except ModelworksError as error:
            log.warning("objects.abort-failed", key=self._key, error=str(error))


async def _once(data: bytes) -> AsyncIterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(data), PART_BYTES):
        yield bytes(view[start : start + PART_BYTES])


def _headers(conditions: Mapping[str, str]) -> dict[str, str]:
    return {"Content-Type": "application/octet-stream", **conditions}


def _client(settings: StoresSettings, endpoint: str, name: str) -> Any:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/") or "@" in parts.netloc:
        raise InvalidInput(f"{name} is not a URL like https://host:port, without a path or credentials")
    timeout = settings.timeout_ms / 1000
    return Minio(
        parts.netloc,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key.get_secret_value(),
        secure=parts.scheme == "https",
        region=settings.s3_region,
        http_client=urllib3.PoolManager(
            maxsize=_THREADS * 2,
            timeout=urllib3.Timeout(connect=min(timeout, 5), read=timeout),
            # Reads may be asked again. A write may have been done though its answer was lost: its condition would
            # then fail against itself, and the caller is told of a conflict that never was.
            retries=urllib3.Retry(total=2, backoff_factor=0.1, allowed_methods={"GET", "HEAD"}),
        ),
    )
