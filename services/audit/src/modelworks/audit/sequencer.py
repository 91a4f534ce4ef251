"""Makes the log grow: the only writer, one batch at a time, safe to kill at any point.

The order of the writes is the whole design:

1. the *plan*: the exact leaves that come next, under the size of the tree they
   extend, written only if no plan is there. Of two processes one wins.
2. entry bundles and tiles, which follow from the plan alone.
3. documents, which follow from the plan alone, by leaf index, create-only.
4. the checkpoint, signed, replaced only if it is still the one that was extended.
5. the plan goes; then the batch is acknowledged.

A crash leaves either no plan, and the bus delivers the batch again; or a plan,
and whoever starts next carries out exactly that plan before anything else. So
no index ever gets two different leaves, and what a crash or a late process
writes again has the same bytes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from modelworks.audit.domain import Candidate, Fenced, Head, LogDamaged, chunks, decode_plan, encode_plan, fresh
from modelworks.audit.entry import Entry, decode_leaf
from modelworks.audit.ports import Index, Log
from modelworks.audit.record import document, document_id
from modelworks.audit.tlog.note import SignedCheckpoint, Signer, VerificationError, open_checkpoint, sign_checkpoint
from modelworks.audit.tlog.tiles import TILE_WIDTH, Bundle, Tile, decode_entries, decode_hashes, encode_entries
from modelworks.audit.tlog.tree import Edge, edge_of, edge_tiles
from modelworks.kit.errors import NotFound, Unavailable, VersionConflict
from modelworks.kit.logging import get_logger

Announce = Callable[[SignedCheckpoint], Awaitable[None]]
"""Tells that the log grew. Must not raise: the checkpoint is published already."""

_YIELD_EVERY = 16
"""Leaves that are worked on before other tasks of the event loop get a turn: about 2 ms."""
_REPAIRED = 1024
"""Newest leaves whose documents are made again at start where they are missing: a power cut may take the last second's."""
_WRITES_MAX = 16

log = get_logger("audit")


class Sequencer:
    """The log's writer in this process."""

    def __init__(
        self,
        *,
        log: Log,
        index: Index,
        signer: Signer,
        announce: Announce,
        window: int,
        bytes_max: int,
    ) -> None:
        """
        Args:
            window: leaves whose keys are kept in memory, and whose documents are looked after at start. Must be more than
                the log grows in the seconds in which a new document may not be found by a search.
            bytes_max: most bytes of events in one step.
        """
        self._log = log
        self._index = index
        self._signer = signer
        self._announce = announce
        self._window = window
        self._bytes_max = bytes_max
        self._mutex = asyncio.Lock()
        self._head: Head | None = None
        self._bundle: list[bytes] = []
        self._recent: OrderedDict[str, None] = OrderedDict()
        self.duplicates = 0
        """Events that were in the log already, since this process started."""
        self.foreign = 0
        """Documents found in the place of a new leaf that were not the leaf's, since this process started."""

    @property
    def size(self) -> int:
        """Leaves that this process knows to be signed."""
        return self._head.size if self._head else 0

    async def append(self, candidates: Sequence[Candidate]) -> int:
        """Put events into the log that are not in it; returns how many those were, when all are signed.

        Raises:
            Fenced: another process extends the log; some of the events may be in it. Append them again.
            LogDamaged: the stored log contradicts itself. Nothing was signed.
            StoreUnavailable: a store did not answer; some of the events may be in the log. Append them again.
        """
        async with self._alone():
            head = self._head or await self._recover()
            new = fresh(candidates, self._recent)
            if new:
                new = fresh(new, await self._in_log([each.entry.key for each in new], head))
            self.duplicates += len(candidates) - len(new)
            for chunk in chunks(new, bytes_max=self._bytes_max):
                await self._extend(chunk)
            return len(new)

    async def start(self) -> int:
        """Finish what a crash left and get ready; returns the size of the tree.

        Raises:
            Fenced, LogDamaged, StoreUnavailable: as `append`.
        """
        async with self._alone():
            return (await self._recover()).size

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with self._mutex:
            try:
                yield
            except BaseException:
                # What was written is not known: the stored checkpoint and plan are the truth.
                self._head = None
                raise

    async def _extend(self, chunk: Sequence[Candidate]) -> None:
        head = self._owned()
        for each in chunk:
            if each.entry.kept == "stored":
                await self._log.write_body(each.entry.sha256, each.body)
        leaves = [each.leaf for each in chunk]
        await self._log.write_plan(head.size, encode_plan(head.size, leaves))
        await self._still_at(head)
        await self._carry_out(leaves)

    async def _still_at(self, head: Head) -> None:
        """A plan that was seen for this head counts only if the head is still the log's afterwards.

        A process that slept since it read the checkpoint can write a plan for a place that is long past, or find one
        that another such process wrote. Then a later checkpoint is there: it was published before the true plan went.
        """
        if await self._log.version() != head.version:
            raise Fenced(f"the log grew past {head.size} leaves while this process planned: it starts again")

    async def _carry_out(self, leaves: Sequence[bytes]) -> None:
        """Steps 2 to 5 for the plan at the head. Doing it twice, or in two processes, writes the same."""
        head = self._owned()
        entries = await self._entries(leaves)
        documents = await self._documents(head.size, leaves, entries)
        edge, tiles = head.edge.append(leaves)
        bundles, last = _bundles(head.size, self._bundle, leaves)
        files: dict[Bundle | Tile, bytes] = dict([*bundles.items(), *tiles.items()])
        await self._write(files)
        await self._create(documents)
        checkpoint = sign_checkpoint(self._signer, size=edge.size, root=edge.root)
        version = await self._log.publish(checkpoint.note, replaces=head.version)
        self._head, self._bundle = Head(edge, checkpoint, version), last
        self._remember(entries)
        await self._log.forget_plans(edge.size)
        for name in files:
            if name.width == TILE_WIDTH:
                await self._log.forget_partials(name)
        await self._announce(checkpoint)

    async def _entries(self, leaves: Sequence[bytes]) -> list[Entry]:
        entries: list[Entry] = []
        for leaf in leaves:
            if len(entries) % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            entries.append(decode_leaf(leaf))
        return entries

    async def _documents(
        self, start: int, leaves: Sequence[bytes], entries: Sequence[Entry]
    ) -> list[tuple[str, dict[str, Any]]]:
        made: list[tuple[str, dict[str, Any]]] = []
        for index, (leaf, entry) in enumerate(zip(leaves, entries, strict=True), start):
            if index % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            made.append((document_id(index), document(index, leaf, entry, await self._body(entry))))
        return made

    async def _body(self, entry: Entry) -> bytes | None:
        if entry.kept != "stored":
            return None
        try:
            return await self._log.read_body(entry.sha256)
        except NotFound:
            # The leaf stands all the same; that the body is gone is what the sweep reports.
            log.error("audit.body-missing", id=entry.id, sha256=entry.sha256)
            return None

    async def _write(self, files: dict[Bundle | Tile, bytes]) -> None:
        waiting = list(files.items())
        for at in range(0, len(waiting), _WRITES_MAX):
            await asyncio.gather(*(self._log.write(name, data) for name, data in waiting[at : at + _WRITES_MAX]))

    async def _create(self, documents: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Create documents; what a crash left of the same plan is the same, anything else was put there by hand."""
        wanted = dict(documents)
        for id in await self._index.create(documents):
            found = await self._index.get(id)
            if found is None or found.body == wanted[id]:
                continue
            self.foreign += 1
            log.error("audit.foreign-document", id=id, found=str(found.body.get("event"))[:500])
            try:
                await self._index.replace(id, wanted[id], version=found.version)
            except VersionConflict as error:
                raise Unavailable(f"document {id} is being written by somebody else") from error

    async def _in_log(self, keys: Sequence[str], head: Head) -> set[str]:
        """Which of the keys have a leaf.

        The window answers for the newest leaves, the documents for older ones. A document is only a hint: what counts
        is the leaf, so that nobody can keep an event out of the log by writing a document about it.
        """
        if head.size <= len(self._recent):
            return set()
        claims: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for key, indexes in (await self._index.indexes(keys)).items():
            for index in indexes:
                if 0 <= index < head.size:
                    claims[index // TILE_WIDTH].append((index % TILE_WIDTH, key))
        found: set[str] = set()
        for number, claimed in claims.items():
            leaves = await self._leaves(number, head.size)
            found |= {key for at, key in claimed if decode_leaf(leaves[at]).key == key}
        return found

    async def _leaves(self, number: int, size: int) -> list[bytes]:
        bundle = Bundle(number, min(TILE_WIDTH, size - number * TILE_WIDTH))
        return decode_entries(await self._log.read(bundle))

    async def _recover(self) -> Head:
        """Read the log's edge, carry out a plan that is there, and load the window.

        Raises:
            LogDamaged: signature, sizes or hashes do not fit together.
        """
        self._head, self._recent = None, OrderedDict()
        stored = await self._log.checkpoint()
        if stored is None:
            # A head that is signed from the first moment on: an empty answer can be verified too.
            empty = sign_checkpoint(self._signer, size=0, root=Edge().root)
            stored = empty.note, await self._log.publish(empty.note, replaces=None)
        head, self._bundle = await self._load(*stored)
        self._head = head
        await self._load_window(head)
        await self._log.forget_plans(head.size)
        plan = await self._log.plan(head.size)
        if plan is not None:
            await self._still_at(head)
            leaves = decode_plan(head.size, plan)
            log.info("audit.plan-resumed", size=head.size, leaves=len(leaves))
            await self._carry_out(leaves)
        return self._owned()

    async def _load(self, note: str, version: str) -> tuple[Head, list[bytes]]:
        try:
            checkpoint = open_checkpoint(note, self._signer.verifier)
            rows = [decode_hashes(await self._log.read(tile)) if tile else [] for tile in edge_tiles(checkpoint.size)]
            edge = edge_of(checkpoint.size, rows)
            number, width = divmod(checkpoint.size, TILE_WIDTH)
            last = decode_entries(await self._log.read(Bundle(number, width))) if width else []
        except (VerificationError, NotFound, ValueError) as error:
            raise LogDamaged(f"the stored log cannot be extended: {error}") from error
        if edge.root != checkpoint.root:
            raise LogDamaged(f"the tiles of the {checkpoint.size} leaves do not lead to the root that was signed")
        return Head(edge, checkpoint, version), last

    async def _load_window(self, head: Head) -> None:
        """The keys of the newest leaves; their documents are made again where a power cut took them."""
        first = max(0, head.size - self._window) // TILE_WIDTH * TILE_WIDTH
        for start in range(first, head.size, TILE_WIDTH):
            width = min(TILE_WIDTH, head.size - start)
            try:
                leaves = await self._leaves(start // TILE_WIDTH, head.size)
                entries = await self._entries(leaves)
            except (NotFound, ValueError) as error:
                raise LogDamaged(f"bundle {start // TILE_WIDTH} of the log is damaged: {error}") from error
            self._remember(entries)
            if start + width > head.size - _REPAIRED:
                await self._create(await self._documents(start, leaves, entries))

    def _remember(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._recent[entry.key] = None
        while len(self._recent) > self._window + TILE_WIDTH:
            self._recent.popitem(last=False)

    def _owned(self) -> Head:
        assert self._head is not None, "recover first"
        return self._head


def _bundles(size: int, last: Sequence[bytes], leaves: Iterable[bytes]) -> tuple[dict[Bundle, bytes], list[bytes]]:
    """The bundles that new leaves fill or begin, and the entries of the last, partial one."""
    entries = [*last, *leaves]
    first = size // TILE_WIDTH
    files: dict[Bundle, bytes] = {}
    for at in range(0, len(entries), TILE_WIDTH):
        some = entries[at : at + TILE_WIDTH]
        files[Bundle(first + at // TILE_WIDTH, len(some))] = encode_entries(some)
    return files, entries[len(entries) // TILE_WIDTH * TILE_WIDTH :]
