"""A leaf: the envelope as it came and the event's own bytes, never serialised again.

One line of canonical JSON with the CloudEvents attributes and what is kept of
the body, a newline, then the body's exact bytes (or nothing). Whoever verifies
hashes these bytes and nothing else. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn

LEAF_BYTES_MAX = 65_535
"""Of C2SP tlog-tiles: an entry's length is a uint16 in its bundle."""

Kept = Literal["full", "digest", "stored"]
"""`full`: the body is in the leaf. `digest`: only its sha256, on purpose. `stored`: its sha256, and the body lies beside
the log because it does not fit a leaf."""

_TEXTS = ("type", "source", "id", "subject", "time", "actor", "at", "kept", "sha256")


class EntryError(ValueError):
    """A message or leaf that cannot be an entry of the log; the text says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a leaf says."""

    type: str
    source: str
    id: str
    subject: str
    """The event's key: the aggregate it is about."""
    time: str
    """As its producer wrote it (RFC 3339)."""
    actor: str
    at: str
    """`<partition>:<offset>` of the message on the bus."""
    kept: Kept
    sha256: str
    """Of the body."""
    size_bytes: int
    """Of the body."""
    body: bytes | None
    """Only when `kept` is `full`."""
    trace: str = ""
    """W3C `traceparent`; empty outside a trace."""

    @property
    def key(self) -> str:
        """Names the event: two messages with one key are the same event, delivered or published twice.

        The body's digest is part of it, so that nobody can hide an event by sending another under its id first.
        """
        said = f"{self.type}\n{self.source}\n{self.id}\n{self.sha256}"
        return hashlib.sha256(said.encode()).hexdigest()[:32]

    @property
    def happened_at(self) -> datetime:
        """The event's time in UTC.

        Raises:
            EntryError: it is no time.
        """
        try:
            return datetime.fromisoformat(self.time).astimezone(UTC)
        except (ValueError, OverflowError) as error:
            raise EntryError(f"event {self.id!r} has the time {self.time!r}: send RFC 3339") from error

    def data(self, body: bytes | None = None) -> dict[str, Any] | None:
        """The event's properties; None when its body is kept as a digest. A `stored` body is given.

        Raises:
            EntryError: the body is no JSON object.
        """
        raw = self.body if self.kept == "full" else body if self.kept == "stored" else None
        return None if raw is None else _load(raw)


def make_entry(headers: Mapping[str, str], body: bytes, *, at: str, arrived: datetime, digest_only: bool) -> Entry:
    """The entry of a message whose envelope was checked.

    Args:
        headers: `ce_*` attributes, names in lower case.
        arrived: when it was published; stands for the event's time where that is absent.
        digest_only: the body may carry users' tensors and is not kept.

    Raises:
        EntryError: its time or its body is nothing the log can keep.
    """
    entry = Entry(
        type=headers["ce_type"],
        source=headers["ce_source"],
        id=headers["ce_id"],
        subject=headers.get("ce_subject", ""),
        time=headers.get("ce_time") or arrived.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        actor=headers.get("ce_actor") or "system",
        at=at,
        kept="digest" if digest_only else "full",
        sha256=hashlib.sha256(body).hexdigest(),
        size_bytes=len(body),
        body=None if digest_only else body,
        trace=headers.get("traceparent", ""),
    )
    # What follows a signature must never fail on content: everything that could is tried here, before the log is touched.
    _ = entry.happened_at
    if not digest_only:
        parse_object(body)
    leaf = encode_leaf(entry)
    if len(leaf) <= LEAF_BYTES_MAX:
        return entry
    entry = Entry(**{**_fields(entry), "kept": "stored", "body": None})
    if len(encode_leaf(entry)) > LEAF_BYTES_MAX:
        raise EntryError(f"the attributes of event {entry.id[:100]!r} do not fit a leaf of {LEAF_BYTES_MAX} bytes")
    return entry


def encode_leaf(entry: Entry) -> bytes:
    """The leaf's bytes.

    Raises:
        EntryError: a text is no Unicode.
    """
    head = _fields(entry)
    body = head.pop("body")
    if not entry.trace:
        del head["trace"]
    try:
        line = json.dumps({"v": 1, **head}, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise EntryError(f"event {entry.id[:100]!r} has half of a surrogate pair in an attribute") from error
    return line + b"\n" + (body or b"")


def decode_leaf(leaf: bytes) -> Entry:
    """The entry in a leaf's bytes.

    Raises:
        EntryError: they are no leaf of this log.
    """
    line, newline, body = leaf.partition(b"\n")
    head = _load(line)
    if not newline or head.get("v") != 1 or not all(isinstance(head.get(name), str) for name in _TEXTS):
        raise EntryError("the leaf does not start with an envelope of version 1")
    kept, size = head["kept"], head.get("size_bytes")
    if (
        kept not in ("full", "digest", "stored")
        or not isinstance(size, int)
        or not isinstance(head.get("trace", ""), str)
    ):
        raise EntryError("the leaf's envelope has a property of another type")
    if kept == "full" and (len(body) != size or hashlib.sha256(body).hexdigest() != head["sha256"]):
        raise EntryError(f"the leaf of event {head['id']!r} does not hold the body that its envelope names")
    if kept != "full" and body:
        raise EntryError(f"the leaf of event {head['id']!r} holds a body that its envelope says is not kept")
    return Entry(
        **{name: head[name] for name in _TEXTS},
        size_bytes=size,
        body=body if kept == "full" else None,
        trace=head.get("trace", ""),
    )


def parse_object(raw: bytes) -> dict[str, Any]:
    """JSON text as an object, without what some readers of JSON take and others do not.

    Raises:
        EntryError: it is no JSON object, or has NaN, infinities, numbers past a double, or half of a surrogate pair.
    """

    def refuse(constant: str) -> NoReturn:
        raise EntryError(f"{constant} is no JSON")

    try:
        value = json.loads(raw.decode(), parse_constant=refuse, parse_int=_parse_int)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except EntryError:
        raise
    except (ValueError, RecursionError) as error:
        raise EntryError(f"this is no JSON that every reader takes: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise EntryError("this is no JSON object")
    return value


def _load(raw: bytes) -> dict[str, Any]:
    """JSON that passed `parse_object` when it was made."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise EntryError(f"this is no JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise EntryError("this is no JSON object")
    return value


def _parse_int(digits: str) -> int:
    # Longer ones lose digits, or the whole document, in readers that keep numbers as doubles.
    if len(digits) > 300:
        raise EntryError(f"a number of {len(digits)} digits is not kept")
    return int(digits)


def _fields(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in Entry.__slots__}
