"""Commits, refs and the log under them, on the embedded column."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from modelworks.events import Envelope, Event, Lineage, RefMoved, RevisionCommitted, UploadRefused
from modelworks.kit.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    StoreUnavailable,
    TooLarge,
    Unavailable,
    VersionConflict,
)
from modelworks.registry.adapters.announcer import BusAnnouncer
from modelworks.registry.adapters.blobs import ObjectBlobs
from modelworks.registry.adapters.documents import DocumentRepositories
from modelworks.registry.adapters.history import ObjectHistory
from modelworks.registry.domain import OMITTED, Damaged, Delete, Entry, Move, Operation, Put, Ref, Repository
from modelworks.registry.handlers import CommitCommand, Committed, Handlers
from modelworks.registry.metrics import Metrics
from modelworks.registry.moving import Mover
from modelworks.registry.ports import Find
from modelworks.registry.settings import RegistrySettings
from modelworks.stores import Bus, Message
from modelworks.stores.stores import Stores
from prometheus_client import CollectorRegistry

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@dataclass
class Process:
    """What one process of the registry holds: its own caches and turns over shared stores."""

    stores: Stores
    settings: RegistrySettings
    handlers: Handlers
    repositories: DocumentRepositories
    history: ObjectHistory
    blobs: ObjectBlobs
    metrics: CollectorRegistry

    @classmethod
    def start(cls, stores: Stores, settings: RegistrySettings | None = None) -> Process:
        settings = settings or RegistrySettings()
        repositories = DocumentRepositories(documents=stores.documents, bus=stores.bus, clock=lambda: NOW)
        history = ObjectHistory(stores.objects, cache_entries_max=settings.cache_entries_max)
        blobs = ObjectBlobs(stores.objects)
        metrics = CollectorRegistry()
        handlers = Handlers(
            repositories=repositories, history=history, blobs=blobs,
            announcer=BusAnnouncer(stores.bus, lambda: NOW), settings=settings, metrics=Metrics(metrics),
            clock=lambda: NOW,
        )  # fmt: skip
        return cls(stores, settings, handlers, repositories, history, blobs, metrics)

    async def put(self, data: bytes, name: str = "acme/m") -> str:
        repository = await self.handlers.get(name)
        assert repository is not None
        sha256 = hashlib.sha256(data).hexdigest()
        await self.blobs.put(repository.space, sha256, _once(data))
        return sha256

    async def commit(
        self, files: Mapping[str, bytes | None], name: str = "acme/m", *, branch: str = "main", **more: Any
    ) -> Committed:
        operations: list[Operation] = [
            Delete(path) if data is None else Put(path, await self.put(data, name)) for path, data in files.items()
        ]
        command = CommitCommand(branch=branch, message="change", operations=operations, **more)
        return await self.handlers.commit(name, command, actor="ada")

    async def files(self, ref: str = "main", name: str = "acme/m") -> Sequence[str]:
        repository = await self.handlers.get(name)
        assert repository is not None
        return list((await self.handlers.revision(repository, ref)).files)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.fixture
async def process(stores: Stores) -> Process:
    process = Process.start(stores)
    await process.repositories.ensure()
    await process.handlers.create("acme/m", kind="model", private=False, description="", actor="ada")
    return process


async def state(process: Process, name: str = "acme/m") -> Repository:
    repository = await process.handlers.get(name)
    assert repository is not None
    return repository


# --- no lost update -----------------------------------------------------------------------------------------


async def test_two_writers_with_100_commits_each_on_one_branch_lose_nothing(stores: Stores, process: Process) -> None:
    """INVARIANT: every commit that was answered is in the history of the branch.

    What would break it: a ref moved without the log entry of its number, or a document saved over another's.
    """
    processes = (process, Process.start(stores))
    sha256 = await process.put(b"data")

    async def write(writer: Process, who: str) -> list[str]:
        made = []
        for n in range(100):
            command = CommitCommand(branch="main", message=f"{who} {n}", operations=[Put(f"{who}/{n}", sha256)])
            made.append((await writer.handlers.commit("acme/m", command, actor=who)).revision)
        return made

    made = await asyncio.gather(*(write(writer, who) for writer, who in zip(processes, ("ada", "bob"), strict=True)))

    history = []
    cursor: str | None = None
    while True:
        page = await process.handlers.log(await state(process), "main", limit=100, cursor=cursor)
        history += [id for id, _ in page.commits]
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(history) == sorted([*made[0], *made[1]])
    assert len(await process.files()) == 200
    assert (await state(process)).sequence == 200
    # The two really met: a race that nobody lost proves nothing.
    assert sum(writer.metrics.get_sample_value("modelworks_registry_move_conflicts_total") or 0 for writer in processes)


async def test_of_many_writers_who_expect_the_same_head_one_wins(stores: Stores, process: Process) -> None:
    base = (await process.commit({"a": b"0"})).revision
    writers = [Process.start(stores) for _ in range(4)]

    results = await asyncio.gather(
        *(writer.commit({f"w{n}": b"x"}, expected=base) for n, writer in enumerate(writers)), return_exceptions=True
    )

    won = [result for result in results if isinstance(result, Committed)]
    lost = [result for result in results if isinstance(result, VersionConflict)]
    assert (len(won), len(lost)) == (1, 3)
    assert all(error.data == lost[0].data for error in lost)
    assert (lost[0].data["expected"], lost[0].data["actual"]) == (base, won[0].revision)


async def test_a_writer_that_never_gets_through_gives_up_clearly(stores: Stores, process: Process) -> None:
    unlucky = Process.start(stores, RegistrySettings(attempts_max=3))
    attempts: list[int] = []

    async def too_late(repository: str, entry: Entry) -> None:
        attempts.append(entry.sequence)
        await process.commit({f"p{len(attempts)}": b"x"})
        raise VersionConflict("somebody was first")

    unlucky.history.append = too_late  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="too many writers"):
        await unlucky.commit({"s": b"x"})

    assert attempts == [1, 2, 3]
    assert await process.files() == ["p1", "p2", "p3"]


# --- crashes ------------------------------------------------------------------------------------------------


async def test_a_move_whose_writer_died_is_finished_by_the_next_writer(
    process: Process, stores: Stores, heard: list[Envelope], eventually: Callable[..., Any]
) -> None:
    """INVARIANT: an entry of the log is a move that happened, whoever completes it, and it is announced once.

    What would break it: skipping the entry, or announcing from the writer instead of from the entry.
    """
    first = await process.commit({"a": b"1"})
    second = await process.commit({"b": b"2"}, branch="scratch", start="main")
    lost = Move(kind="branch", ref="main", old=first.revision, new=second.revision, committed=True)
    entry = (await state(process)).next_entry(lost, time="2026-01-31T12:00:01.000000Z", actor="bob", refs_max=9)
    await process.history.append("acme/m", entry)
    assert await process.files() == ["a"]

    third = await Process.start(stores).commit({"c": b"3"})

    assert third.commit.parents == (second.revision,)
    assert await process.files() == ["a", "b", "c"]
    await eventually(lambda: any(e.event.key == "acme/m" and _moved_to(e.event) == third.revision for e in heard))
    moves = [(e.actor, _moved_to(e.event)) for e in heard if _moved_to(e.event) and _branch(e.event) == "main"]
    assert moves == [("ada", first.revision), ("bob", second.revision), ("ada", third.revision)]


def _moved_to(event: Event) -> str | None:
    return event.new if isinstance(event, RefMoved) else None


def _branch(event: Event) -> str | None:
    return event.ref if isinstance(event, RefMoved) else None


async def test_a_creation_whose_writer_died_is_finished_when_asked_again(process: Process) -> None:
    await process.handlers.create("acme/probe", kind="model", private=True, description="d", actor="ada")
    entry = await process.history.entry("acme/probe", 0)
    assert entry is not None
    assert entry.creation is not None
    creation = entry.creation.model_copy(update={"repository": "acme/n", "space": "private/acme/n"})
    await process.history.append("acme/n", entry.model_copy(update={"creation": creation}))
    assert await process.handlers.get("acme/n") is None

    made = await process.handlers.create("acme/n", kind="model", private=True, description="d", actor="ada")

    assert (made.owner, made.private) == ("ada", True)


async def test_a_creation_whose_writer_died_keeps_the_name_from_others(process: Process) -> None:
    entry = await process.history.entry("acme/m", 0)
    assert entry is not None
    assert entry.creation is not None
    creation = entry.creation.model_copy(update={"repository": "acme/n"})
    await process.history.append("acme/n", entry.model_copy(update={"creation": creation}))

    with pytest.raises(Conflict, match="taken"):
        await process.handlers.create("acme/n", kind="model", private=False, description="", actor="mallory")

    assert (await state(process, "acme/n")).owner == "ada"


async def test_a_commit_that_dies_before_its_entry_is_nowhere(process: Process, stores: Stores) -> None:
    await process.commit({"a": b"1"})
    failing = Process.start(stores)

    async def die(repository: str, entry: Entry) -> None:
        raise StoreUnavailable("the object store went away")

    failing.history.append = die  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await failing.commit({"b": b"2"})

    assert await process.files() == ["a"]
    assert (await state(process)).sequence == 1


class Away:
    """A bus that is down until it is told to come back."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.down = True

    async def publish(self, messages: Sequence[Message]) -> None:
        if self.down:
            raise StoreUnavailable("the bus is down")
        await self.bus.publish(messages)


async def test_commits_go_on_without_the_bus_until_there_is_no_room_for_their_events(
    stores: Stores, process: Process, heard: list[Envelope], eventually: Callable[..., Any]
) -> None:
    """INVARIANT: no event of an answered commit is lost, however long the bus is away.

    What would break it: dropping events that do not fit, or answering a commit whose events were not kept.
    """
    away = Away(stores.bus)
    over = Process.start(replace(stores, bus=away))  # type: ignore[arg-type]
    sha256 = await over.put(b"x")
    answered: list[str] = []

    def command(n: int) -> CommitCommand:
        puts = [Put(f"{n}/{'d' * 250}/{'e' * 250}/{'f' * 250}/{k}", sha256) for k in range(250)]
        return CommitCommand(branch="main", message=str(n), operations=puts, idempotency_key=str(n))

    async def commit_on() -> None:
        for n in range(60):
            committed = await over.handlers.commit("acme/m", command(n), actor="ada")
            answered.append(committed.revision)

    with pytest.raises(Unavailable, match="is the bus down"):
        await commit_on()

    away.down = False
    await over.repositories._outbox.sweep(older_than=timedelta(seconds=-1))
    again = await over.handlers.commit("acme/m", command(len(answered)), actor="ada")

    # The move of the commit that was refused had happened; sent again, it is answered with that very commit.
    assert not again.created
    wanted = [*answered, again.revision]
    await eventually(lambda: len(_commits(heard)) == len(wanted))
    assert _commits(heard) == wanted


def _commits(heard: Sequence[Envelope]) -> list[str]:
    return [e.event.revision for e in heard if isinstance(e.event, RevisionCommitted)]


async def test_the_log_alone_gives_the_repository_back(process: Process) -> None:
    """INVARIANT: a document holds nothing that its log and objects do not say.

    What would break it: a change saved to the document that no entry carries.
    """
    readme = b"---\nlicense: mit\ntags: [a]\n---\nprose"
    first = await process.commit({"README.md": readme, "w.bin": b"1"}, idempotency_key="k")
    await process.commit({"w.bin": b"2"}, branch="dev", start="main")
    await process.handlers.set_ref("acme/m", "tag", "v1", "main", expected=None, actor="bob")
    await process.handlers.set_ref("acme/m", "tag", "v2", first.revision, expected=None, actor="bob")
    await process.handlers.delete_ref("acme/m", "tag", "v2", expected=first.revision, actor="bob")

    mover = Mover(
        repositories=process.repositories, history=process.history, blobs=process.blobs, settings=process.settings,
        metrics=Metrics(CollectorRegistry()),
    )  # fmt: skip
    entry = await process.history.entry("acme/m", 0)
    assert entry is not None
    rebuilt, _ = Repository.created(entry)
    while (entry := await process.history.entry("acme/m", rebuilt.sequence + 1)) is not None:
        facts = await mover._facts(rebuilt, entry)
        rebuilt, _ = rebuilt.applied(entry, facts, served_max=process.settings.idempotency_keys_max)

    assert rebuilt == await state(process)
    assert rebuilt.sequence == 5
    assert rebuilt.card.license == "mit"


# --- commits ------------------------------------------------------------------------------------------------


async def test_the_same_idempotency_key_gives_the_same_commit(process: Process, heard: list[Envelope]) -> None:
    first = await process.commit({"a": b"1"}, idempotency_key="job-1", expected=None)
    await process.commit({"b": b"2"})

    again = await process.commit({"a": b"1"}, idempotency_key="job-1", expected=None)

    assert (again.revision, again.created) == (first.revision, False)
    assert (await state(process)).sequence == 2


async def test_an_idempotency_key_that_meant_something_else_is_refused(process: Process) -> None:
    await process.commit({"a": b"1"}, idempotency_key="job-1")

    with pytest.raises(Conflict, match="job-1"):
        await process.commit({"a": b"2"}, idempotency_key="job-1")
    other_branch = await process.commit({"a": b"2"}, branch="dev", start="main", idempotency_key="job-1")

    assert other_branch.created


async def test_the_same_key_sent_twice_at_once_makes_one_commit(stores: Stores, process: Process) -> None:
    writers = [Process.start(stores) for _ in range(4)]

    results = await asyncio.gather(*(writer.commit({"a": b"1"}, idempotency_key="k") for writer in writers))

    assert len({result.revision for result in results}) == 1
    assert sum(result.created for result in results) == 1


async def test_a_commit_that_changes_nothing_is_not_made(
    process: Process, heard: list[Envelope], eventually: Callable[..., Any]
) -> None:
    first = await process.commit({"a": b"1"})

    again = await process.commit({"a": b"1"})

    assert (again.revision, again.created) == (first.revision, False)
    assert (await state(process)).sequence == 1
    await process.commit({"a": b"2"})
    await eventually(lambda: len([e for e in heard if isinstance(e.event, RevisionCommitted)]) == 2)


async def test_a_commit_that_changes_nothing_on_a_new_branch_makes_the_branch(process: Process) -> None:
    first = await process.commit({"a": b"1"})

    answer = await process.commit({"a": b"1"}, branch="copy", start="main", expected=None)

    assert (answer.revision, answer.created) == (first.revision, False)
    assert (await state(process)).head("branch", "copy") == first.revision


async def test_a_branch_begins_at_its_start(process: Process) -> None:
    first = await process.commit({"a": b"1"})
    await process.commit({"b": b"2"})

    from_revision = await process.commit({"c": b"3"}, branch="old", start=first.revision)
    from_ref = await process.commit({"c": b"3"}, branch="new", start="main")
    from_nothing = await process.commit({"c": b"3"}, branch="alone", expected=None)

    assert from_revision.commit.parents == (first.revision,)
    assert (await process.files("old"), await process.files("new")) == (["a", "c"], ["a", "b", "c"])
    assert (from_nothing.commit.parents, from_nothing.commit.generation) == ((), 1)
    assert from_ref.commit.generation == 3
    assert await process.files("alone") == ["c"]


async def test_a_start_that_does_not_exist_is_not_found(process: Process) -> None:
    await process.commit({"a": b"1"})

    for start in ("nowhere", "f" * 40):
        with pytest.raises(NotFound):
            await process.commit({"b": b"1"}, branch="dev", start=start)
    assert (await state(process)).head("branch", "dev") is None


async def test_lineage_is_kept_in_the_commit_and_announced(
    process: Process, heard: list[Envelope], eventually: Callable[..., Any]
) -> None:
    first = await process.commit({"a": b"1"})
    lineage = Lineage(
        kind="optimized", source_repository="acme/m", source_revision=first.revision, recipe="int8", job="j1"
    )

    made = await process.commit({"b": b"1"}, branch="int8", start="main", lineage=lineage)

    view = await process.handlers.revision(await state(process), "int8")
    assert view.commit.lineage == lineage
    events = await eventually(lambda: [e.event for e in heard if getattr(e.event, "revision", "") == made.revision])
    assert events[0].lineage == lineage
    assert events[0].changes_total == 1


async def test_a_commit_of_another_namespaces_blob_is_refused(process: Process) -> None:
    await process.handlers.create("other/m", kind="model", private=False, description="", actor="bob")
    sha256 = await process.put(b"secret", "other/m")
    command = CommitCommand(branch="main", message="steal", operations=[Put("a", sha256)])

    with pytest.raises(InvalidInput) as refused:
        await process.handlers.commit("acme/m", command, actor="ada")

    assert "'a'" in refused.value.message
    assert sha256 in refused.value.message


async def test_a_private_repositorys_blobs_are_its_own_within_the_namespace(process: Process) -> None:
    await process.handlers.create("acme/secret", kind="model", private=True, description="", actor="bob")
    sha256 = await process.put(b"secret", "acme/secret")
    command = CommitCommand(branch="main", message="steal", operations=[Put("a", sha256)])

    with pytest.raises(InvalidInput, match="no blob"):
        await process.handlers.commit("acme/m", command, actor="ada")


async def test_public_repositories_of_a_namespace_store_bytes_once(process: Process) -> None:
    await process.handlers.create("acme/n", kind="model", private=False, description="", actor="bob")
    sha256 = await process.put(b"shared", "acme/m")
    command = CommitCommand(branch="main", message="reuse", operations=[Put("a", sha256)])

    assert (await process.handlers.commit("acme/n", command, actor="bob")).created


async def test_an_onnx_file_that_is_none_is_refused_and_told_to_the_audit(
    process: Process, heard: list[Envelope], eventually: Callable[..., Any]
) -> None:
    with pytest.raises(InvalidInput, match=r"'m\.onnx' is refused: it is not an ONNX model"):
        await process.commit({"m.onnx": b"<html>not found</html>"})

    assert (await state(process)).sequence == 0
    refused = await eventually(lambda: [e for e in heard if isinstance(e.event, UploadRefused)])
    assert (refused[0].event.reason, refused[0].actor) == ("invalid-content", "ada")


async def test_a_dataset_may_hold_any_bytes_under_any_name(process: Process) -> None:
    await process.handlers.create("acme/d", kind="dataset", private=False, description="", actor="ada")

    made = await process.commit({"m.onnx": b"<html>not found</html>", "x.safetensors": b""}, "acme/d")

    assert made.created


async def test_deleting_every_file_leaves_an_empty_revision(process: Process) -> None:
    await process.commit({"a": b"1", "d/b": b"2"})

    await process.commit({"a": None, "d/b": None})

    assert await process.files() == []


async def test_limits_name_themselves(stores: Stores, process: Process) -> None:
    small = Process.start(stores, RegistrySettings(operations_max=2, files_max=2, refs_max=1))
    with pytest.raises(TooLarge, match="at most 2"):
        await small.commit({"a": b"1", "b": b"1", "c": b"1"})
    await small.commit({"a": b"1", "b": b"1"})
    with pytest.raises(TooLarge, match="at most 2"):
        await small.commit({"c": b"1"})
    with pytest.raises(TooLarge, match="at most 1"):
        await small.commit({"a": b"2"}, branch="dev", start="main")


async def test_a_large_commit_is_made_in_one_piece(process: Process) -> None:
    sha256 = await process.put(b"x")
    operations = [Put(f"dir{n % 20}/file{n}", sha256) for n in range(2_000)]

    made = await process.handlers.commit(
        "acme/m", CommitCommand(branch="main", message="many", operations=operations), actor="ada"
    )

    assert made.created
    assert len(await process.files()) == 2_000


# --- refs ---------------------------------------------------------------------------------------------------


async def test_a_tag_is_made_moved_and_deleted_by_compare_and_set(process: Process) -> None:
    first = (await process.commit({"a": b"1"})).revision
    second = (await process.commit({"a": b"2"})).revision
    handlers = process.handlers

    made = await handlers.set_ref("acme/m", "tag", "v1", first, expected=None, actor="ada")
    with pytest.raises(VersionConflict):
        await handlers.set_ref("acme/m", "tag", "v1", second, expected=None, actor="ada")
    with pytest.raises(VersionConflict):
        await handlers.delete_ref("acme/m", "tag", "v1", expected=second, actor="ada")
    moved = await handlers.set_ref("acme/m", "tag", "v1", second, expected=first, actor="ada")
    await handlers.delete_ref("acme/m", "tag", "v1", expected=second, actor="ada")

    assert made == (Ref(kind="tag", name="v1", revision=first), True)
    assert moved == (Ref(kind="tag", name="v1", revision=second), False)
    assert (await state(process)).head("tag", "v1") is None
    with pytest.raises(NotFound):
        await handlers.delete_ref("acme/m", "tag", "v1", expected=second, actor="ada")


async def test_setting_a_ref_to_where_it_is_changes_nothing(process: Process) -> None:
    first = (await process.commit({"a": b"1"})).revision

    await process.handlers.set_ref("acme/m", "branch", "main", first, expected=first, actor="ada")

    assert (await state(process)).sequence == 1


async def test_a_ref_to_a_revision_of_another_repository_is_not_found(process: Process) -> None:
    await process.handlers.create("acme/n", kind="model", private=False, description="", actor="ada")
    foreign = (await process.commit({"a": b"1"}, "acme/n")).revision

    for target in (foreign, "f" * 40, "nowhere"):
        with pytest.raises(NotFound):
            await process.handlers.set_ref("acme/m", "tag", "v1", target, expected=None, actor="ada")


async def test_moving_the_default_branch_back_brings_its_card_back(process: Process) -> None:
    first = (await process.commit({"README.md": b"---\nlicense: mit\n---\nold"})).revision
    await process.commit({"README.md": b"---\nlicense: gpl-3.0\n---\nnew"})
    assert (await state(process)).card.license == "gpl-3.0"

    await process.handlers.set_ref("acme/m", "branch", "main", first, expected=OMITTED, actor="ada")

    assert (await state(process)).card.license == "mit"
    await process.commit({"README.md": None, "x": b"1"})
    assert (await state(process)).card.license is None


async def test_the_card_of_another_branch_is_not_the_repositorys(process: Process) -> None:
    await process.commit({"README.md": b"---\nlicense: mit\n---\n"})

    await process.commit({"README.md": b"---\nlicense: gpl-3.0\n---\n"}, branch="dev", start="main")

    assert (await state(process)).card.license == "mit"


# --- reading ------------------------------------------------------------------------------------------------


async def test_the_log_goes_back_along_first_parents_page_by_page(process: Process) -> None:
    made = [(await process.commit({"a": str(n).encode()})).revision for n in range(5)]
    repository = await state(process)

    first = await process.handlers.log(repository, "main", limit=2, cursor=None)
    await process.commit({"a": b"later"})
    second = await process.handlers.log(repository, "main", limit=2, cursor=first.cursor)
    third = await process.handlers.log(repository, "main", limit=2, cursor=second.cursor)

    found = [id for page in (first, second, third) for id, _ in page.commits]
    assert found == made[::-1]
    assert third.cursor is None


async def test_a_tree_that_was_altered_is_damage_not_data(process: Process, stores: Stores) -> None:
    made = await process.commit({"d/a": b"1"})
    fresh = Process.start(stores)
    tree = made.commit.tree
    key = f"repositories/acme/m/trees/{tree[:2]}/{tree}"

    await stores.objects.put(key, (await stores.objects.read(key)).replace(b'"d"', b'"e"'))
    with pytest.raises(Damaged, match=tree):
        await fresh.files()
    await stores.objects.delete(key)
    with pytest.raises(Damaged, match="missing"):
        await Process.start(stores).files()


async def test_what_is_read_often_is_kept_within_its_bound(stores: Stores, process: Process) -> None:
    small = Process.start(stores, RegistrySettings(cache_entries_max=10))
    for n in range(30):
        await process.commit({f"d{n}/a": str(n).encode()})

    await small.files()
    await small.handlers.log(await state(process), "main", limit=50, cursor=None)

    assert small.history._cached_entries <= 10
    assert len(await small.files()) == 30


async def test_search_shows_private_repositories_to_their_owner_and_to_those_who_see_all(process: Process) -> None:
    await process.handlers.create("acme/secret", kind="model", private=True, description="hidden", actor="bob")
    await process.repositories._documents.refresh("registry-repositories")

    async def names(reader: str | None, **find: Any) -> list[str]:
        found = await process.handlers.search(replace(Find(order="name"), **find), reader=reader)
        assert found.total == len(found.repositories)
        return [repository.name for repository in found.repositories]

    assert await names("ada") == ["acme/m"]
    assert await names("public") == ["acme/m"]
    assert await names("bob") == ["acme/m", "acme/secret"]
    assert await names(None) == ["acme/m", "acme/secret"]
    assert await names("ada", text="hidden") == []
    assert await names("bob", text="hidden") == ["acme/secret"]
