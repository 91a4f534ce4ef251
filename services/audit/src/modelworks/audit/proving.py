"""Reads the log to show it: the signed head, entries, and proofs built from cached tiles."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from modelworks.audit.ports import Log
from modelworks.audit.tlog.note import SignedCheckpoint, Verifier, open_checkpoint
from modelworks.audit.tlog.proofs import Hashes, Span, plan_consistency, plan_inclusion, tiles_for
from modelworks.audit.tlog.tiles import TILE_WIDTH, Bundle, Tile, decode_entries, decode_hashes, tile_width
from modelworks.kit.errors import NotFound

_READS_MAX = 32
"""Tiles read from the store at once."""


class Prover:
    """Answers from the published files alone, so that any process may serve it, not only the one that sequences."""

    def __init__(self, log: Log, verifier: Verifier, *, tiles_max: int) -> None:
        """`tiles_max`: most tiles kept in memory, 8 KiB each."""
        self._log = log
        self._verifier = verifier
        self._tiles_max = tiles_max
        # Named tiles never change, so a cached one is never stale.
        self._tiles: OrderedDict[Tile, Sequence[bytes]] = OrderedDict()

    async def head(self) -> SignedCheckpoint:
        """The published checkpoint.

        Raises:
            NotFound: nothing was audited yet.
            VerificationError: it is not signed by the log's key.
        """
        note = await self._log.note()
        if note is None:
            raise NotFound("the log is empty: no checkpoint was signed yet")
        return open_checkpoint(note, self._verifier)

    async def entry(self, index: int, head: SignedCheckpoint) -> bytes:
        """The exact bytes of a leaf.

        Raises:
            NotFound: the signed tree has no such leaf.
        """
        return (await self.entries([index], head))[index]

    async def entries(self, indexes: Iterable[int], head: SignedCheckpoint) -> Mapping[int, bytes]:
        """The exact bytes of some leaves.

        Raises:
            NotFound: the signed tree has no such leaf.
        """
        wanted = sorted(set(indexes))
        if wanted and not 0 <= wanted[0] <= wanted[-1] < head.size:
            raise NotFound(
                f"leaf {wanted[0] if wanted[0] < 0 else wanted[-1]} is not in the tree of {head.size} leaves"
            )
        found: dict[int, bytes] = {}
        for number in sorted({index // TILE_WIDTH for index in wanted}):
            bundle = Bundle(number, tile_width(0, number, head.size))
            entries = decode_entries(await self._log.read(bundle))
            found |= {index: entries[index % TILE_WIDTH] for index in wanted if index // TILE_WIDTH == number}
        return found

    async def inclusions(self, indexes: Sequence[int], head: SignedCheckpoint) -> list[list[bytes]]:
        """A proof for each leaf, to one checkpoint.

        Raises:
            NotFound: the signed tree has no such leaf.
        """
        for index in indexes:
            if not 0 <= index < head.size:
                raise NotFound(f"leaf {index} is not in the tree of {head.size} leaves")
        plans = [plan_inclusion(index, head.size) for index in indexes]
        hashes = await self._hashes([span for plan in plans for span in plan], head.size)
        proofs: list[list[bytes]] = []
        for plan in plans:
            proofs.append([hashes.of(span) for span in plan])
            await asyncio.sleep(0)  # others share this event loop
        return proofs

    async def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of `new` leaves starts with that of `old`; both are within the published tree."""
        spans = plan_consistency(old, new)
        hashes = await self._hashes(spans, new)
        return [hashes.of(span) for span in spans]

    async def _hashes(self, spans: Iterable[Span], size: int) -> Hashes:
        wanted = tiles_for(spans, size)
        missing = [tile for tile in wanted if tile not in self._tiles]
        rows = {tile: self._tiles[tile] for tile in wanted if tile in self._tiles}
        for at in range(0, len(missing), _READS_MAX):
            some = missing[at : at + _READS_MAX]
            read = await asyncio.gather(*(self._log.read(tile) for tile in some))
            rows |= {tile: decode_hashes(data) for tile, data in zip(some, read, strict=True)}
        for tile, row in rows.items():
            self._tiles[tile] = row
            self._tiles.move_to_end(tile)
        while len(self._tiles) > self._tiles_max:
            self._tiles.popitem(last=False)
        return Hashes(rows)
