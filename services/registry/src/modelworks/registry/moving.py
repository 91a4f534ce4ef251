"""How a repository moves on: the entry first, then the document, by whoever gets there.

A writer that died between the two leaves an entry that no document shows yet.
The next writer of the repository meets it, finishes it, and goes on behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from weakref import WeakValueDictionary

from modelworks.kit.errors import NotFound, Unavailable, VersionConflict
from modelworks.registry.card import CARD_PATH, read_card
from modelworks.registry.domain import Card, Damaged, Entry, Facts, Repository
from modelworks.registry.metrics import Metrics
from modelworks.registry.objects import File, compare
from modelworks.registry.ports import Blobs, History, Loaded, Repositories
from modelworks.registry.settings import RegistrySettings


class Mover:
    """Appends entries, and brings documents up to the end of their log."""

    def __init__(
        self,
        *,
        repositories: Repositories,
        history: History,
        blobs: Blobs,
        settings: RegistrySettings,
        metrics: Metrics,
    ) -> None:
        self._repositories = repositories
        self._history = history
        self._blobs = blobs
        self._settings = settings
        self._metrics = metrics
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def turn(self, repository: str) -> asyncio.Lock:
        """Writers of one repository in this process take turns: it spares them lost races; the log decides all the same."""
        return self._turns.setdefault(repository.lower(), asyncio.Lock())

    async def load(self, name: str) -> Loaded:
        """The repository's document.

        Raises:
            NotFound: there is none.
        """
        loaded = await self._repositories.get(name)
        if loaded is None:
            raise NotFound(no_repository(name), repository=name)
        return loaded

    async def create(self, entry: Entry) -> bool:
        """Append entry 0 and make the document; False when the repository's log has begun already."""
        assert entry.creation is not None
        name = entry.creation.repository
        try:
            await self._history.append(name, entry)
        except VersionConflict:
            return False
        await self.finish_creation(entry)
        return True

    async def finish_creation(self, entry: Entry) -> None:
        """Make the document of an entry 0, unless it is there."""
        repository, events = Repository.created(entry)
        try:
            await self._repositories.save(repository, events, expected=None, actor=entry.actor)
        except VersionConflict:
            return

    async def advance(self, entry: Entry, name: str) -> bool:
        """Append the entry and finish it; False when another writer had the number, whose entry is then finished."""
        try:
            await self._history.append(name, entry)
        except VersionConflict:
            self._metrics.move_conflicts.inc()
            await self.catch_up(name)
            return False
        await self._finish(name, entry)
        assert entry.move is not None
        self._metrics.ref_moves.labels(entry.move.kind).inc()
        if entry.move.committed:
            self._metrics.commits.inc()
        return True

    async def catch_up(self, name: str) -> None:
        """Bring the document to the end of the log."""
        while True:
            sequence = (await self.load(name)).repository.sequence + 1
            entry = await self._history.entry(name, sequence)
            if entry is None:
                return
            await self._finish(name, entry)

    async def _finish(self, name: str, entry: Entry) -> None:
        """Apply the entry to the document, unless somebody did."""
        for _ in range(self._settings.attempts_max):
            loaded = await self.load(name)
            if loaded.repository.sequence >= entry.sequence:
                return
            facts = await self._facts(loaded.repository, entry)
            state, events = loaded.repository.applied(entry, facts, served_max=self._settings.idempotency_keys_max)
            try:
                await self._repositories.save(state, events, expected=loaded.version, actor=entry.actor)
            except VersionConflict:
                continue
            return
        raise Unavailable(f"{name} is being changed by too many writers: try again")

    async def _facts(self, repository: Repository, entry: Entry) -> Facts:
        move = entry.move
        assert move is not None
        if move.new is None:
            return Facts()
        commit = await self._history.commit(repository.name, move.new)
        if commit is None:
            raise Damaged(f"commit {move.new} of {repository.name} is missing from the object store: restore it")
        follows_default = (move.kind, move.ref) == ("branch", repository.default_branch)
        if not move.committed and not follows_default:
            return Facts(commit=commit)
        files = await self._history.files(repository.name, commit.tree)
        card = await self._card(repository, files) if follows_default else None
        if not move.committed:
            return Facts(commit=commit, card=card)
        before: Mapping[str, File] = {}
        if commit.parents:
            parent = await self._history.commit(repository.name, commit.parents[0])
            before = await self._history.files(repository.name, parent.tree) if parent is not None else {}
        changes = await asyncio.to_thread(compare, before, files)
        return Facts(commit=commit, changes=changes, card=card)

    async def _card(self, repository: Repository, files: Mapping[str, File]) -> Card:
        file = files.get(CARD_PATH)
        if file is None:
            return Card()
        if file.sha256 == repository.card.sha256:
            return repository.card
        length = min(file.size_bytes, self._settings.card_bytes_max)
        try:
            # An empty file has no range to read.
            chunks = self._blobs.read(repository.space, file.sha256, length=length or None)
            source = b"".join([chunk async for chunk in chunks])
        except NotFound:
            # A damaged store must not stop refs from moving; reading the file says so to whoever does.
            return Card(error=f"{CARD_PATH} could not be read from the object store")
        return await asyncio.to_thread(read_card, source, sha256=file.sha256)


def no_repository(name: str) -> str:
    """The same words whether there is no such repository or the caller may not know of it."""
    return f"no repository {name!r}, or none that you may read: check the name, or ask its owner"
