"""Commits, trees and logs in the object store, below `repositories/<name in lower case>/`.

    commits/<first two digits>/<id>     canonical JSON (objects.py)
    trees/<first two digits>/<id>
    log/<sequence, twelve digits>       written only if absent: whoever writes the number has made the move

Objects are immutable, so those read often are kept in memory, bounded by the
number of their entries.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TypeVar

from modelworks.kit.errors import NotFound
from modelworks.registry.domain import Damaged, Entry
from modelworks.registry.objects import Commit, File, ObjectType, Planted, Tree, canonical, object_id
from modelworks.stores import Objects

T = TypeVar("T", Commit, Tree)

_WRITES_AT_ONCE = 16


class ObjectHistory:
    """The `History` port."""

    def __init__(self, objects: Objects, *, cache_entries_max: int) -> None:
        self._objects = objects
        self._cache: OrderedDict[tuple[str, str], Commit | Tree] = OrderedDict()
        self._cached_entries = 0
        self._cache_entries_max = cache_entries_max

    async def write(self, repository: str, planted: Planted, commit: Commit, *, known: str | None) -> None:
        stored = await self._tree_ids(repository, known)
        bodies = {_key(repository, "tree", id): body for id, body in planted.objects.items() if id not in stored}
        bodies[_key(repository, "commit", commit.id)] = commit.encode()
        # In any order: nothing refers to them until the log does.
        items = list(bodies.items())
        for at in range(0, len(items), _WRITES_AT_ONCE):
            await asyncio.gather(*(self._objects.put(key, body) for key, body in items[at : at + _WRITES_AT_ONCE]))

    async def commit(self, repository: str, revision: str) -> Commit | None:
        return await self._read(repository, "commit", revision, Commit.decode)

    async def files(self, repository: str, tree: str) -> Mapping[str, File]:
        files: dict[str, File] = {}
        left = [("", tree)]
        while left:
            prefix, id = left.pop()
            node = await self._tree(repository, id)
            files.update((prefix + name, file) for name, file in node.files.items())
            left.extend((f"{prefix}{name}/", child) for name, child in node.trees.items())
        return dict(sorted(files.items()))

    async def file(self, repository: str, tree: str, path: str) -> File | None:
        *directories, name = path.split("/")
        node = await self._tree(repository, tree)
        for directory in directories:
            child = node.trees.get(directory)
            if child is None:
                return None
            node = await self._tree(repository, child)
        return node.files.get(name)

    async def append(self, repository: str, entry: Entry) -> None:
        body = canonical(entry.model_dump(mode="json", exclude_none=True))
        await self._objects.put(_log_key(repository, entry.sequence), body, if_absent=True)

    async def entry(self, repository: str, sequence: int) -> Entry | None:
        try:
            return Entry.model_validate_json(await self._objects.read(_log_key(repository, sequence)))
        except NotFound:
            return None
        except ValueError as error:
            raise Damaged(f"entry {sequence} of the log of {repository} cannot be read: restore it") from error

    async def _tree_ids(self, repository: str, revision: str | None) -> set[str]:
        """Ids of all trees of a commit."""
        commit = await self.commit(repository, revision) if revision else None
        if commit is None:
            return set()
        ids: set[str] = set()
        left = [commit.tree]
        while left:
            id = left.pop()
            if id not in ids:
                ids.add(id)
                left.extend((await self._tree(repository, id)).trees.values())
        return ids

    async def _tree(self, repository: str, id: str) -> Tree:
        tree = await self._read(repository, "tree", id, Tree.decode)
        if tree is None:
            raise Damaged(f"tree {id} of {repository} is missing from the object store: restore it", object=id)
        return tree

    async def _read(self, repository: str, type: ObjectType, id: str, decode: Callable[[bytes], T]) -> T | None:
        key = _key(repository, type, id)
        known = self._cache.get((key, id))
        if known is not None:
            self._cache.move_to_end((key, id))
            return known  # type: ignore[return-value]
        try:
            body = await self._objects.read(key)
        except NotFound:
            return None
        value = await asyncio.to_thread(_checked, repository, type, id, body, decode)
        self._keep((key, id), value)
        return value

    def _keep(self, key: tuple[str, str], value: Commit | Tree) -> None:
        # Of two readers that missed together the later one finds the object kept.
        if key in self._cache:
            return
        self._cache[key] = value
        self._cached_entries += _entries(value)
        while self._cached_entries > self._cache_entries_max:
            _, oldest = self._cache.popitem(last=False)
            self._cached_entries -= _entries(oldest)


def _checked(repository: str, type: ObjectType, id: str, body: bytes, decode: Callable[[bytes], T]) -> T:
    if object_id(type, body) != id:
        raise Damaged(f"{type} {id} of {repository} does not have the bytes of its id: restore it", object=id)
    return decode(body)


def _entries(value: Commit | Tree) -> int:
    return 1 + (len(value.files) + len(value.trees) if isinstance(value, Tree) else 0)


def _key(repository: str, type: ObjectType, id: str) -> str:
    return f"repositories/{repository.lower()}/{type}s/{id[:2]}/{id}"


def _log_key(repository: str, sequence: int) -> str:
    return f"repositories/{repository.lower()}/log/{sequence:012d}"
