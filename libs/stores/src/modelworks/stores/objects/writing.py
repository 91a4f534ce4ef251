"""Writing a file so that its name shows it whole or not at all, whatever dies when."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_STALE_SECONDS = 60
_FLUSH_BYTES = 8 * 1024 * 1024
_ATTEMPTS = 100
_LOCKS = 64


def etag_of(status: os.stat_result) -> str:
    """A tag that differs between any two files that ever had a name: time of writing (ns), size, inode."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"


class TemporaryFile:
    """A file without a name that readers know; removed on `close` unless it was committed."""

    def __init__(self, folder: Path, *, hashing: bool) -> None:
        self.path = folder / uuid.uuid4().hex
        self.size_bytes = 0
        self._hash = hashlib.sha256() if hashing else None
        self._unsynced = 0
        self._descriptor: int | None = os.open(
            self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o644
        )
        if fcntl is not None:
            # Held until the descriptor closes, by a crash too: `remove_stale` sees who is alive.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __enter__(self) -> TemporaryFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Append."""
        assert self._descriptor is not None
        if self._hash is not None:
            self._hash.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.size_bytes += len(data)
        self._unsynced += len(data)
        if self._unsynced >= _FLUSH_BYTES:
            self._flush()

    def hexdigest(self) -> str:
        """sha256 of what was written so far."""
        assert self._hash is not None
        return self._hash.hexdigest()

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        assert self._descriptor is not None
        os.fsync(self._descriptor)

    def _flush(self) -> None:
        """Have the disk begin with what was written, so that the sync at the end waits for little."""
        assert self._descriptor is not None
        if hasattr(os, "posix_fadvise"):
            # For pages that are dirty this starts writing them, and returns at once.
            start = self.size_bytes - self._unsynced
            os.posix_fadvise(self._descriptor, start, self._unsynced, os.POSIX_FADV_DONTNEED)
        self._unsynced = 0

    def seal(self) -> str:
        """Sync it and return its etag; nothing is written after this."""
        assert self._descriptor is not None
        # The kernel's own times are too coarse (4 ms) to tell two writes apart.
        now = time.time_ns()
        os.utime(self.path, ns=(now, now))
        self.sync()
        return etag_of(os.fstat(self._descriptor))

    def close(self) -> None:
        """Remove it, unless it was committed; may be called again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        with suppress(FileNotFoundError):
            self.path.unlink()


class KeyLocks:
    """One lock for a key, against threads and other processes; keys share 64 of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._threads = [threading.Lock() for _ in range(_LOCKS)]

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Hold the key's lock; a process that dies lets go of it."""
        number = zlib.crc32(key.encode()) % _LOCKS
        with self._threads[number]:
            if fcntl is None:
                yield
                return
            descriptor = os.open(self._folder / f"{number:02}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)


def commit(file: TemporaryFile, path: Path, *, root: Path, exclusive: bool = False) -> None:
    """Give a sealed file its name, durably. `root` is the folder that must stay.

    Raises:
        FileExistsError: `exclusive`, and the name is taken.
        FileNotFoundError: the folder went away again and again.
    """
    for attempt in range(_ATTEMPTS):
        try:
            made = _make_folders(path.parent, root)
            if exclusive:
                os.link(file.path, path)
            else:
                os.replace(file.path, path)
        except FileNotFoundError:
            # A delete of the last neighbour took the empty folder away between two of these steps.
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        break
    for folder in {path.parent, *(made_folder.parent for made_folder in made)}:
        _sync_folder(folder)


def _make_folders(folder: Path, root: Path) -> list[Path]:
    missing = []
    at = folder
    while at != root and not at.exists():
        missing.append(at)
        at = at.parent
    for path in reversed(missing):
        with suppress(FileExistsError):
            path.mkdir()
    return missing


def _sync_folder(folder: Path) -> None:
    """Make a rename in it survive a power cut. Windows cannot, and need not."""
    with suppress(FileNotFoundError, PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files whose writer is gone."""
    for entry in os.scandir(folder):
        # A file is made and then locked: one that is younger may be between the two.
        with suppress(OSError):
            age_seconds = time.time() - entry.stat().st_mtime
            if age_seconds > (_STALE_SECONDS if fcntl is not None else 86_400) and not _is_locked(entry.path):
                os.unlink(entry.path)


def _is_locked(path: str) -> bool:
    if fcntl is None:
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
