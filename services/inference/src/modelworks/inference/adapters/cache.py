"""Model files on the node's disk, by digest: verified when they come and again when they are used."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from modelworks.inference.domain import Artifact
from modelworks.inference.ports import ModelSource
from modelworks.kit.errors import StoreUnavailable, TooLarge
from modelworks.kit.logging import get_logger

log = get_logger("cache")

_CHUNK_BYTES = 1024 * 1024
_FILE = "model"


class FolderCache:
    """`<folder>/<sha256>/model`; a folder each, so that a model finds no file of another beside it."""

    def __init__(self, folder: Path, source: ModelSource, *, bytes_max: int) -> None:
        self._folder = folder
        self._source = source
        self._bytes_max = bytes_max
        self._fetching = asyncio.Lock()

    async def fetch(self, model: str, revision: str, artifact: Artifact) -> Path:
        """See ModelCache."""
        if artifact.size_bytes > self._bytes_max:
            raise TooLarge(
                f"{artifact.path} of {model} has {artifact.size_bytes} bytes, this worker's cache holds "
                f"{self._bytes_max}: raise INFERENCE_CACHE_BYTES_MAX"
            )
        path = self._folder / artifact.sha256 / _FILE
        # One at a time: the bound is on all of them together, and so is the line to the registry.
        async with self._fetching:
            if await asyncio.to_thread(_sound, path, artifact.sha256):
                return path
            try:
                await asyncio.to_thread(self._make_room, artifact.size_bytes, path.parent)
                await self._source.download(model, revision, artifact, path)
            except OSError as error:
                raise StoreUnavailable(f"the model cache {self._folder} cannot be written: {error.strerror}") from error
            finally:
                with suppress(OSError):
                    path.parent.rmdir()
        return path

    def _make_room(self, size_bytes: int, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        files = []
        for entry in self._folder.iterdir():
            file = entry / _FILE
            if file.is_file():
                stat = file.stat()
                files.append((stat.st_mtime, stat.st_size, entry))
            elif entry != folder and entry.is_dir():
                # What a killed download left.
                shutil.rmtree(entry, ignore_errors=True)
        used = sum(size for _, size, _ in files)
        for _, size, entry in sorted(files):
            if used + size_bytes <= self._bytes_max:
                break
            # A loaded model keeps its bytes: it has read or mapped them.
            shutil.rmtree(entry, ignore_errors=True)
            used -= size
            log.info("cache.evicted", sha256=entry.name, size_bytes=size)
        folder.mkdir(parents=True, exist_ok=True)


def _sound(path: Path, sha256: str) -> bool:
    """Whether the file is there with its digest; a damaged one is removed, and used ones are marked so."""
    try:
        hasher = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                hasher.update(chunk)
    except OSError:
        return False
    if hasher.hexdigest() != sha256:
        log.warning("cache.damaged", sha256=sha256)
        shutil.rmtree(path.parent, ignore_errors=True)
        return False
    os.utime(path)
    return True
