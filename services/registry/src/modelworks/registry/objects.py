"""Trees and commits as canonical bytes, named by their content.

An id is the first 160 bits, as 40 lower-case hexadecimal digits, of

    SHA-256( "modelworks " + type + " " + length in decimal + NUL + body )

where the body is the object's JSON in canonical form (RFC 8785: no spaces, keys
sorted, UTF-8, integers only) and the type `tree` or `commit`. 40 digits because
Git's clients and the Hugging Face Hub's know commits by that shape; 160 bits of
SHA-256 leave 80 bits against somebody who looks for two objects with one id.
Bytes of files are not cut: trees name them by their whole SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelworks.events import FileChange, Lineage

ObjectType = Literal["tree", "commit"]
Json = dict[str, Any]


def canonical(value: Mapping[str, Any]) -> bytes:
    """Canonical JSON of a value that holds only text, integers, booleans, null, lists and objects with ASCII keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def object_id(type: ObjectType, body: bytes) -> str:
    """The id of an object."""
    return hashlib.sha256(b"modelworks %s %d\0" % (type.encode(), len(body)) + body).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class File:
    """The bytes at a path."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Tree:
    """One directory: its files, and the ids of the trees of its directories."""

    files: Mapping[str, File]
    trees: Mapping[str, str]

    def encode(self) -> bytes:
        """Canonical bytes; entries in the order of their names' code points."""
        files = [
            {"name": name, "sha256": file.sha256, "size_bytes": file.size_bytes, "type": "file"}
            for name, file in self.files.items()
        ]
        trees = [{"id": id, "name": name, "type": "tree"} for name, id in self.trees.items()]
        return canonical({"entries": sorted([*files, *trees], key=lambda entry: str(entry["name"]))})

    @classmethod
    def decode(cls, body: bytes) -> Tree:
        """The tree of bytes whose id was checked."""
        entries = json.loads(body)["entries"]
        return cls(
            files={e["name"]: File(e["sha256"], e["size_bytes"]) for e in entries if e["type"] == "file"},
            trees={e["name"]: e["id"] for e in entries if e["type"] == "tree"},
        )


@dataclass(frozen=True, slots=True)
class Planted:
    """All tree objects of a listing of files."""

    root: str
    objects: Mapping[str, bytes]
    """Tree id to canonical bytes; the root is among them."""


def plant(files: Mapping[str, File]) -> Planted:
    """The trees of a whole listing of paths (checked by `names.check_twins`)."""
    nested: Json = {}
    for path, file in files.items():
        *directories, name = path.split("/")
        node = nested
        for directory in directories:
            node = node.setdefault(directory, {})
        node[name] = file
    objects: dict[str, bytes] = {}
    return Planted(_plant(nested, objects), objects)


def _plant(node: Json, objects: dict[str, bytes]) -> str:
    trees = {name: _plant(child, objects) for name, child in node.items() if isinstance(child, dict)}
    body = Tree({name: child for name, child in node.items() if isinstance(child, File)}, trees).encode()
    id = object_id("tree", body)
    objects[id] = body
    return id


@dataclass(frozen=True, slots=True)
class Commit:
    """A version of the whole repository, and where it comes from."""

    tree: str
    parents: tuple[str, ...]
    """None for a first commit, one for an ordinary one, more for a merge; the first is the branch's former head."""
    author: str
    """Principal's id."""
    created_at: str
    """RFC 3339, UTC."""
    message: str
    generation: int
    """1 for a commit without parents, else one more than the largest of its parents': ancestors are always lower."""
    lineage: Lineage | None = None

    def encode(self) -> bytes:
        """Canonical bytes."""
        body: Json = {
            "author": self.author, "created_at": self.created_at, "generation": self.generation,
            "message": self.message, "parents": list(self.parents), "tree": self.tree,
        }  # fmt: skip
        if self.lineage is not None:
            body["lineage"] = self.lineage.model_dump(exclude_none=True)
        return canonical(body)

    @property
    def id(self) -> str:
        """The revision."""
        return object_id("commit", self.encode())

    @classmethod
    def decode(cls, body: bytes) -> Commit:
        """The commit of bytes whose id was checked."""
        value = json.loads(body)
        lineage = value.get("lineage")
        return cls(
            tree=value["tree"], parents=tuple(value["parents"]), author=value["author"],
            created_at=value["created_at"], message=value["message"], generation=value["generation"],
            lineage=None if lineage is None else Lineage.model_validate(lineage),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two listings."""

    first: tuple[FileChange, ...] = ()
    """In path order, as many as an event carries."""
    total: int = 0


EVENT_CHANGES_MAX = 256
"""Changed paths in a RevisionCommitted event (its schema)."""


def compare(old: Mapping[str, File], new: Mapping[str, File]) -> Changes:
    """The changes that lead from one listing to the other."""
    paths = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
    return Changes(tuple(_change(path, old, new) for path in paths[:EVENT_CHANGES_MAX]), len(paths))


def _change(path: str, old: Mapping[str, File], new: Mapping[str, File]) -> FileChange:
    file = new.get(path)
    if file is None:
        return FileChange(path=path, change="deleted")
    kind: Literal["added", "modified"] = "modified" if path in old else "added"
    return FileChange(path=path, change=kind, sha256=file.sha256, size_bytes=file.size_bytes)
