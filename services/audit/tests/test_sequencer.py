"""The log's writer: what it writes, what it drops, what it refuses, and that of two writers one wins."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from modelworks.audit.adapters.index_documents import SCHEMA
from modelworks.audit.domain import Fenced, LogDamaged, encode_plan
from modelworks.audit.entry import decode_leaf
from modelworks.audit.record import document, document_id
from modelworks.audit.tlog.note import Signer, generate_key, open_checkpoint, sign_checkpoint
from modelworks.audit.tlog.tiles import Bundle, Tile
from modelworks.audit.tlog.tree import Edge
from modelworks.audit.verify import verify_log
from modelworks.events import FileChange, RevisionCommitted
from modelworks.kit.errors import NotFound, StoreUnavailable

Make = Callable[..., list[Any]]


async def documents(bench: Any) -> list[dict[str, Any]]:
    found, cursor = [], None
    while True:
        page, cursor = await bench.index.page(cursor=cursor, limit=1000)
        found += [each.body for each in page]
        if cursor is None:
            return found


async def whole(bench: Any) -> Any:
    """The log, read and verified together with its documents."""
    return await verify_log(bench.fetch, bench.signer.verifier.vkey, documents=await documents(bench))


async def keys(bench: Any) -> list[str]:
    return [each["event"]["key"] for each in await documents(bench)]


async def test_events_become_leaves_documents_and_a_signed_head(bench: Any, candidates: Make):
    some = candidates(0, 3)

    assert await bench.sequencer().append(some) == 3

    report = await whole(bench)
    assert report.size == 3
    assert bytes.fromhex(report.root) == Edge().append([each.leaf for each in some])[0].root
    assert [(c.size, c.root.hex()) for c in bench.announced] == [(3, report.root)]
    assert [d["event"]["id"] for d in await documents(bench)] == ["event-0", "event-1", "event-2"]


async def test_head_of_an_empty_log_is_signed_too(bench: Any):
    assert await bench.sequencer().start() == 0

    assert (await whole(bench)).size == 0


async def test_batches_of_many_sizes_over_several_processes_make_one_log(bench: Any, candidates: Make):
    at = 0
    for size in (1, 255, 1, 300, 7, 512, 1, 23):
        await bench.sequencer().append(candidates(at, at + size))
        at += size

    report = await whole(bench)

    assert report.size == at == 1100
    assert [d["event"]["id"] for d in await documents(bench)] == [f"event-{n}" for n in range(at)]


async def test_step_is_divided_by_bytes_and_every_part_is_signed(bench: Any, candidates: Make):
    some = candidates(0, 10)

    await bench.sequencer(bytes_max=4 * len(some[0].leaf)).append(some)

    assert [checkpoint.size for checkpoint in bench.announced] == [4, 8, 10]
    assert (await whole(bench)).size == 10


async def test_event_delivered_again_is_dropped(bench: Any, candidates: Make):
    sequencer = bench.sequencer()
    await sequencer.append(candidates(0, 5))

    assert await sequencer.append(candidates(0, 5)) == 0
    assert await sequencer.append([*candidates(3, 7), *candidates(3, 7)]) == 2

    assert (await whole(bench)).size == 7
    assert sequencer.duplicates == 5 + 8 - 2


async def test_event_older_than_the_window_is_dropped_too(bench: Any, candidates: Make):
    for at in range(0, 1200, 300):
        await bench.sequencer(window=256).append(candidates(at, at + 300))
    late = bench.sequencer(window=256)

    assert await late.append(candidates(0, 1200)) == 0
    assert (await whole(bench)).size == 1200


async def test_forged_document_cannot_keep_an_event_out_of_the_log(bench: Any, candidates: Make):
    for at in range(0, 900, 300):
        await bench.sequencer(window=256).append(candidates(at, at + 300))
    fresh = candidates(5000, 5001)
    body = document(5, fresh[0].leaf, fresh[0].entry)
    await bench.stores.documents.save(SCHEMA.collection, "forged", body, expected=None)

    added = await bench.sequencer(window=256).append(fresh)

    assert added == 1
    assert decode_leaf(await bench.prover.entry(900, await bench.prover.head())).id == "event-5000"


async def test_document_put_where_a_new_leaf_belongs_is_replaced_and_counted(bench: Any, candidates: Make):
    sequencer = bench.sequencer()
    await sequencer.append(candidates(0, 1))
    foreign = candidates(7, 8)[0]
    await bench.stores.documents.save(
        SCHEMA.collection, document_id(1), document(1, foreign.leaf, foreign.entry), expected=None
    )

    await sequencer.append(candidates(1, 2))

    assert sequencer.foreign == 1
    assert [d["event"]["id"] for d in await documents(bench)] == ["event-0", "event-1"]
    await whole(bench)


async def test_documents_that_a_power_cut_took_are_made_again_at_start(bench: Any, candidates: Make):
    await bench.sequencer().append(candidates(0, 20))
    lost = await bench.index.get(document_id(19))
    await bench.stores.documents.delete(SCHEMA.collection, document_id(19), expected=lost.version)

    await bench.sequencer().start()

    assert (await whole(bench)).size == 20


async def test_partial_tiles_go_once_the_full_one_is_there(bench: Any, candidates: Make):
    sequencer = bench.sequencer()
    for at in range(0, 300, 50):
        await sequencer.append(candidates(at, at + 50))

    left = [info.key async for info in bench.stores.objects.list("audit/tile/")]

    assert sorted(left) == sorted(
        [
            "audit/tile/0/000",
            "audit/tile/0/001.p/44",
            "audit/tile/1/000.p/1",
            "audit/tile/entries/000",
            "audit/tile/entries/001.p/44",
        ]
    )
    assert [info.key async for info in bench.stores.objects.list("audit/plan/")] == []
    assert await bench.log.read(Tile(0, 0, 100)) == (await bench.log.read(Tile(0, 0)))[: 100 * 32]
    assert len(await bench.log.read(Bundle(0, 100))) < len(await bench.log.read(Bundle(0)))
    with pytest.raises(NotFound):
        await bench.log.read(Tile(0, 5))


async def test_long_body_lies_beside_the_log_and_is_served_with_its_leaf(bench: Any, candidates: Make):
    event = RevisionCommitted(
        repository="acme/filetype", revision="a" * 40, branch="main", parents=[], message="big", changes_total=256,
        changes=[FileChange(path=f"{n:03d}/" + "x" * 900, change="deleted") for n in range(256)],
    )  # fmt: skip
    some = candidates(events=[event])

    await bench.sequencer().append(some)

    assert await bench.log.read_body(some[0].entry.sha256) == some[0].body
    assert (await documents(bench))[0]["data"]["changes_total"] == 256
    await whole(bench)


async def test_plan_that_a_crash_left_is_carried_out_before_anything_else(bench: Any, candidates: Make):
    await bench.sequencer().append(candidates(0, 3))
    planned = candidates(3, 6)
    await bench.log.write_plan(3, encode_plan(3, [each.leaf for each in planned]))

    added = await bench.sequencer().append(candidates(5, 8))

    assert added == 2
    assert [d["event"]["id"] for d in await documents(bench)] == [f"event-{n}" for n in range(8)]
    await whole(bench)


async def test_of_two_writers_one_is_fenced_and_nothing_is_lost_or_doubled(bench: Any, candidates: Make):
    """INVARIANT: one index never gets two leaves, however writers interleave."""
    writers = [bench.sequencer(), bench.sequencer(), bench.sequencer()]
    turns = random.Random(7)
    fenced = 0

    async def write(writer: Any, at: int) -> None:
        nonlocal fenced
        while True:
            try:
                await writer.append(candidates(at, at + 5))
                return
            except Fenced:
                fenced += 1
                await asyncio.sleep(turns.random() / 500)

    await asyncio.gather(*(write(writers[number % 3], number * 4) for number in range(30)))

    report = await whole(bench)
    assert report.size == 30 * 4 + 1
    assert sorted(await keys(bench)) == sorted({*await keys(bench)})
    assert fenced > 0


class Sleeper:
    """A log whose writer is stopped before one kind of call, as SIGSTOP does, until somebody wakes it."""

    def __init__(self, log: Any, before: str) -> None:
        self._log = log
        self._before = before
        self.stopped, self.wake = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._log, name)
        if name != self._before:
            return found

        async def stopped(*args: Any, **kwargs: Any) -> Any:
            self.stopped.set()
            await self.wake.wait()
            return await found(*args, **kwargs)

        return stopped


@pytest.mark.parametrize("before", ["write_plan", "version", "write", "publish", "forget_plans", "forget_partials"])
async def test_writer_that_slept_through_a_takeover_changes_nothing(bench: Any, candidates: Make, before: str):
    """INVARIANT: a zombie may write the same bytes again, never others, wherever it was stopped."""
    await bench.sequencer().append(candidates(0, 250))
    zombie = bench.sequencer()
    await zombie.start()
    zombie._log = Sleeper(bench.log, before)
    sleeping = asyncio.create_task(zombie.append(candidates(250, 260)))
    await zombie._log.stopped.wait()

    successor = bench.sequencer()
    await successor.append(candidates(300, 310))
    await successor.append(candidates(310, 900))
    before_waking = await whole(bench)
    zombie._log.wake.set()
    outcome = (await asyncio.gather(sleeping, return_exceptions=True))[0]

    after = await whole(bench)
    assert after == before_waking
    assert isinstance(outcome, Fenced) or outcome == 10
    await zombie.append(candidates(250, 260))
    final = await whole(bench)
    assert final.size == 250 + 600 + 10
    assert len({*await keys(bench)}) == final.size


async def test_stale_plan_found_by_a_stale_reader_is_not_carried_out(bench: Any, candidates: Make):
    """INVARIANT: a plan counts only while its head is still the log's; two late processes cannot mislead each other."""
    await bench.sequencer().append(candidates(0, 10))
    reader = bench.sequencer()
    reader._log = Sleeper(bench.log, "plan")
    reading = asyncio.create_task(reader.start())
    await reader._log.stopped.wait()
    await bench.sequencer().append(candidates(10, 15))
    await bench.log.write_plan(10, encode_plan(10, [each.leaf for each in candidates(90, 95)]))
    before_waking = await whole(bench)

    reader._log.wake.set()
    outcome = (await asyncio.gather(reading, return_exceptions=True))[0]

    assert isinstance(outcome, Fenced)
    assert await whole(bench) == before_waking
    assert await reader.append(candidates(15, 16)) == 1
    assert (await whole(bench)).size == 16


class Broken:
    """An index that does not answer."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self.down = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    async def create(self, documents: Any) -> Any:
        if self.down:
            raise StoreUnavailable("the documents do not answer")
        return await self._index.create(documents)


async def test_store_that_is_away_leaves_the_batch_to_be_finished(bench: Any, candidates: Make):
    sequencer = bench.sequencer()
    await sequencer.append(candidates(0, 2))
    sequencer._index = Broken(bench.index)

    with pytest.raises(StoreUnavailable):
        await sequencer.append(candidates(2, 4))
    head = await bench.prover.head()
    sequencer._index.down = False
    await sequencer.append(candidates(2, 4))

    assert head.size == 2
    assert (await whole(bench)).size == 4


async def damaged_tile(bench: Any) -> None:
    data = await bench.log.read(Tile(0, 0, 5))
    await bench.log.write(Tile(0, 0, 5), b"\x00" + data[1:])


async def lost_tile(bench: Any) -> None:
    await bench.stores.objects.delete("audit/tile/0/000.p/5")


async def short_bundle(bench: Any) -> None:
    await bench.log.write(Bundle(0, 5), (await bench.log.read(Bundle(0, 5)))[:-1])


async def foreign_signature(bench: Any) -> None:
    head = await bench.prover.head()
    stranger = Signer(generate_key("test/audit"))
    await bench.stores.objects.put("audit/checkpoint", sign_checkpoint(stranger, size=5, root=head.root).note.encode())


async def larger_size(bench: Any) -> None:
    head = await bench.prover.head()
    note = sign_checkpoint(bench.signer, size=6, root=head.root).note
    await bench.stores.objects.put("audit/checkpoint", note.encode())


async def nonsense_plan(bench: Any) -> None:
    await bench.log.write_plan(5, b"nonsense")


@pytest.mark.parametrize(
    "damage", [damaged_tile, lost_tile, short_bundle, foreign_signature, larger_size, nonsense_plan]
)
async def test_log_that_contradicts_itself_is_never_signed_on(bench: Any, candidates: Make, damage: Callable[..., Any]):
    await bench.sequencer().append(candidates(0, 5))
    await damage(bench)
    before = await bench.log.note()

    with pytest.raises(LogDamaged):
        await bench.sequencer().append(candidates(5, 6))

    assert await bench.log.note() == before


async def test_replaced_checkpoint_is_refused_by_the_store(bench: Any):
    note = sign_checkpoint(bench.signer, size=0, root=Edge().root).note
    version = await bench.log.publish(note, replaces=None)

    with pytest.raises(Fenced):
        await bench.log.publish(note, replaces=None)
    with pytest.raises(Fenced):
        await bench.log.publish(note, replaces="another")
    assert await bench.log.publish(note, replaces=version)
    assert open_checkpoint(str(await bench.log.note()), bench.signer.verifier).size == 0
