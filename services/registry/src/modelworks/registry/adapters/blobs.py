"""Blobs in the object store: `blobs/<space>/sha256/<first two digits>/<sha256>`."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from modelworks.stores import Objects


class ObjectBlobs:
    """The `Blobs` port."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    async def put(self, space: str, sha256: str, data: AsyncIterable[bytes]) -> int:
        info = await self._objects.put(_key(space, sha256), data, sha256=sha256)
        return info.size_bytes

    async def size(self, space: str, sha256: str) -> int | None:
        info = await self._objects.head(_key(space, sha256))
        return None if info is None else info.size_bytes

    def read(self, space: str, sha256: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        return self._objects.get(_key(space, sha256), start=start, length=length)


def _key(space: str, sha256: str) -> str:
    return f"blobs/{space}/sha256/{sha256[:2]}/{sha256}"
