"""HTTP ranges and conditions on immutable bytes (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from modelworks.kit.errors import ModelworksError

_SINGLE = re.compile(r"bytes\s*=\s*(\d{0,20})\s*-\s*(\d{0,20})\s*", re.IGNORECASE)


class RangeNotSatisfiable(ModelworksError):
    """The range begins behind the end."""

    code = "range-not-satisfiable"
    status = 416


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of some bytes."""

    start: int
    length: int
    """At least 1."""
    of_bytes: int

    @property
    def content_range(self) -> str:
        """The header of a 206."""
        return f"bytes {self.start}-{self.start + self.length - 1}/{self.of_bytes}"


def wanted_range(headers: Mapping[str, str], *, size_bytes: int, etag: str) -> ByteRange | None:
    """The range a GET asks for; None: all of it, also for several ranges or a malformed one, as the RFC allows.

    Raises:
        RangeNotSatisfiable: it begins behind the end, or asks for the last 0 bytes.
    """
    match = _SINGLE.fullmatch(headers.get("range", "").strip())
    condition = headers.get("if-range")
    if match is None or (condition is not None and condition.strip() != etag):
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        start, end = max(0, size_bytes - int(last)), size_bytes - 1
    else:
        start, end = int(first), min(int(last), size_bytes - 1) if last else size_bytes - 1
        if last and int(last) < start:
            return None
    if start > end or start >= size_bytes:
        error = RangeNotSatisfiable(f"range {headers['range'][:60]!r} lies outside of the {size_bytes} bytes there are")
        error.headers["Content-Range"] = f"bytes */{size_bytes}"
        raise error
    return ByteRange(start, end - start + 1, size_bytes)


def not_modified(headers: Mapping[str, str], etag: str) -> bool:
    """Whether the caller's copy (`If-None-Match`) is the one there is."""
    given = headers.get("if-none-match")
    if given is None:
        return False
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in given.split(","))
