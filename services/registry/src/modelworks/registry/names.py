"""What a repository, a ref and a path may be called.

A name is refused when it could mean two things: to a file system, to a URL, or
to a person. Everything that passes can be checked out on Linux, macOS and
Windows without one file hiding another.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from modelworks.kit.errors import InvalidInput

PATH_BYTES_MAX = 1000
"""Of a whole path, in UTF-8: 256 of them fit an event (1 MiB) several times over."""
SEGMENT_BYTES_MAX = 255
"""NAME_MAX of ext4, APFS and NTFS."""
DEPTH_MAX = 32
"""Directories in a path; each is a tree object to read."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*(/[A-Za-z0-9][A-Za-z0-9._+=-]*)*")
_REVISION = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_PORTABLE = re.compile(r'[\x00-\x1f\x7f\\<>:"|?*]')
# Device names of Windows, which hold with any extension.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))})


def check_repository(name: str) -> str:
    """The name, when it is `namespace/name`.

    Raises:
        InvalidInput: it is not, or it would be ambiguous in a URL or an object key.
    """
    if not _REPOSITORY.fullmatch(name):
        raise InvalidInput(
            f"{_shown(name)} is not a repository's name: write namespace/name, each part 1 to 96 letters, digits, "
            "dots, dashes or underscores, beginning with a letter or digit",
            name=name[:200],
        )
    if ".." in name or name.lower().endswith(".git") or any(part.endswith(".") for part in name.split("/")):
        raise InvalidInput(f"{name!r} is reserved: leave out '..', a dot at the end and '.git'", name=name)
    return name


def is_repository(text: str) -> bool:
    """Whether a repository may have this name."""
    try:
        check_repository(text)
    except InvalidInput:
        return False
    return True


def check_ref(name: str) -> str:
    """The name, when a branch or tag may have it.

    Raises:
        InvalidInput: it may not; the text says why.
    """
    if len(name) > 200 or not _REF.fullmatch(name) or ".." in name:
        raise InvalidInput(
            f"{_shown(name)} cannot name a branch or tag: use at most 200 letters, digits and . _ + = - in parts "
            "divided by single slashes, each part beginning with a letter or digit, without '..'",
            ref=name[:200],
        )
    if any(part.endswith((".", ".lock")) for part in name.split("/")):
        raise InvalidInput(f"{name!r} cannot name a branch or tag: a part ends in '.' or '.lock'", ref=name)
    if is_revision(name):
        raise InvalidInput(f"{name!r} cannot name a branch or tag: it reads as a commit id", ref=name)
    if name.split("/", maxsplit=1)[0] == "refs":
        raise InvalidInput(f"{name!r} cannot name a branch or tag: 'refs/' is how full names begin", ref=name)
    return name


def is_revision(text: str) -> bool:
    """Whether the text reads as a commit id: 40 lower-case hexadecimal digits."""
    return _REVISION.fullmatch(text) is not None


def check_sha256(text: str) -> str:
    """The digest, when it is one.

    Raises:
        InvalidInput: it is not 64 lower-case hexadecimal digits.
    """
    if not _SHA256.fullmatch(text):
        raise InvalidInput(f"{_shown(text)} is not a sha256: send 64 lower-case hexadecimal digits", sha256=text[:200])
    return text


def check_path(path: str) -> str:
    """The path, when a file of a commit may have it.

    Raises:
        InvalidInput: it may not; the text names the path and why.
    """
    reason = _path_fault(path)
    if reason:
        sendable = path[:200].encode(errors="backslashreplace").decode()
        raise InvalidInput(f"path {_shown(path)} is refused: {reason}", path=sendable)
    return path


def _path_fault(path: str) -> str:
    try:
        size_bytes = len(path.encode())
    except UnicodeEncodeError:
        return "it holds half of a surrogate pair, so it has no UTF-8 form"
    if not 1 <= size_bytes <= PATH_BYTES_MAX:
        return f"it has {size_bytes} bytes, 1 to {PATH_BYTES_MAX} are allowed"
    if path.startswith("/"):
        return "it is absolute; leave out the first slash"
    found = _NOT_PORTABLE.search(path)
    if found:
        return f"it holds {found.group()!r}, which not every file system allows"
    if unicodedata.normalize("NFC", path) != path:
        return "it is not in Unicode normal form C, so that two spellings would look the same"
    segments = path.split("/")
    deep = f"it is {len(segments)} levels deep, at most {DEPTH_MAX} are allowed" if len(segments) > DEPTH_MAX else ""
    return deep or next((fault for fault in map(_segment_fault, segments) if fault), "")


def _segment_fault(segment: str) -> str:
    if not segment:
        return "it has an empty part (a double or final slash)"
    if segment in (".", ".."):
        return f"it holds {segment!r}; paths are relative to the repository's root"
    if len(segment.encode()) > SEGMENT_BYTES_MAX:
        return f"one part has over {SEGMENT_BYTES_MAX} bytes"
    if segment.endswith((".", " ")) or segment.startswith(" "):
        return f"{segment!r} begins with a space, or ends with a dot or space, which some systems drop"
    folded = segment.casefold()
    if folded == ".git" or folded.split(".")[0] in _DEVICES:
        return f"{segment!r} is a reserved name"
    return ""


def check_twins(paths: Iterable[str]) -> None:
    """Refuse a tree in which two paths differ in case only, or a file is also a directory.

    Raises:
        InvalidInput: names both paths.
    """
    spelled: dict[str, str] = {}
    directories: set[str] = set()
    files = list(paths)
    for path in files:
        at = path.find("/")
        while at != -1:
            directory = path[:at]
            if directory not in directories:
                directories.add(directory)
                _spell(spelled, directory)
            at = path.find("/", at + 1)
    for path in files:
        if path in directories:
            inside = next(other for other in files if other.startswith(path + "/"))
            raise InvalidInput(f"path {path!r} is a file and, by {inside!r}, a directory: rename one", path=path)
        _spell(spelled, path)


def _spell(spelled: dict[str, str], path: str) -> None:
    other = spelled.setdefault(path.casefold(), path)
    if other != path:
        raise InvalidInput(
            f"paths {other!r} and {path!r} differ only in case, and would be one file on some systems: rename one",
            path=path,
        )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:117] + "...")
