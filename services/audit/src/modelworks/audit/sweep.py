"""Is the index still what the log says? Every document against its leaf: edited, deleted and inserted ones are named.

The log proves itself; the index is a copy that somebody with access to the
document store could change. A sweep reads both from end to end; a sample reads a
few leaves at random, often.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from modelworks.audit.entry import decode_leaf
from modelworks.audit.ports import Index, Log
from modelworks.audit.proving import Prover
from modelworks.audit.record import document, document_id
from modelworks.audit.tlog.note import SignedCheckpoint
from modelworks.kit.errors import NotFound

_PAGE = 500
_NAMED_MAX = 1000
"""Most differences that a report names; `differing` counts all."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A document that is not as the log says."""

    kind: Literal["edited", "deleted", "inserted"]
    document: str
    """The document's id; of a leaf's document, the leaf's index."""
    detail: str


@dataclass(slots=True)
class Report:
    """What a sweep or sample found."""

    leaves: int
    checked: int = 0
    differing: int = 0
    differences: list[Difference] = field(default_factory=list)

    def add(self, kind: Literal["edited", "deleted", "inserted"], document: str, detail: str) -> None:
        """Count a difference, and name it while there is room."""
        self.differing += 1
        if len(self.differences) < _NAMED_MAX:
            self.differences.append(Difference(kind, document, detail))


class IndexAudit:
    """Compares the index with the log."""

    def __init__(self, *, log: Log, index: Index, prover: Prover) -> None:
        self._log = log
        self._index = index
        self._prover = prover

    async def sweep(self) -> Report:
        """Compare every document and every leaf."""
        head = await self._prover.head()
        report = Report(leaves=head.size)
        beyond: list[str] = []
        expected, cursor = 0, None
        while True:
            page, cursor = await self._index.page(cursor=cursor, limit=_PAGE)
            known = {each.id: index for each in page if (index := _index_of(each.id, head.size)) is not None}
            leaves = await self._prover.entries(known.values(), head)
            for each in page:
                index = known.get(each.id)
                if index is None:
                    beyond.append(each.id)
                    continue
                await self._missing(expected, index, head, report)
                expected = index + 1
                await self._check(index, each.body, leaves[index], report)
                await asyncio.sleep(0)
            if cursor is None:
                break
        await self._missing(expected, head.size, head, report)
        await self._inserted(beyond, report)
        return report

    async def sample(self, count: int) -> Report:
        """Compare a few leaves, chosen at random, and the number of documents."""
        head = await self._prover.head()
        report = Report(leaves=head.size)
        for index in random.sample(range(head.size), min(count, head.size)):
            found = await self._index.get(document_id(index))
            if found is None:
                report.add("deleted", document_id(index), f"leaf {index} has no document")
            else:
                await self._check(index, found.body, await self._prover.entry(index, head), report)
        documents = await self._index.count()
        now = (await self._prover.head()).size
        # More than the log can have by now, its step under way included: the surplus was put there by hand.
        if documents > now and await self._log.plan(now) is None and now == (await self._prover.head()).size:
            report.add("inserted", "", f"there are {documents} documents of {now} leaves: sweep to name them")
        return report

    async def _missing(self, first: int, end: int, head: SignedCheckpoint, report: Report) -> None:
        for index in range(first, end):
            # A search may be a second behind; reading by id is not.
            found = await self._index.get(document_id(index))
            if found is None:
                report.add("deleted", document_id(index), f"leaf {index} has no document")
            else:
                await self._check(index, found.body, await self._prover.entry(index, head), report)

    async def _check(self, index: int, body: Mapping[str, Any], leaf: bytes, report: Report) -> None:
        report.checked += 1
        expected = await self._expected(index, leaf)
        if body == expected:
            return
        found = await self._index.get(document_id(index))
        if found is None or found.body != expected:
            changed = sorted(
                name for name in {*expected, *body} if expected.get(name) != (found.body if found else body).get(name)
            )
            report.add("edited", document_id(index), f"{', '.join(changed)} of leaf {index}'s document was changed")

    async def _expected(self, index: int, leaf: bytes) -> dict[str, Any]:
        entry = decode_leaf(leaf)
        body = None
        if entry.kept == "stored":
            try:
                body = await self._log.read_body(entry.sha256)
            except NotFound:
                body = None
        return document(index, leaf, entry, body)

    async def _inserted(self, ids: Sequence[str], report: Report) -> None:
        """Documents beyond the tree are foreign, unless the log grew meanwhile or is about to."""
        size = (await self._prover.head()).size
        growing = await self._log.plan(size) is not None
        for id in ids:
            index = _index_of(id, 10**20)
            if index is not None and (index < size or growing):
                continue
            report.add("inserted", id, f"document {id[:100]!r} has no leaf")


def _index_of(id: str, size: int) -> int | None:
    if len(id) != 20 or not (id.isascii() and id.isdigit()) or int(id) >= size:
        return None
    return int(id)
