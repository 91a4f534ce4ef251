"""The growing edge of the tree: all that is needed to append, in under 256 hashes a level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modelworks.audit.tlog.hashes import EMPTY_ROOT, leaf_hash, node_hash, perfect_root
from modelworks.audit.tlog.tiles import TILE_WIDTH, Tile, levels_of, tile_width


@dataclass(frozen=True, slots=True)
class Edge:
    """A tree of `size` leaves, by its compact range: for each tile level, the hashes of its last, partial tile."""

    size: int = 0
    levels: tuple[tuple[bytes, ...], ...] = ()

    @property
    def root(self) -> bytes:
        """Merkle tree hash (RFC 6962 section 2.1).

        Each level's hashes cover leaves left of those of the level below, so the root grows from the right.
        """
        root: bytes | None = None
        for hashes in self.levels:
            end = len(hashes)
            while end:
                width = end & -end  # the lowest bit: the rightmost perfect subtree
                subtree = perfect_root(hashes[end - width : end])
                root = subtree if root is None else node_hash(subtree, root)
                end -= width
        return EMPTY_ROOT if root is None else root

    def append(self, entries: Iterable[bytes]) -> tuple[Edge, dict[Tile, bytes]]:
        """The tree with more leaves, and the tiles that it adds: full ones, and the last of each level."""
        size = self.size
        levels = [list(hashes) for hashes in self.levels]
        counts = [size >> (8 * level) for level in range(len(levels))]
        full: dict[Tile, bytes] = {}
        touched: set[int] = set()
        for entry in entries:
            size += 1
            rising, level = leaf_hash(entry), 0
            while True:
                if level == len(levels):
                    levels.append([])
                    counts.append(0)
                levels[level].append(rising)
                counts[level] += 1
                touched.add(level)
                if len(levels[level]) < TILE_WIDTH:
                    break
                full[Tile(level, counts[level] // TILE_WIDTH - 1)] = b"".join(levels[level])
                rising, levels[level], level = perfect_root(levels[level]), [], level + 1
        partial = {
            Tile(level, counts[level] // TILE_WIDTH, len(levels[level])): b"".join(levels[level])
            for level in touched
            if levels[level]
        }
        return Edge(size, tuple(tuple(hashes) for hashes in levels)), {**full, **partial}


def edge_tiles(size: int) -> list[Tile | None]:
    """For each level of a tree of `size` leaves, its last partial tile; None where the level ends with a full one."""
    tiles: list[Tile | None] = []
    for level in range(levels_of(size)):
        number = (size >> (8 * level)) // TILE_WIDTH
        width = tile_width(level, number, size)
        tiles.append(Tile(level, number, width) if width else None)
    return tiles


def edge_of(size: int, hashes: Sequence[Sequence[bytes]]) -> Edge:
    """The edge from the hashes of its partial tiles, as `edge_tiles` names them (empty for None).

    Raises:
        ValueError: a tile has another number of hashes than a tree of that size needs.
    """
    wanted = [tile.width if tile else 0 for tile in edge_tiles(size)]
    found = [len(row) for row in hashes]
    if wanted != found:
        raise ValueError(f"a tree of {size} leaves needs {wanted} hashes in its last tiles, not {found}")
    return Edge(size, tuple(tuple(row) for row in hashes))
