"""Inclusion and consistency proofs: RFC 6962 section 2.1.1 and 2.1.2, verified as RFC 9162 section 2.1.3.2 and 2.1.4.2 say.

Making a proof is divided in two, so that it needs no I/O of its own: `plan_*`
says which subtrees it needs, `Hashes` answers from tiles that somebody fetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from modelworks.audit.tlog.hashes import leaf_hash, node_hash
from modelworks.audit.tlog.note import SignedCheckpoint, VerificationError
from modelworks.audit.tlog.tiles import TILE_HEIGHT, TILE_WIDTH, Tile, tile_width

PROOF_HASHES_MAX = 128


@dataclass(frozen=True, slots=True)
class Span:
    """The leaves [start, end) and the node over them."""

    start: int
    end: int


def plan_inclusion(index: int, size: int) -> list[Span]:
    """The subtrees whose hashes prove leaf `index` in a tree of `size`, from the leaf upwards."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size} leaves")
    spans: list[Span] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            spans.append(Span(middle, end))
            end = middle
        else:
            spans.append(Span(start, middle))
            start = middle
    return spans[::-1]


def plan_consistency(old: int, new: int) -> list[Span]:
    """The subtrees whose hashes prove that the tree of `new` leaves starts with the tree of `old`."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} leaves cannot start with one of {old}")
    if old in (0, new):
        return []
    spans: list[Span] = []
    start, end, whole = 0, new, True
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            spans.append(Span(middle, end))
            end = middle
        else:
            spans.append(Span(start, middle))
            start, whole = middle, False
    if not whole:
        spans.append(Span(start, end))
    return spans[::-1]


def _split(width: int) -> int:
    """The largest power of two below `width`."""
    return 1 << (width - 1).bit_length() - 1


def perfect_spans(span: Span) -> Iterator[tuple[int, int]]:
    """(level, index) of the perfect subtrees that a span is made of, left to right."""
    start = span.start
    while start < span.end:
        level = min(
            (start & -start).bit_length() - 1 if start else 63,
            (span.end - start).bit_length() - 1,
        )
        yield level, start >> level
        start += 1 << level


def tiles_for(spans: Iterable[Span], size: int) -> set[Tile]:
    """The tiles, as they are in a tree of `size`, that hold what the spans need."""
    tiles: set[Tile] = set()
    for span in spans:
        for level, index in perfect_spans(span):
            tile_level = level // TILE_HEIGHT
            number = (index << (level - tile_level * TILE_HEIGHT)) // TILE_WIDTH
            tiles.add(Tile(tile_level, number, tile_width(tile_level, number, size)))
    return tiles


class Hashes:
    """Hashes of subtrees, from tiles in memory."""

    def __init__(self, tiles: Mapping[Tile, Sequence[bytes]]) -> None:
        self._rows: dict[tuple[int, int], Sequence[bytes]] = {}
        # Proofs of neighbours share most of their subtrees.
        self._known: dict[tuple[int, int], bytes] = {}
        for tile, row in tiles.items():
            known = self._rows.get((tile.level, tile.number), ())
            if len(row) >= len(known):
                self._rows[tile.level, tile.number] = row

    def of(self, span: Span) -> bytes:
        """The hash over a span.

        Raises:
            KeyError: a tile that it needs is not there, or too short.
        """
        right_to_left = [self._perfect(level, index) for level, index in perfect_spans(span)][::-1]
        root = right_to_left[0]
        for left in right_to_left[1:]:
            root = node_hash(left, root)
        return root

    def _perfect(self, level: int, index: int) -> bytes:
        known = self._known.get((level, index))
        if known is None:
            tile_level, height = divmod(level, TILE_HEIGHT)
            if height:
                known = node_hash(self._perfect(level - 1, 2 * index), self._perfect(level - 1, 2 * index + 1))
            else:
                number, at = divmod(index, TILE_WIDTH)
                row = self._rows[tile_level, number]
                if at >= len(row):
                    raise KeyError(f"tile {tile_level}/{number} has {len(row)} hashes, not one at {at}")
                known = row[at]
            self._known[level, index] = known
        return known


def verify_inclusion(entry: bytes, index: int, hashes: Sequence[bytes], checkpoint: SignedCheckpoint) -> None:
    """Returns when the entry's exact bytes are leaf `index` of the tree that was signed.

    Raises:
        VerificationError: they are not.
    """
    if not 0 <= index < checkpoint.size:
        raise VerificationError(f"leaf {index} is not in the signed tree of {checkpoint.size} leaves")
    if len(hashes) > PROOF_HASHES_MAX:
        raise VerificationError(f"leaf {index}: a proof has at most {PROOF_HASHES_MAX} hashes, not {len(hashes)}")
    node, last, root = index, checkpoint.size - 1, leaf_hash(entry)
    for sibling in hashes:
        if last == 0:
            raise VerificationError(f"leaf {index}: the proof has too many hashes")
        if node & 1 or node == last:
            root = node_hash(sibling, root)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        node, last = node >> 1, last >> 1
    if last != 0 or root != checkpoint.root:
        raise VerificationError(f"leaf {index} is not what was signed: the proof leads to another root")


def verify_consistency(hashes: Sequence[bytes], old: SignedCheckpoint, new: SignedCheckpoint) -> None:
    """Returns when the newer tree starts with the older one: nothing was altered, removed or put between.

    Raises:
        VerificationError: it does not, or the two are of different logs.
    """
    if old.origin != new.origin:
        raise VerificationError(f"checkpoints of two logs: {old.origin!r} and {new.origin!r}")
    if old.size > new.size:
        raise VerificationError(f"the log shrank from {old.size} to {new.size} leaves")
    if old.size in (0, new.size):
        if hashes or (old.size == new.size and old.root != new.root):
            raise VerificationError(f"two different trees were signed for {old.size} leaves")
        return
    if len(hashes) > PROOF_HASHES_MAX or not _leads_to_both(list(hashes), old, new):
        raise VerificationError(f"the tree of {new.size} leaves does not start with the signed tree of {old.size}")


def _leads_to_both(hashes: list[bytes], old: SignedCheckpoint, new: SignedCheckpoint) -> bool:
    node, last = old.size - 1, new.size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    if node == 0:
        hashes = [old.root, *hashes]
    if not hashes:
        return False
    old_root = new_root = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old_root, new_root = node_hash(sibling, old_root), node_hash(sibling, new_root)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new_root = node_hash(new_root, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and old_root == old.root and new_root == new.root
