"""The log's files in the object store, under `audit/`: the layout of C2SP tlog-tiles, with plans and long bodies beside it."""

from __future__ import annotations

from modelworks.audit.domain import Fenced
from modelworks.audit.tlog.hashes import HASH_BYTES
from modelworks.audit.tlog.tiles import TILE_WIDTH, Bundle, Tile, decode_entries, encode_entries
from modelworks.kit.errors import NotFound, StoreUnavailable, VersionConflict
from modelworks.stores import Objects

_PREFIX = "audit/"
_CHECKPOINT = "audit/checkpoint"
_BYTES_MAX = 64 * 1024 * 1024
"""Above what a bundle (16 MiB) and a plan of the largest allowed step can have."""
_TRIES = 5


class ObjectLog:
    """`Log` over `Objects`."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    async def note(self) -> str | None:
        try:
            return (await self._objects.read(_CHECKPOINT)).decode()
        except NotFound:
            return None

    async def checkpoint(self) -> tuple[str, str] | None:
        for _ in range(_TRIES):
            before = await self._objects.head(_CHECKPOINT)
            if before is None:
                return None
            note = await self._objects.read(_CHECKPOINT)
            after = await self._objects.head(_CHECKPOINT)
            # The store has no read that gives bytes and etag together: take both from between two writes.
            if after is not None and after.etag == before.etag:
                return note.decode(), after.etag
        raise StoreUnavailable(f"{_CHECKPOINT} is replaced faster than it can be read: another process extends the log")

    async def version(self) -> str | None:
        info = await self._objects.head(_CHECKPOINT)
        return info.etag if info else None

    async def publish(self, note: str, *, replaces: str | None) -> str:
        try:
            info = await self._objects.put(_CHECKPOINT, note.encode(), if_absent=replaces is None, if_match=replaces)
        except VersionConflict as error:
            raise Fenced("another process published a checkpoint: this one starts again from it") from error
        return info.etag

    async def read(self, name: Tile | Bundle) -> bytes:
        try:
            return await self._read(name)
        except NotFound:
            if name.width == TILE_WIDTH:
                raise
        # Partial forms are removed once the full one is there.
        if isinstance(name, Tile):
            return (await self._read(Tile(name.level, name.number)))[: name.width * HASH_BYTES]
        return encode_entries(decode_entries(await self._read(Bundle(name.number)))[: name.width])

    async def _read(self, name: Tile | Bundle) -> bytes:
        return await self._objects.read(_PREFIX + name.path, bytes_max=_BYTES_MAX)

    async def write(self, name: Tile | Bundle, data: bytes) -> None:
        await self._objects.put(_PREFIX + name.path, data)

    async def forget_partials(self, name: Tile | Bundle) -> None:
        async for info in self._objects.list(f"{_PREFIX}{name.path}.p/"):
            await self._objects.delete(info.key)

    async def plan(self, start: int) -> bytes | None:
        try:
            return await self._objects.read(_plan(start), bytes_max=_BYTES_MAX)
        except NotFound:
            return None

    async def write_plan(self, start: int, data: bytes) -> None:
        try:
            await self._objects.put(_plan(start), data, if_absent=True)
        except VersionConflict as error:
            raise Fenced(f"another process plans the leaves from {start} on: this one starts again") from error

    async def forget_plans(self, before: int) -> None:
        async for info in self._objects.list(f"{_PREFIX}plan/"):
            if info.key >= _plan(before):
                break
            await self._objects.delete(info.key)

    async def read_body(self, sha256: str) -> bytes:
        return await self._objects.read(f"{_PREFIX}body/{sha256}")

    async def write_body(self, sha256: str, data: bytes) -> None:
        await self._objects.put(f"{_PREFIX}body/{sha256}", data, sha256=sha256)


def _plan(start: int) -> str:
    return f"{_PREFIX}plan/{start:020d}"
