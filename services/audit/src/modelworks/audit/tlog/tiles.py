"""Tiles: how the tree and its entries lie in a store, by C2SP `tlog-tiles`.

A tile holds up to 256 hashes of one level of the tree; tile level L holds tree
level 8 L. A bundle holds up to 256 entries. Full ones never change; the last
of each level is partial and is written under its width, so that it never
changes either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from modelworks.audit.tlog.hashes import HASH_BYTES

TILE_HEIGHT = 8
TILE_WIDTH = 256
ENTRY_BYTES_MAX = 65_535
"""An entry's length is a uint16 in its bundle."""

_PATH = re.compile(r"tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


@dataclass(frozen=True, slots=True)
class Tile:
    """Name of a tile of hashes."""

    level: int
    number: int
    width: int = TILE_WIDTH
    """Hashes in it; below 256 it is partial."""

    @property
    def path(self) -> str:
        """`tile/<L>/<N>[.p/<W>]`."""
        return f"tile/{self.level}/{_number(self.number)}{_partial(self.width)}"


@dataclass(frozen=True, slots=True)
class Bundle:
    """Name of a bundle of entries."""

    number: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """`tile/entries/<N>[.p/<W>]`."""
        return f"tile/entries/{_number(self.number)}{_partial(self.width)}"


def parse_path(path: str) -> Tile | Bundle:
    """The tile or bundle of a path.

    Raises:
        ValueError: it names neither.
    """
    match = _PATH.fullmatch(path)
    width = int(match[3]) if match and match[3] else TILE_WIDTH
    if match is None or width > TILE_WIDTH or (match[3] and width == TILE_WIDTH):
        raise ValueError(f"{path!r} is no tile: tile/<level>/<number> or tile/entries/<number>, .p/<width> if partial")
    number = int(match[2].replace("x", "").replace("/", ""))
    name = Bundle(number, width) if match[1] == "entries" else Tile(int(match[1]), number, width)
    if name.path != path:
        raise ValueError(f"{path!r} is not written as it should be: {name.path!r}")
    return name


def _number(number: int) -> str:
    """Groups of three digits, all but the last with an `x` before: 1234067 is `x001/x234/067`."""
    groups = [f"{number % 1000:03d}"]
    while number >= 1000:
        number //= 1000
        groups.append(f"x{number % 1000:03d}")
    return "/".join(reversed(groups))


def _partial(width: int) -> str:
    return "" if width == TILE_WIDTH else f".p/{width}"


def tile_width(level: int, number: int, size: int) -> int:
    """Hashes that the tile has in a tree of `size` leaves; 0 when it does not exist yet."""
    return max(0, min(TILE_WIDTH, (size >> (TILE_HEIGHT * level)) - number * TILE_WIDTH))


def levels_of(size: int) -> int:
    """Tile levels that a tree of `size` leaves has."""
    levels = 0
    while size >> (TILE_HEIGHT * levels):
        levels += 1
    return levels


def encode_entries(entries: Sequence[bytes]) -> bytes:
    """Entries of a bundle, each behind its length as big-endian uint16."""
    parts: list[bytes] = []
    for entry in entries:
        if len(entry) > ENTRY_BYTES_MAX:
            raise ValueError(f"an entry of {len(entry)} bytes does not fit: at most {ENTRY_BYTES_MAX}")
        parts += (len(entry).to_bytes(2, "big"), entry)
    return b"".join(parts)


def decode_entries(data: bytes) -> list[bytes]:
    """The entries of a bundle.

    Raises:
        ValueError: the bytes end within an entry.
    """
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 2], "big")
        entry = data[at + 2 : at + 2 + length]
        if len(data) < at + 2 or len(entry) != length:
            raise ValueError(f"the bundle ends within entry {len(entries)}")
        entries.append(entry)
        at += 2 + length
    return entries


def decode_hashes(data: bytes) -> list[bytes]:
    """The hashes of a tile.

    Raises:
        ValueError: the length is no multiple of 32, or there are more than 256.
    """
    if len(data) % HASH_BYTES or len(data) > HASH_BYTES * TILE_WIDTH:
        raise ValueError(f"a tile has up to 256 hashes of 32 bytes, not {len(data)} bytes")
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
