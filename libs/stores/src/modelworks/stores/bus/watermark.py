"""Which offsets of a partition are finished, when work finishes out of order.

The committed position is the contiguous watermark: the first offset that is not
finished. What is finished above it travels beside it as a bit map, so that the
next owner of the partition skips it.
"""

from __future__ import annotations

import base64
import binascii
from collections import deque

AHEAD_MAX = 8192
"""Furthest that an offset may run ahead of the watermark. Its bit map is 1 KiB, 1368 characters as base64: within the
4096 characters that Kafka keeps beside a committed offset (`offset.metadata.max.bytes`)."""


class Watermark:
    """The finished offsets of one partition."""

    def __init__(self, position: int, done: str = "") -> None:
        """`position` and `done` as a commit stored them; an unreadable `done` costs repeated work, never lost work."""
        self.position = position
        """First unfinished offset: what to commit."""
        self._open: deque[int] = deque()
        self._done: set[int] = _decode(position, done)
        self._next = position

    def begin(self, offset: int) -> bool:
        """Take up an offset, in growing order; False when it is finished already and must be skipped."""
        if offset < self.position:
            return False
        self._open.append(offset)
        self._next = offset + 1
        if offset in self._done:
            self._advance()
            return False
        return True

    def finish(self, offset: int) -> None:
        """The offset's message is handled or parked."""
        if offset >= self.position:
            self._done.add(offset)
            self._advance()

    def finish_through(self, offset: int) -> None:
        """This offset and all before it are finished."""
        while self._open and self._open[0] <= offset:
            self._open.popleft()
        self._done = {one for one in self._done if one > offset}
        self._next = max(self._next, offset + 1)
        self.position = max(self.position, offset + 1)
        self._advance()

    def room(self, offset: int) -> bool:
        """Whether the offset may be taken up: the bit map still reaches it."""
        return offset < self.position + AHEAD_MAX

    @property
    def finished_ahead(self) -> int:
        """How many offsets above the position are finished."""
        return len(self._done)

    @property
    def metadata(self) -> str:
        """The finished offsets above the position, as text; empty when there are none."""
        if not self._done:
            return ""
        bits = 0
        for offset in self._done:
            bits |= 1 << (offset - self.position)
        return base64.b64encode(bits.to_bytes((bits.bit_length() + 7) // 8, "little")).decode()

    def _advance(self) -> None:
        # Offsets may have gaps (compaction, transaction markers), so the queue of what was taken up decides, not +1.
        while self._open and self._open[0] in self._done:
            self._done.discard(self._open.popleft())
        position = self._open[0] if self._open else self._next
        if position > self.position:
            self.position = position
            if self._done and min(self._done) < position:
                self._done = {one for one in self._done if one >= position}


def _decode(position: int, text: str) -> set[int]:
    try:
        bits = int.from_bytes(base64.b64decode(text, validate=True), "little")
    except (binascii.Error, ValueError):
        return set()
    done = set()
    while bits:
        low = bits & -bits
        done.add(position + low.bit_length() - 1)
        bits ^= low
    return done
