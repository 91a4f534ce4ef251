"""Documents in one SQLite file: one thread writes, some read, and saves that wait together are committed together.

A commit is in the write-ahead log when `save` returns: a killed process loses
nothing. The log is synced at least every second of writing, so a power cut loses at
most that; the file stays consistent.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from modelworks.kit.errors import InvalidInput, StoreUnavailable, VersionConflict
from modelworks.stores.documents.fields import check_collection, check_id, check_schema, encode, merge
from modelworks.stores.documents.port import Document, FieldType, Hit, Page, Query, Schema, Version
from modelworks.stores.documents.queries import check_query
from modelworks.stores.documents.sqlite_tables import Tables

T = TypeVar("T")

_READERS = 3
_BATCH_MAX = 200
"""Most saves in one commit."""
_CREATE_BATCH = 500
_SYNC_SECONDS = 1.0
_BUSY_SECONDS = 5.0


class SqliteDocuments:
    """The embedded document store."""

    def __init__(self, path: Path) -> None:
        """Touches nothing yet: the file is made on first use."""
        self._path = path
        self._writer = _Writer(path)
        self._readers = ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="documents")
        self._connections = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._tables: dict[str, Tables] = {}
        self._closed = False

    async def ensure(self, schema: Schema) -> None:
        def make(db: sqlite3.Connection) -> Tables:
            stored = _load(db, schema.collection)
            merged = merge(schema.collection, stored or {}, wanted)
            tables = Tables(schema.collection, merged)
            if stored != merged:
                tables.create(db, stored)
                db.execute(
                    "INSERT OR REPLACE INTO collections (name, fields) VALUES (?, ?)",
                    (schema.collection, json.dumps(merged)),
                )
            return tables

        wanted = check_schema(schema)
        self._tables[schema.collection] = await self._write(make)

    async def get(self, collection: str, id: str) -> Document | None:
        check_id(id)
        tables = await self._collection(collection)
        row = await self._read(lambda db: tables.get(db, id))
        return None if row is None else Document(id, json.loads(row[0]), str(row[1]))

    async def save(self, collection: str, id: str, body: Mapping[str, Any], *, expected: Version | None) -> Document:
        def write(db: sqlite3.Connection) -> int:
            version = _next_version(db)
            if expected is None:
                if not tables.insert(db, id, text, stored, version):
                    raise VersionConflict(f"{collection} {id!r} exists already: read it, then save what you read")
            elif not tables.update(db, id, text, stored, version, _number(expected)):
                raise VersionConflict(f"{collection} {id!r} was changed by somebody else: read it again and retry")
            return version

        check_id(id)
        tables = await self._collection(collection)
        text = encode(body)
        # What comes back is what a later `get` returns, and shares nothing with the caller's.
        stored = json.loads(text)
        return Document(id, stored, str(await self._write(write)))

    async def create_many(self, collection: str, documents: Sequence[tuple[str, Mapping[str, Any]]]) -> Sequence[str]:
        def write(db: sqlite3.Connection, batch: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
            version = _next_version(db)
            encoded = ((id, encode(body)) for id, body in batch)
            return [id for id, text in encoded if not tables.insert(db, id, text, json.loads(text), version)]

        tables = await self._collection(collection)
        for id, _ in documents:
            check_id(id)
        existed: list[str] = []
        for start in range(0, len(documents), _CREATE_BATCH):
            batch = documents[start : start + _CREATE_BATCH]
            existed += await self._write(partial(write, batch=batch))
        return existed

    async def delete(self, collection: str, id: str, *, expected: Version) -> None:
        def write(db: sqlite3.Connection) -> None:
            if not tables.delete(db, id, _number(expected)):
                raise VersionConflict(f"{collection} {id!r} was changed or deleted by somebody else: read it again")

        check_id(id)
        tables = await self._collection(collection)
        await self._write(write)

    async def search(self, collection: str, query: Query, *, facets: Sequence[str] = ()) -> Page:
        def find(db: sqlite3.Connection) -> Page:
            rows, total, counts = tables.search(db, checked)
            shown = rows[: checked.limit]
            cursor = checked.cursor(shown[-1].key, shown[-1].id) if len(rows) > checked.limit else None
            hits = [Hit(Document(row.id, json.loads(row.body), str(row.version)), row.score) for row in shown]
            return Page(hits, total, cursor, counts)

        tables = await self._collection(collection)
        checked = check_query(collection, tables.fields, query, facets)
        return await self._read(find)

    async def refresh(self, collection: str) -> None:
        await self._collection(collection)

    async def check(self) -> None:
        def probe(db: sqlite3.Connection) -> None:
            db.execute("UPDATE versions SET last = last")

        await self._write(probe)

    async def close(self) -> None:
        self._closed = True
        await asyncio.to_thread(self._readers.shutdown)
        while self._opened:
            self._opened.pop().close()
        await asyncio.to_thread(self._writer.close)

    async def _collection(self, name: str) -> Tables:
        tables = self._tables.get(name)
        if tables is None:
            check_collection(name)
            fields = await self._read(lambda db: _load(db, name))
            if fields is None:
                raise InvalidInput(f"collection {name!r} was not made yet: call ensure with its schema first")
            tables = self._tables.setdefault(name, Tables(name, fields))
        return tables

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise StoreUnavailable(f"document store {self._path} was closed")
        return await asyncio.wrap_future(self._writer.submit(work))

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            try:
                return work(self._reader())
            except sqlite3.Error as error:
                raise _unavailable(self._path, error) from error

        if self._closed:
            raise StoreUnavailable(f"document store {self._path} was closed")
        if not self._opened:
            # The writer makes the file and its first tables.
            await asyncio.wrap_future(self._writer.submit(lambda _: None))
        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    def _reader(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._connections, "db", None)
        if db is None:
            # One thread uses it; another one closes it.
            db = sqlite3.connect(
                self._path, isolation_level=None, timeout=_BUSY_SECONDS, check_same_thread=False, cached_statements=256
            )
            db.execute("PRAGMA query_only = ON")
            self._connections.db = db
            self._opened.append(db)
        return db


class _Writer:
    """The one thread that writes. It takes all that waits, does each in a savepoint, and commits once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.SimpleQueue[tuple[Callable[[sqlite3.Connection], Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._synced_at = time.monotonic()
        self._unsynced = False

    def submit(self, work: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Do the work in a transaction; the future is done when it is committed."""
        future: Future[T] = Future()
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="documents-writer", daemon=True)
                    self._thread.start()
        self._jobs.put((work, future))
        return future

    def close(self) -> None:
        """Finish what was submitted and stop."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            try:
                first = self._jobs.get(timeout=_SYNC_SECONDS if self._unsynced else None)
            except queue.Empty:
                self._sync()
                continue
            batch = []
            job = first
            while True:
                if job is None:
                    stopping = True
                    break
                # A caller that was cancelled in time is spared.
                if job[1].set_running_or_notify_cancel():
                    batch.append(job)
                if len(batch) >= _BATCH_MAX or self._jobs.empty():
                    break
                job = self._jobs.get()
            if batch:
                self._commit(batch)
            if time.monotonic() - self._synced_at > _SYNC_SECONDS:
                self._sync()
        if self._db is not None:
            self._db.close()

    def _commit(self, batch: Sequence[tuple[Callable[[sqlite3.Connection], Any], Future[Any]]]) -> None:
        outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            db = self._open()
            db.execute("BEGIN IMMEDIATE")
            for work, future in batch:
                db.execute("SAVEPOINT job")
                try:
                    outcomes.append((future, work(db), None))
                except (sqlite3.Error, OSError):
                    raise
                except Exception as error:
                    # Refused, or a fault in one job: the others must not pay for it.
                    db.execute("ROLLBACK TO job")
                    outcomes.append((future, None, error))
                db.execute("RELEASE job")
            db.execute("COMMIT")
            self._unsynced = True
        except BaseException as error:
            self._abandon()
            failure = _unavailable(self._path, error) if isinstance(error, (sqlite3.Error, OSError)) else error
            for _, future in batch:
                future.set_exception(failure)
            return
        for future, result, refused in outcomes:
            if refused is not None:
                future.set_exception(refused)
            else:
                future.set_result(result)

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self._path, isolation_level=None, timeout=_BUSY_SECONDS, cached_statements=512)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute("BEGIN IMMEDIATE")
                db.execute("CREATE TABLE IF NOT EXISTS collections (name TEXT PRIMARY KEY, fields TEXT NOT NULL)")
                # One counter for all: a document that was deleted and made again never has an old version.
                db.execute("CREATE TABLE IF NOT EXISTS versions (last INTEGER NOT NULL)")
                db.execute("INSERT INTO versions SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM versions)")
                db.execute("COMMIT")
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def _abandon(self) -> None:
        """After a failure start afresh: the next job opens the file again."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _sync(self) -> None:
        """Move the log into the file, which syncs both."""
        self._synced_at = time.monotonic()
        self._unsynced = False
        if self._db is not None:
            try:
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            except sqlite3.Error:
                self._abandon()  # the next save meets the same trouble and tells its caller


def _next_version(db: sqlite3.Connection) -> int:
    number: int = db.execute("UPDATE versions SET last = last + 1 RETURNING last").fetchone()[0]
    return number


def _number(version: Version) -> int:
    """The version as it is stored; one that is not ours matches no document."""
    return int(version) if version.isascii() and version.isdigit() and len(version) < 19 else -1


def _load(db: sqlite3.Connection, collection: str) -> dict[str, FieldType] | None:
    row = db.execute("SELECT fields FROM collections WHERE name = ?", (collection,)).fetchone()
    return None if row is None else {path: FieldType(kind) for path, kind in json.loads(row[0]).items()}


def _unavailable(path: Path, error: BaseException) -> StoreUnavailable:
    reason = getattr(error, "strerror", None) or str(error)
    way_out = "Give a folder on a disk with space that this user may write"
    if "not a database" in reason or "malformed" in reason:
        way_out = "The file is damaged: restore it from a backup, or move it away to start empty"
    return StoreUnavailable(f"document store {path} cannot be used: {reason}. {way_out}")
