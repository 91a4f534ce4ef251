"""What is asked of the audit: searches whose hits prove themselves, entries, consistency, the files of the log."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from modelworks.audit.entry import decode_leaf
from modelworks.audit.ports import Index, Log, Question
from modelworks.audit.proving import Prover
from modelworks.audit.record import document
from modelworks.audit.tlog.note import SignedCheckpoint
from modelworks.audit.tlog.tiles import parse_path
from modelworks.audit.verify import at, item_of
from modelworks.kit.errors import InvalidInput, NotFound


class Auditing:
    """Reads. Any process may answer; none needs to be the one that sequences."""

    def __init__(self, *, log: Log, index: Index, prover: Prover) -> None:
        self._log = log
        self._index = index
        self._prover = prover

    async def search(self, question: Question, cursor: str | None) -> dict[str, Any]:
        """A page of hits, newest first, each with its leaf and the proof to the one checkpoint in the answer.

        Documents of leaves that are not signed yet do not count.

        Raises:
            InvalidInput: the cursor belongs to another question.
        """
        size, inner = _decode_cursor(cursor) if cursor else (None, None)
        head = await self._prover.head()
        # Pages of one search stand still while the log grows under them.
        size = head.size if size is None else min(size, head.size)
        found = await self._index.search(question, size=size, cursor=inner)
        items = []
        for body in found.documents:
            stored = (
                await self._stored(str(at(body, "event", "sha256"))) if at(body, "event", "kept") == "stored" else {}
            )
            items.append({**item_of(body), "leaf": body.get("leaf"), **stored})
        return {
            "items": await self._proven(items, head),
            "checkpoint": head.note,
            "total": found.total,
            "cursor": _encode_cursor(size, found.cursor) if found.cursor else None,
        }

    async def entry(self, index: int) -> dict[str, Any]:
        """A leaf as the log has it, with its proof; the same form as a hit, and the checkpoint.

        Raises:
            NotFound: the signed tree has no such leaf.
        """
        head = await self._prover.head()
        leaf = await self._prover.entry(index, head)
        said = decode_leaf(leaf)
        extra = await self._stored(said.sha256) if said.kept == "stored" else {}
        body = base64.b64decode(extra["body"]) if "body" in extra else None
        item = {**item_of(document(index, leaf, said, body)), "leaf": base64.b64encode(leaf).decode(), **extra}
        return {**(await self._proven([item], head))[0], "checkpoint": head.note}

    async def consistency(self, old: int, new: int) -> dict[str, Any]:
        """The proof that the tree of `new` leaves starts with the tree of `old`.

        Raises:
            InvalidInput: the signed tree is smaller, or the sizes are the wrong way round.
        """
        head = await self._prover.head()
        if not 0 <= old <= new <= head.size:
            raise InvalidInput(
                f"old={old} and new={new} must be 0 <= old <= new <= {head.size}, the signed tree's size"
            )
        hashes = await self._prover.consistency(old, new)
        return {"old": old, "new": new, "hashes": [each.hex() for each in hashes], "checkpoint": head.note}

    async def checkpoint(self) -> str:
        """The signed note of the log's head."""
        return (await self._prover.head()).note

    async def file(self, path: str) -> bytes:
        """A tile or bundle, by its path in C2SP tlog-tiles.

        Raises:
            InvalidInput: the path is none of a tile.
            NotFound: the log has no such tile.
        """
        try:
            name = parse_path(path)
        except ValueError as error:
            raise InvalidInput(str(error)) from error
        return await self._log.read(name)

    async def _proven(self, items: Sequence[dict[str, Any]], head: SignedCheckpoint) -> list[dict[str, Any]]:
        """Items with their proofs. One whose document was tampered with so far that it names no leaf gets none."""
        indexes = [item["index"] for item in items if _is_leaf(item["index"], head.size)]
        proofs = dict(zip(indexes, await self._prover.inclusions(indexes, head), strict=True))
        return [
            {**item, "proof": {"index": item["index"], "size": head.size, "hashes": [each.hex() for each in hashes]}}
            if (hashes := proofs.get(item["index"]) if _is_leaf(item["index"], head.size) else None) is not None
            else {**item, "proof": None}
            for item in items
        ]

    async def _stored(self, sha256: str) -> Mapping[str, Any]:
        """The exact body that lies beside the log, when it is still there."""
        try:
            return {"body": base64.b64encode(await self._log.read_body(sha256)).decode()}
        except (NotFound, InvalidInput):
            return {}


def _is_leaf(index: Any, size: int) -> bool:
    return isinstance(index, int) and 0 <= index < size


def _encode_cursor(size: int, inner: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([size, inner]).encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> tuple[int, str]:
    try:
        size, inner = json.loads(base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)))
        if not isinstance(size, int) or isinstance(size, bool) or size < 0 or not isinstance(inner, str):
            raise ValueError
    except (binascii.Error, ValueError, TypeError, RecursionError) as error:
        raise InvalidInput("the cursor is not one of this search: start again without it") from error
    return size, inner
