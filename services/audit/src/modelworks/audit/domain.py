"""What the log decides: which messages it keeps, as what, and what one step of growth is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from modelworks.audit.entry import Entry, EntryError, encode_leaf, make_entry
from modelworks.audit.tlog.note import SignedCheckpoint
from modelworks.audit.tlog.tiles import decode_entries, encode_entries
from modelworks.audit.tlog.tree import Edge
from modelworks.events import ALL, BY_TOPIC, Audited, Envelope
from modelworks.kit.errors import Conflict, ModelworksError

TOPICS = tuple(sorted(event.topic for event in ALL if event.audited is not Audited.NO))
"""Topics that the log keeps."""


class Fenced(Conflict):
    """Another process extends the log: whoever gets this has lost, and must start again from the stored checkpoint."""

    code = "fenced"


class LogDamaged(ModelworksError):
    """The log's own files contradict each other. Nothing is signed until a person has looked."""

    code = "log-damaged"


@dataclass(frozen=True, slots=True)
class Head:
    """The log as this process knows it."""

    edge: Edge
    checkpoint: SignedCheckpoint
    version: str
    """Of the stored checkpoint: it is replaced only while it still has this version."""

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self.edge.size


@dataclass(frozen=True, slots=True)
class Candidate:
    """An event on its way into the log."""

    entry: Entry
    leaf: bytes
    body: bytes
    """Kept beside the log only when `entry.kept` is `stored`."""


def candidate(headers: Mapping[str, str], body: bytes, *, at: str, published_at: datetime) -> Candidate:
    """The event of a message.

    Raises:
        EnvelopeError: it is not an event of ours.
        EntryError: the log cannot keep it.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    envelope = Envelope.parse(lower, body, BY_TOPIC)
    if envelope.event.audited is Audited.NO:
        raise EntryError(f"events of type {envelope.topic!r} are not audited")
    entry = make_entry(lower, body, at=at, arrived=published_at, digest_only=envelope.event.audited is Audited.DIGEST)
    return Candidate(entry, encode_leaf(entry), body)


def fresh(candidates: Iterable[Candidate], known: Iterable[str]) -> list[Candidate]:
    """Those whose key is not known, each key once, in their order."""
    seen = set(known)
    kept: list[Candidate] = []
    for each in candidates:
        if each.entry.key not in seen:
            seen.add(each.entry.key)
            kept.append(each)
    return kept


def chunks(candidates: Sequence[Candidate], *, bytes_max: int) -> Iterator[list[Candidate]]:
    """Steps of bounded size, each with at least one event."""
    chunk: list[Candidate] = []
    size = 0
    for each in candidates:
        weight = len(each.leaf) + (len(each.body) if each.entry.kept == "stored" else 0)
        if chunk and size + weight > bytes_max:
            yield chunk
            chunk, size = [], 0
        chunk.append(each)
        size += weight
    if chunk:
        yield chunk


def encode_plan(start: int, leaves: Sequence[bytes]) -> bytes:
    """What will be leaves `start` and following, as it is stored before anything of it is applied."""
    return start.to_bytes(8, "big") + encode_entries(leaves)


def decode_plan(start: int, data: bytes) -> list[bytes]:
    """The leaves of a stored plan.

    Raises:
        LogDamaged: it is not a plan for this place.
    """
    try:
        leaves = decode_entries(data[8:])
    except ValueError as error:
        raise LogDamaged(f"the plan at leaf {start} is damaged: {error}") from error
    if int.from_bytes(data[:8], "big") != start or not leaves:
        raise LogDamaged(f"the plan at leaf {start} is of another place, or empty")
    return leaves
