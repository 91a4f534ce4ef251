"""The embedded bus's file: topics, positions of groups, retries and dead letters in one SQLite database.

One thread owns the one connection. Whatever callers ask for meanwhile is done
in one transaction (group commit), so that many small publishes cost one sync of
the disk. What must not be lost is synced before the caller goes on; positions
are only written: losing the last of them to a power cut repeats work, which
every handler must bear anyway. `kill -9` loses neither.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from modelworks.kit.errors import StoreUnavailable
from modelworks.stores.bus.port import DeadLetter, Delivery, Lag, Message
from modelworks.stores.bus.watermark import Watermark

T = TypeVar("T")

_OFFSET_BITS = 40
"""A row id is `topic << 40 | offset`: one B-tree gives append and range reads without a second index."""
_OFFSETS = 1 << _OFFSET_BITS
_TRANSACTION_MAX = 512
"""Requests in one transaction."""
_READ_BYTES_MAX = 8 * 1024 * 1024
_TRIM_STEP = 5000
_DEAD_LETTER_AGE = timedelta(days=90)
_DEAD_LETTERS_MAX = 100_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS log (
    id INTEGER PRIMARY KEY, published INTEGER NOT NULL, key TEXT NOT NULL, headers TEXT NOT NULL, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS positions (
    consumers TEXT NOT NULL, topic TEXT NOT NULL, position INTEGER NOT NULL, done TEXT NOT NULL, seen INTEGER NOT NULL,
    PRIMARY KEY (consumers, topic)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS retries (
    id INTEGER PRIMARY KEY, consumers TEXT NOT NULL, topic TEXT NOT NULL, due INTEGER NOT NULL, attempt INTEGER NOT NULL,
    "offset" INTEGER NOT NULL, published INTEGER NOT NULL, key TEXT NOT NULL, headers TEXT NOT NULL,
    value BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS retries_by_due ON retries (consumers, topic, due);
CREATE TABLE IF NOT EXISTS dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT, consumers TEXT NOT NULL, topic TEXT NOT NULL, failed INTEGER NOT NULL,
    error TEXT NOT NULL, attempts INTEGER NOT NULL, replayed INTEGER NOT NULL,
    "offset" INTEGER NOT NULL, published INTEGER NOT NULL, key TEXT NOT NULL, headers TEXT NOT NULL,
    value BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS dead_letters_by_topic ON dead_letters (topic, id);
"""
"""`consumers` is the group's name. Times are microseconds since 1970, UTC."""


@dataclass(frozen=True, slots=True)
class Retention:
    """When messages may go. What a known group has not passed stays whatever its age."""

    age: timedelta = timedelta(days=7)
    messages_max: int = 1_000_000
    """Per topic."""


@dataclass(frozen=True, slots=True)
class Parked:
    """What a settled delivery leaves behind beside its finished offset."""

    group: str
    delivery: Delivery
    attempt: int
    error: str = ""
    due: int | None = None
    """None: a dead letter."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a group stands in a topic."""

    group: str
    topic: str
    position: int
    done: str


@dataclass(slots=True)
class _Request:
    operation: Callable[[sqlite3.Connection], Any]
    durable: bool
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    committed: Callable[[Any], None] | None


class SqliteLog:
    """Requests to the database, answered after their transaction is committed."""

    def __init__(self, path: Path, *, retention: Retention) -> None:
        self.path = path
        self.retention = retention
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False
        self._topics: dict[str, int] = {}
        self._ends: dict[str, int] = {}

    async def run(
        self,
        operation: Callable[[sqlite3.Connection], T],
        *,
        durable: bool = False,
        committed: Callable[[T], None] | None = None,
    ) -> T:
        """Do the operation in a transaction.

        Args:
            durable: the disk is synced before this returns.
            committed: called in the event loop once it is, also when the caller has gone.

        Raises:
            StoreUnavailable: the file cannot be opened or written; nothing was written.
        """
        loop = asyncio.get_running_loop()
        request = _Request(operation, durable, loop, loop.create_future(), committed)
        with self._starting:
            if self._closed:
                raise StoreUnavailable(f"the bus in {self.path} is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=f"bus {self.path.name}", daemon=True)
                self._thread.start()
            self._requests.put(request)
        result: T = await request.future
        return result

    async def close(self) -> None:
        """End the thread after what was asked before."""
        with self._starting:
            self._closed = True
            thread = self._thread
            if thread is None:
                return
            self._requests.put(None)
        await asyncio.to_thread(thread.join)

    # The thread.

    def _serve(self) -> None:
        connection: sqlite3.Connection | None = None
        error: Exception | None = None
        try:
            connection = _connect(self.path)
            self._load(connection)
            while (requests := self._gather()) is not None:
                self._transact(connection, requests)
        except StoreUnavailable as unavailable:
            error = unavailable
        finally:
            if connection is not None:
                connection.close()
            with self._starting:
                self._thread = None
                gone = error or StoreUnavailable(f"the bus in {self.path} is closed")
                while True:
                    with suppress(queue.Empty):
                        request = self._requests.get_nowait()
                        if request is not None:
                            _answer([(request, gone)])
                        continue
                    break

    def _gather(self) -> list[_Request] | None:
        """The next requests, or None to end."""
        requests = []
        request = self._requests.get()
        while request is not None:
            requests.append(request)
            if len(requests) >= _TRANSACTION_MAX:
                return requests
            try:
                request = self._requests.get_nowait()
            except queue.Empty:
                return requests
        if requests:
            self._requests.put(None)
        return requests or None

    def _transact(self, connection: sqlite3.Connection, requests: list[_Request]) -> None:
        answers: list[tuple[_Request, Any]] = []
        try:
            durable = any(request.durable for request in requests)
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            answers = [(request, request.operation(connection)) for request in requests]
            connection.execute("COMMIT")
        except Exception as error:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            failure = StoreUnavailable(f"the bus could not write {self.path}: {error}. Is the disk full?")
            failure.__cause__ = error
            answers = [(request, failure) for request in requests]
            # What the operations counted on was rolled back.
            self._load(connection)
        finally:
            _answer(answers)

    def _load(self, connection: sqlite3.Connection) -> None:
        try:
            self._topics = dict(connection.execute("SELECT name, id FROM topics"))
            self._ends = {name: _end(connection, topic) for name, topic in self._topics.items()}
        except sqlite3.Error as error:
            raise StoreUnavailable(f"the bus could not read {self.path}: {error}") from error

    def _topic(self, connection: sqlite3.Connection, name: str) -> int:
        topic = self._topics.get(name)
        if topic is None:
            cursor = connection.execute("INSERT INTO topics (name) VALUES (?)", (name,))
            topic = self._topics[name] = int(cursor.lastrowid or 0)
            self._ends[name] = 0
        return topic

    # Operations: each is given to `run`, as `log.run(lambda c: log.append(c, messages))`.

    def append(self, connection: sqlite3.Connection, messages: Sequence[Message]) -> dict[str, int]:
        """Append; the new end of each topic."""
        now = micros()
        connection.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?)", self._rows(connection, messages, now))
        return {topic: self._ends[topic] for topic in {message.topic for message in messages}}

    def _rows(
        self, connection: sqlite3.Connection, messages: Sequence[Message], now: int
    ) -> Iterator[tuple[int, int, str, str, bytes]]:
        for message in messages:
            topic = self._topic(connection, message.topic)
            end = self._ends[message.topic]
            self._ends[message.topic] = end + 1
            yield topic * _OFFSETS + end, now, message.key, _dump(message.headers), message.value

    def ends(self, connection: sqlite3.Connection, topics: Sequence[str]) -> dict[str, int]:
        """The offset that each topic's next message will have; topics are made when missing."""
        for name in topics:
            self._topic(connection, name)
        return {name: self._ends[name] for name in topics}

    def read(self, connection: sqlite3.Connection, topic: str, offset: int, limit: int) -> list[Delivery]:
        """Messages from an offset on, at most `limit` and about 8 MiB."""
        base = self._topic(connection, topic) * _OFFSETS
        rows = connection.execute(
            "SELECT id, published, key, headers, value FROM log WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
            (base + offset, base + _OFFSETS, limit),
        )
        deliveries = []
        size = 0
        for id, published, key, headers, value in rows:
            message = Message(topic, key, value, json.loads(headers))
            deliveries.append(Delivery(message, 0, id - base, 1, moment(published)))
            size += len(value)
            if size >= _READ_BYTES_MAX:
                break
        return deliveries

    def join(self, connection: sqlite3.Connection, group: str, topic: str) -> tuple[Position, list[tuple[int, int]]]:
        """The group's position and its retries as (due, id); a new group starts at the oldest message."""
        base = self._topic(connection, topic) * _OFFSETS
        (oldest,) = connection.execute(
            "SELECT min(id) FROM log WHERE id >= ? AND id < ?", (base, base + _OFFSETS)
        ).fetchone()
        start = self._ends[topic] if oldest is None else oldest - base
        connection.execute(
            "INSERT INTO positions VALUES (?, ?, ?, '', ?) ON CONFLICT DO UPDATE SET seen = excluded.seen",
            (group, topic, start, micros()),
        )
        position, done = connection.execute(
            "SELECT position, done FROM positions WHERE consumers = ? AND topic = ?", (group, topic)
        ).fetchone()
        retries = connection.execute(
            "SELECT due, id FROM retries WHERE consumers = ? AND topic = ? ORDER BY due, id", (group, topic)
        ).fetchall()
        return Position(group, topic, max(position, start), done), retries

    def retry(self, connection: sqlite3.Connection, id: int) -> Delivery | None:
        """A parked message, as its next attempt; None when it is gone."""
        row = connection.execute(
            'SELECT topic, "offset", attempt, published, key, headers, value FROM retries WHERE id = ?', (id,)
        ).fetchone()
        if row is None:
            return None
        topic, offset, attempt, published, key, headers, value = row
        return Delivery(Message(topic, key, value, json.loads(headers)), 0, offset, attempt, moment(published))

    def settle(
        self,
        connection: sqlite3.Connection,
        *,
        positions: Sequence[Position],
        finished: Sequence[int] = (),
        parked: Sequence[Parked] = (),
    ) -> list[int]:
        """Move groups on, delete finished retries, park failures; the ids of what was parked."""
        for id in finished:
            connection.execute("DELETE FROM retries WHERE id = ?", (id,))
        ids = [_park(connection, one) for one in parked]
        now = micros()
        connection.executemany(
            "UPDATE positions SET position = ?, done = ?, seen = ? WHERE consumers = ? AND topic = ?",
            [(one.position, one.done, now, one.group, one.topic) for one in positions],
        )
        return ids

    def lag(self, connection: sqlite3.Connection, group: str) -> list[Lag]:
        """How far the group is behind, a topic."""
        found = []
        rows = connection.execute(
            "SELECT topic, position, done FROM positions WHERE consumers = ? ORDER BY topic", (group,)
        ).fetchall()
        for name, position, done in rows:
            base = self._topic(connection, name) * _OFFSETS
            waiting = max(0, self._ends[name] - position) - _finished(done)
            oldest = connection.execute("SELECT published FROM log WHERE id = ?", (base + position,)).fetchone()
            retries, oldest_retry = connection.execute(
                "SELECT count(*), min(published) FROM retries WHERE consumers = ? AND topic = ?", (group, name)
            ).fetchone()
            times = [time for time in (oldest[0] if oldest else None, oldest_retry) if time is not None]
            found.append(Lag(name, waiting + retries, moment(min(times)) if times else None))
        return found

    def dead_letters(self, connection: sqlite3.Connection, topic: str | None, limit: int) -> list[DeadLetter]:
        """Newest first."""
        condition, parameters = ("", ()) if topic is None else ("WHERE topic = ?", (topic,))
        rows = connection.execute(f"{_DEAD} {condition} ORDER BY id DESC LIMIT ?", (*parameters, limit))
        return [_dead_letter(row) for row in rows]

    def replay(self, connection: sqlite3.Connection, id: int) -> tuple[DeadLetter, int, int] | None:
        """Make the dead letter a retry that is due: the letter, the retry's id and when it is due."""
        row = connection.execute(f"{_DEAD} WHERE id = ?", (id,)).fetchone()
        if row is None:
            return None
        connection.execute("UPDATE dead_letters SET replayed = 1 WHERE id = ?", (id,))
        due = micros()
        cursor = connection.execute(
            "INSERT INTO retries SELECT NULL, consumers, topic, ?, 1, offset, published, key, headers, value"
            " FROM dead_letters WHERE id = ?",
            (due, id),
        )
        return _dead_letter((*row[:6], 1, *row[7:])), int(cursor.lastrowid or 0), due

    def trim(self, connection: sqlite3.Connection) -> int:
        """Delete a bounded number of messages that may go; how many went."""
        old = micros() - int(self.retention.age.total_seconds() * 1e6)
        floors = dict(
            connection.execute("SELECT topic, min(position) FROM positions WHERE seen >= ? GROUP BY topic", (old,))
        )
        trimmed = 0
        for name, topic in self._topics.items():
            base, end = topic * _OFFSETS, self._ends[name]
            # The newest message stays: the next offset is counted from it.
            floor = base + min(floors.get(name, end), end - 1)
            many = base + end - self.retention.messages_max
            rows = connection.execute(
                "SELECT id, published FROM log WHERE id >= ? AND id < ? ORDER BY id LIMIT ?", (base, floor, _TRIM_STEP)
            )
            last = None
            for id, published in rows:
                if id >= many and published >= old:
                    break
                last = id
            if last is not None:
                trimmed += connection.execute("DELETE FROM log WHERE id >= ? AND id <= ?", (base, last)).rowcount
        connection.execute(
            "DELETE FROM dead_letters WHERE failed < ? OR id <= (SELECT max(id) FROM dead_letters) - ?",
            (micros() - int(_DEAD_LETTER_AGE.total_seconds() * 1e6), _DEAD_LETTERS_MAX),
        )
        return trimmed


_DEAD = "SELECT id, consumers, topic, failed, error, attempts, replayed, key, headers, value FROM dead_letters"


def _dead_letter(row: Sequence[Any]) -> DeadLetter:
    id, group, topic, failed, error, attempts, replayed, key, headers, value = row
    return DeadLetter(
        id=str(id),
        message=Message(topic, key, value, json.loads(headers)),
        group=group,
        error=error,
        attempts=attempts,
        failed_at=moment(failed),
        replayed=bool(replayed),
    )


def _park(connection: sqlite3.Connection, parked: Parked) -> int:
    delivery = parked.delivery
    message = delivery.message
    body = (
        delivery.offset,
        int(delivery.published_at.timestamp() * 1e6),
        message.key,
        _dump(message.headers),
        message.value,
    )
    if parked.due is None:
        cursor = connection.execute(
            "INSERT INTO dead_letters VALUES (NULL, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?)",
            (parked.group, message.topic, micros(), parked.error, parked.attempt, *body),
        )
    else:
        cursor = connection.execute(
            "INSERT INTO retries VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (parked.group, message.topic, parked.due, parked.attempt, *body),
        )
    return int(cursor.lastrowid or 0)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
    except (OSError, sqlite3.Error) as error:
        raise StoreUnavailable(
            f"the bus cannot open {path}: {error}. Give a data folder that can be written"
        ) from error
    try:
        # Exclusive: this adapter is for one process, and a second one on the same file must hear so at once.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA cache_size=-4096")
        connection.executescript(_SCHEMA)
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreUnavailable(
                f"the bus in {path} is used by another process: stop that one, or give another data folder"
            ) from error
        raise StoreUnavailable(
            f"the bus cannot open {path}: {error}. Give a data folder that can be written"
        ) from error
    return connection


def _answer(answers: list[tuple[_Request, Any]]) -> None:
    loops = {id(request.loop): request.loop for request, _ in answers}
    for loop in loops.values():
        mine = [answer for answer in answers if answer[0].loop is loop]
        # RuntimeError: the loop is closed, nobody waits any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, mine)


def _resolve(answers: list[tuple[_Request, Any]]) -> None:
    for request, result in answers:
        failed = isinstance(result, StoreUnavailable)
        if not failed and request.committed is not None:
            request.committed(result)
        if request.future.done():
            continue
        if failed:
            request.future.set_exception(result)
        else:
            request.future.set_result(result)


def _end(connection: sqlite3.Connection, topic: int) -> int:
    (newest,) = connection.execute(
        "SELECT max(id) FROM log WHERE id >= ? AND id < ?", (topic * _OFFSETS, (topic + 1) * _OFFSETS)
    ).fetchone()
    return 0 if newest is None else int(newest) - topic * _OFFSETS + 1


def _finished(done: str) -> int:
    return Watermark(0, done).finished_ahead


def _dump(headers: Mapping[str, str]) -> str:
    return json.dumps(dict(headers), ensure_ascii=False, separators=(",", ":")) if headers else "{}"


def micros() -> int:
    """Now, in microseconds since 1970."""
    return time.time_ns() // 1000


def moment(micros: int) -> datetime:
    """Microseconds since 1970 as a time."""
    return datetime.fromtimestamp(micros / 1e6, UTC)
