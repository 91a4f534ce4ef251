"""The object store: named immutable bytes, streamed, ranged, written whole or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from starlette.types import ASGIApp


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is known of an object without reading it."""

    key: str
    size_bytes: int
    etag: str
    """Changes when the bytes change; good for `if_match`, not a digest."""


@dataclass(frozen=True, slots=True)
class Part:
    """A finished part of a multipart upload."""

    number: int
    """1 to 10 000."""
    etag: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PresignedRequest:
    """A request that needs no other credential until it expires."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Objects(Protocol):
    """Objects by key. Keys are relative paths: `[A-Za-z0-9._/-]`, no `..`, no empty segment, at most 900 characters."""

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
        """Write the whole object, or nothing: readers never see a part. Memory does not grow with its size.

        Args:
            sha256: lower-case hex digest the bytes must have.
            size_bytes: length the bytes must have.
            if_absent: write only when the key does not exist.
            if_match: write only when the stored object has this etag.

        Raises:
            InvalidInput: the bytes do not have the digest or length (`data` of the error: `expected_sha256`,
                `actual_sha256`, `size_bytes`), or the key is malformed; nothing was written.
            VersionConflict: `if_absent` or `if_match` does not hold; nothing was written.
            StoreUnavailable: the store did not answer; the object may have been written, whole and right.
        """

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Stream the object's bytes, or a range of them, in chunks of at most 1 MiB.

        Raises (on the first chunk):
            NotFound: no such object.
            InvalidInput: `start` lies behind the end.
            StoreUnavailable: the store did not answer, or broke off (may also come on a later chunk).
        """

    async def read(self, key: str, *, bytes_max: int = 16 * 1024 * 1024) -> bytes:
        """The whole of a small object.

        Raises:
            NotFound: no such object.
            TooLarge: it has more than `bytes_max` bytes.
            StoreUnavailable: the store did not answer.
        """

    async def head(self, key: str) -> ObjectInfo | None:
        """The object's size and etag, or None when there is none.

        Raises:
            StoreUnavailable: the store did not answer.
        """

    async def delete(self, key: str) -> None:
        """Remove the object; nothing happens when there is none."""

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in key order (bytewise), behind key `after`."""

    async def start_multipart(self, key: str) -> str:
        """Begin an upload in parts; returns its id. Other processes may go on with it."""

    async def put_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        """Store one part; the same number again replaces it. All parts but the last have at least 5 MiB (S3).

        Raises:
            NotFound: no such upload.
        """

    async def parts(self, key: str, upload: str) -> Sequence[Part]:
        """The parts stored so far, by number: what a resumed upload can skip.

        Raises:
            NotFound: no such upload.
        """

    async def complete_multipart(self, key: str, upload: str, parts: Sequence[Part]) -> ObjectInfo:
        """Join the parts, in order of number, into the object.

        Raises:
            NotFound: no such upload.
            InvalidInput: a part is missing or its etag differs, or a part but the last is too small.
        """

    async def abort_multipart(self, key: str, upload: str) -> None:
        """Throw the parts away; nothing happens when there is no such upload."""

    async def presign(self, method: str, key: str, *, expires: timedelta) -> PresignedRequest:
        """A request (`GET` or `PUT`) that anybody who has it may send until it expires.

        Raises:
            InvalidInput: another method, or an expiry above 7 days.
        """

    async def check(self) -> None:
        """Readiness.

        Raises:
            StoreUnavailable: the store cannot be reached or written.
        """

    async def close(self) -> None:
        """Let go of connections."""


class PresignedDoor(Protocol):
    """What an adapter offers whose presigned requests this suite must answer itself."""

    base_url: str
    """Where `presigned_app` is mounted, as clients reach it; set before the first `presign`."""

    def presigned_app(self) -> ASGIApp:
        """The app that answers them: mount it at `base_url`, in an app of `kit.http.create_app`."""
