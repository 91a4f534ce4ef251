"""What both adapters accept as a key, a range, a part and a digest, so that neither takes what the other refuses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta

from modelworks.kit.errors import InvalidInput
from modelworks.stores.objects.port import Part

KEY_CHARACTERS_MAX = 900
SEGMENT_CHARACTERS_MAX = 250
"""File systems end at 255 bytes a name, and MinIO keeps objects in one."""
PART_BYTES_MIN = 5 * 1024 * 1024
"""Of every part but the last (S3)."""
PARTS_MAX = 10_000
PRESIGN_MAX = timedelta(days=7)

_KEY = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*", re.ASCII)
_PREFIX = re.compile(r"[A-Za-z0-9._/-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def check_key(key: str) -> str:
    """The key, when it is one.

    Raises:
        InvalidInput: it is not.
    """
    if not isinstance(key, str) or len(key) > KEY_CHARACTERS_MAX:
        raise InvalidInput(f"object key of over {KEY_CHARACTERS_MAX} characters: {str(key)[:60]!r}...")
    if not _KEY.fullmatch(key):
        raise InvalidInput(f"object key {key[:200]!r} is malformed: use segments of A-Z a-z 0-9 . _ - divided by /")
    for segment in key.split("/"):
        if segment in (".", ".."):
            raise InvalidInput(f"object key {key[:200]!r} has a segment {segment!r}: leave it out")
        if len(segment) > SEGMENT_CHARACTERS_MAX:
            raise InvalidInput(f"object key {key[:200]!r} has a segment of over {SEGMENT_CHARACTERS_MAX} characters")
    return key


def check_prefix(prefix: str) -> str:
    """The start of a key, when some key can start so.

    Raises:
        InvalidInput: none can.
    """
    malformed = len(prefix) > KEY_CHARACTERS_MAX or not _PREFIX.fullmatch(prefix)
    if malformed or prefix.startswith("/") or "//" in prefix or {".", ".."} & set(prefix.split("/")[:-1]):
        raise InvalidInput(f"no object key starts with {prefix[:200]!r}")
    return prefix


def check_digest(sha256: str | None) -> None:
    """Raises InvalidInput unless it is None or a lower-case hex sha256."""
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise InvalidInput(f"sha256 {sha256[:80]!r} is malformed: give 64 lower-case hex digits")


def check_range(start: int, length: int | None) -> None:
    """Raises InvalidInput when a range is no range, whatever the object."""
    if start < 0 or (length is not None and length < 0):
        raise InvalidInput(f"range start {start}, length {length}: neither may be negative")


def check_part_number(number: int) -> None:
    """Raises InvalidInput when there can be no such part."""
    if not 1 <= number <= PARTS_MAX:
        raise InvalidInput(f"part number {number} is out of bounds: give 1 to {PARTS_MAX}")


def check_parts(key: str, parts: Sequence[Part]) -> list[Part]:
    """The parts by number.

    Raises:
        InvalidInput: there are none, two have the same number, or one but the last is too small.
    """
    ordered = sorted(parts, key=lambda part: part.number)
    if not ordered:
        raise InvalidInput(f"upload of {key!r} has no parts: store at least one")
    if len({part.number for part in ordered}) != len(ordered):
        raise InvalidInput(f"upload of {key!r} names a part twice: give each number once")
    for part in ordered[:-1]:
        if part.size_bytes < PART_BYTES_MIN:
            raise InvalidInput(
                f"part {part.number} of {key!r} has {part.size_bytes} bytes: all but the last need {PART_BYTES_MIN}"
            )
    return ordered


def check_presign(method: str, expires: timedelta) -> None:
    """Raises InvalidInput for another method, or an expiry that is not in 1 s to 7 days."""
    if method not in ("GET", "PUT"):
        raise InvalidInput(f"cannot presign {method!r}: use GET or PUT")
    if not timedelta(seconds=1) <= expires <= PRESIGN_MAX:
        raise InvalidInput(f"cannot presign for {expires}: give 1 second to 7 days")


def check_content(
    key: str, *, sha256: str | None, size_bytes: int | None, actual_sha256: str | None, actual_size_bytes: int
) -> None:
    """Raises InvalidInput when what came is not what was announced."""
    wrong_size = size_bytes is not None and actual_size_bytes != size_bytes
    if not wrong_size and (sha256 is None or actual_sha256 == sha256):
        return
    what = (
        f"has {actual_size_bytes} bytes, not {size_bytes}"
        if wrong_size
        else f"has sha256 {actual_sha256}, not {sha256}"
    )
    raise InvalidInput(
        f"upload of {key!r} {what}: it was cut off or altered, send it again",
        expected_sha256=sha256,
        actual_sha256=actual_sha256,
        size_bytes=actual_size_bytes,
    )


def not_found(key: str) -> str:
    """The message of NotFound for an object."""
    return f"no object {key!r}"


def no_upload(key: str, upload: str) -> str:
    """The message of NotFound for a multipart upload."""
    return f"no upload {upload[:80]!r} of {key!r}: it was completed, aborted or never started"


def range_behind_end(key: str, start: int, size_bytes: int) -> str:
    """The message of InvalidInput for a range that starts behind the end."""
    return f"range of {key!r} starts at {start}, behind its end at {size_bytes} bytes"
