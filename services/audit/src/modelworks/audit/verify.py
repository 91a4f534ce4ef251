"""The offline verifier: checks what the audit says with nothing but its public key. No store, no service, no network.

What a person should pin beforehand is the key (`GET /api/v1/audit/key`), and,
to notice a log that was rolled back or forked, the last checkpoint they saw.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelworks.audit.entry import Entry, EntryError, decode_leaf
from modelworks.audit.record import document
from modelworks.audit.tlog.hashes import HASH_BYTES
from modelworks.audit.tlog.note import SignedCheckpoint, VerificationError, Verifier, open_checkpoint
from modelworks.audit.tlog.proofs import verify_inclusion
from modelworks.audit.tlog.tiles import TILE_WIDTH, Bundle, Tile, decode_entries, tile_width
from modelworks.audit.tlog.tree import Edge

Fetch = Callable[[str], Awaitable[bytes]]
"""Reads a file of the log by its path: `checkpoint`, `tile/...`."""

_ENTRIES_STEP = 200


@dataclass(frozen=True, slots=True)
class LogReport:
    """A log that was read and found whole."""

    origin: str
    size: int
    root: str
    checkpoint: str
    """The signed note: keep it, and give it as `earlier` next time."""


def verify_search_answer(answer: Mapping[str, Any], vkey: str) -> int:
    """Check each item of a search (or entry) answer against the checkpoint in it; returns how many were checked.

    An item holds when its leaf is in the signed tree at its index, and everything else that it says follows from that leaf.

    Raises:
        VerificationError: the checkpoint is missing or not signed by the key, or an item does not hold.
    """
    checkpoint = _checkpoint(answer.get("checkpoint"), vkey)
    items = answer.get("items")
    if not isinstance(items, Sequence):
        raise VerificationError("the answer has no items")
    for item in items:
        verify_item(item, checkpoint)
    return len(items)


def verify_item(item: Mapping[str, Any], checkpoint: SignedCheckpoint) -> Entry:
    """Check one item; returns what its leaf says.

    Raises:
        VerificationError: it does not hold.
    """
    index, proof = item.get("index"), item.get("proof")
    if not isinstance(index, int) or isinstance(index, bool) or not isinstance(proof, Mapping):
        raise VerificationError(f"an item has no index or no proof: {str(item)[:200]}")
    if proof.get("index") != index or proof.get("size") != checkpoint.size:
        raise VerificationError(f"leaf {index}: its proof is for another leaf or another tree")
    leaf = _bytes(item.get("leaf"), index)
    try:
        hashes = [bytes.fromhex(each) for each in proof["hashes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"leaf {index}: its proof is no list of hashes") from error
    if any(len(each) != HASH_BYTES for each in hashes):
        raise VerificationError(f"leaf {index}: its proof has a hash that is none")
    verify_inclusion(leaf, index, hashes, checkpoint)
    entry = _entry(index, leaf)
    body = _bytes(item["body"], index) if "body" in item else None
    expected = item_of(document(index, leaf, entry, _checked_body(index, entry, body)))
    for name, value in expected.items():
        if item.get(name) != value:
            raise VerificationError(f"leaf {index}: {name!r} is not what the leaf says")
    if "data" in item and "data" not in expected:
        raise VerificationError(f"leaf {index}: the answer has data that the leaf does not hold")
    return entry


def item_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer says of a leaf, from the leaf's document. Missing parts read as None: the verifier will object."""
    item = {
        "index": at(body, "event", "index"),
        "id": at(body, "event", "id"),
        "type": at(body, "event", "type"),
        "source": at(body, "event", "source"),
        "time": body.get("time_dt"),
        "actor": at(body, "actor", "user", "name"),
        "resource": at(body, "resource", "name"),
        "outcome": body.get("outcome"),
        "message": body.get("message"),
    }
    return {**item, "data": body["data"]} if "data" in body else item


def at(body: Any, *path: str) -> Any:
    """What lies at a path; None where the document has no such place."""
    for name in path:
        body = body.get(name) if isinstance(body, Mapping) else None
    return body


async def verify_log(
    fetch: Fetch,
    vkey: str,
    *,
    documents: Iterable[Mapping[str, Any]] | None = None,
    earlier: str | None = None,
) -> LogReport:
    """Read the whole log and check it: every entry, every tile, and the root that was signed.

    Args:
        documents: of the index, all of them: they must be those of the leaves, no more and no fewer.
        earlier: a checkpoint seen before: the log must be a continuation of it.

    Raises:
        VerificationError: something does not hold; the text names it.
    """
    checkpoint = _checkpoint((await fetch("checkpoint")).decode("utf-8", "replace"), vkey)
    replay = _Replay(checkpoint, vkey, earlier)
    claimed = None if documents is None else _by_index(documents)
    for number in range(-(-checkpoint.size // TILE_WIDTH)):
        bundle = Bundle(number, tile_width(0, number, checkpoint.size))
        try:
            leaves = decode_entries(await fetch(bundle.path))
        except ValueError as error:
            raise VerificationError(f"{bundle.path}: {error}") from error
        if len(leaves) != bundle.width:
            raise VerificationError(f"{bundle.path} has {len(leaves)} entries, not {bundle.width}")
        first = replay.size
        tiles = replay.add(leaves)
        for tile, data in tiles.items():
            if tile.width == tile_width(tile.level, tile.number, checkpoint.size) and await fetch(tile.path) != data:
                raise VerificationError(f"{tile.path} does not hold the hashes of the entries under it")
        if claimed is not None:
            for index, leaf in enumerate(leaves, first):
                _compare(index, leaf, claimed.pop(index, None))
    report = replay.finish()
    if claimed:
        raise VerificationError(f"{len(claimed)} documents have no leaf: {sorted(claimed)[:10]}")
    return report


async def verify_whole_log(
    checkpoint: str,
    vkey: str,
    entries: Callable[[int, int], Awaitable[Sequence[Mapping[str, Any]]]],
    *,
    earlier: str | None = None,
) -> dict[str, Any]:
    """The same over entries as `GET /api/v1/audit/entries/{index}` answers them; returns origin, size, root, checkpoint.

    Args:
        entries: gives the entries from a first index up to, not including, a second one.

    Raises:
        VerificationError: something does not hold; the text names it.
    """
    replay = _Replay(_checkpoint(checkpoint, vkey), vkey, earlier)
    while replay.size < replay.checkpoint.size:
        end = min(replay.size + _ENTRIES_STEP, replay.checkpoint.size)
        some = await entries(replay.size, end)
        if len(some) != end - replay.size:
            raise VerificationError(f"{len(some)} entries came for leaves {replay.size} to {end - 1}")
        replay.add([_bytes(item.get("leaf"), index) for index, item in enumerate(some, replay.size)])
    report = replay.finish()
    return {name: getattr(report, name) for name in LogReport.__slots__}


class _Replay:
    """Builds the tree again from its entries."""

    def __init__(self, checkpoint: SignedCheckpoint, vkey: str, earlier: str | None) -> None:
        self.checkpoint = checkpoint
        self._edge = Edge()
        self._earlier = None if earlier is None else _checkpoint(earlier, vkey)
        if self._earlier and self._earlier.size > checkpoint.size:
            raise VerificationError(f"the log shrank from {self._earlier.size} to {checkpoint.size} leaves")

    @property
    def size(self) -> int:
        return self._edge.size

    def add(self, leaves: Sequence[bytes]) -> dict[Tile, bytes]:
        for index, leaf in enumerate(leaves, self.size):
            _entry(index, leaf)
        if self._earlier and self.size < self._earlier.size <= self.size + len(leaves):
            self._check_earlier(self._edge.append(leaves[: self._earlier.size - self.size])[0].root)
        self._edge, tiles = self._edge.append(leaves)
        return tiles

    def _check_earlier(self, root: bytes) -> None:
        if self._earlier and root != self._earlier.root:
            raise VerificationError(f"the first {self._earlier.size} leaves are not those that were signed earlier")

    def finish(self) -> LogReport:
        if self._edge.root != self.checkpoint.root:
            raise VerificationError(f"the {self.size} entries do not lead to the root that was signed")
        return LogReport(self.checkpoint.origin, self.size, self._edge.root.hex(), self.checkpoint.note)


def _checkpoint(note: Any, vkey: str) -> SignedCheckpoint:
    if not isinstance(note, str) or not note:
        raise VerificationError("there is no signed checkpoint: proofs without one prove nothing")
    return open_checkpoint(note, Verifier.parse(vkey))


def _entry(index: int, leaf: bytes) -> Entry:
    try:
        return decode_leaf(leaf)
    except EntryError as error:
        raise VerificationError(f"leaf {index} is no entry of an audit log: {error}") from error


def _bytes(encoded: Any, index: int) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise VerificationError(f"leaf {index}: its bytes are not base64") from error


def _checked_body(index: int, entry: Entry, body: bytes | None) -> bytes | None:
    if body is not None and (entry.kept != "stored" or hashlib.sha256(body).hexdigest() != entry.sha256):
        raise VerificationError(f"leaf {index}: the body is not the one that the leaf names")
    return body


def _by_index(documents: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    found: dict[int, Mapping[str, Any]] = {}
    for each in documents:
        index = at(each, "event", "index")
        if not isinstance(index, int) or index in found:
            raise VerificationError(f"a document has no index of its own: {str(each.get('event'))[:200]}")
        found[index] = each
    return found


def _compare(index: int, leaf: bytes, claimed: Mapping[str, Any] | None) -> None:
    if claimed is None:
        raise VerificationError(f"leaf {index} has no document")
    entry = _entry(index, leaf)
    if entry.kept != "stored" and dict(claimed) != document(index, leaf, entry):
        raise VerificationError(f"the document of leaf {index} was edited: it is not what the leaf says")
    if base64.b64encode(leaf).decode() != claimed.get("leaf"):
        raise VerificationError(f"the document of leaf {index} carries another leaf")
