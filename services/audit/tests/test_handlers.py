"""What is asked of the audit, without HTTP."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from modelworks.audit.entry import decode_leaf
from modelworks.audit.ports import Question
from modelworks.audit.record import document, document_id
from modelworks.audit.tlog.note import VerificationError
from modelworks.audit.verify import verify_search_answer
from modelworks.events import AccessDenied, JobFailed, RepositoryCreated, TokenRefused
from modelworks.kit.errors import InvalidInput, NotFound

Make = Callable[..., list[Any]]


async def ids(bench: Any, **question: Any) -> list[str]:
    found = await bench.auditing.search(Question(**question), None)
    verify_search_answer(found, bench.signer.verifier.vkey)
    return [item["id"] for item in found["items"]]


@pytest.fixture
async def mixed(bench: Any, candidates: Make, denial: AccessDenied) -> None:
    failure = JobFailed(
        job="opt-1",
        repository="acme/filetype",
        revision="a" * 40,
        error={"code": "not-onnx", "message": "no ONNX file"},
    )
    events = [
        RepositoryCreated(repository="acme/filetype", kind="model", private=False),
        denial,
        failure,
        TokenRefused(client="mallory", error="invalid_client"),
    ]
    await bench.sequencer().append(candidates(events=events[:1], actor="alice"))
    await bench.sequencer().append(candidates(events=events, actor="mallory")[1:])


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ({}, ["event-3", "event-2", "event-1", "event-0"]),
        ({"actor": "alice"}, ["event-0"]),
        ({"actor": "mallory"}, ["event-3", "event-2", "event-1"]),
        ({"type": "auth.access-denied.v1"}, ["event-1"]),
        ({"type": "auth.*"}, ["event-3", "event-1"]),
        ({"resource": "acme/filetype"}, ["event-2", "event-1", "event-0"]),
        ({"outcome": "denied"}, ["event-3", "event-1"]),
        ({"outcome": "failure"}, ["event-2"]),
        ({"outcome": "success", "actor": "mallory"}, []),
        ({"text": "mallory"}, ["event-3", "event-2", "event-1"]),
        ({"text": "policy-denied"}, ["event-1"]),
        ({"text": "Policy denied MALLORY"}, ["event-1"]),
        ({"text": "repository:write"}, ["event-1"]),
        ({"text": "not-onnx"}, ["event-2"]),
        ({"text": "invalid_client"}, ["event-3"]),
        ({"text": "registry.repository-created"}, ["event-0"]),
        ({"text": "acme/filetype", "outcome": "denied"}, ["event-1"]),
        ({"text": "nothing like it"}, []),
        ({"text": '"quoted" OR 1=1 --'}, []),
        ({"since": datetime(2026, 1, 31, 12, 0, 2, tzinfo=UTC)}, ["event-3", "event-2"]),
        ({"until": datetime(2026, 1, 31, 12, 0, 2, tzinfo=UTC)}, ["event-1", "event-0"]),
        ({"since": datetime(2026, 1, 31, 12, 0, 1, tzinfo=UTC), "until": datetime(2026, 1, 31, 12, 0, 2, tzinfo=UTC)}, ["event-1"]),
    ],
)  # fmt: skip
async def test_search_finds_and_every_hit_verifies(bench: Any, question: dict[str, Any], expected: list[str]):
    assert await ids(bench, **question) == expected


async def test_pages_do_not_move_while_the_log_grows(bench: Any, candidates: Make):
    sequencer = bench.sequencer()
    await sequencer.append(candidates(0, 25))
    seen: list[int] = []
    cursor = None
    while True:
        page = await bench.auditing.search(Question(limit=10), cursor)
        verify_search_answer(page, bench.signer.verifier.vkey)
        seen += [item["index"] for item in page["items"]]
        assert page["total"] == 25
        cursor = page["cursor"]
        await sequencer.append(candidates(len(seen) * 100, len(seen) * 100 + 5))
        if cursor is None:
            break

    assert seen == list(range(24, -1, -1))


@pytest.mark.parametrize("cursor", ["x", "bm9uc2Vuc2U", "WzEsMl0", "WyJhIiwiYiJd", "WzMsIngiXQ", "é"])
async def test_foreign_cursor_is_refused(bench: Any, candidates: Make, cursor: str):
    await bench.sequencer().append(candidates(0, 3))

    with pytest.raises(InvalidInput, match="cursor"):
        await bench.auditing.search(Question(), cursor)


async def test_document_of_a_leaf_that_is_not_signed_is_no_hit(bench: Any, candidates: Make):
    await bench.sequencer().append(candidates(0, 2))
    waiting = candidates(2, 3)[0]
    await bench.index.create([(document_id(2), document(2, waiting.leaf, waiting.entry))])

    assert await ids(bench) == ["event-1", "event-0"]


@pytest.mark.parametrize(
    "change",
    [
        {"event": {"index": 1}},
        {"event": {"index": 1, "kept": "stored", "sha256": "../../checkpoint"}},
        {"event": {"index": 1, "kept": "stored", "sha256": 7}},
        {"actor": {"user": {"name": "bob"}}},
        {"actor": {}},
        {"resource": {}},
        {"leaf": 7},
        {"data": None},
    ],
)
async def test_tampered_document_never_breaks_the_search_and_never_verifies(
    bench: Any, candidates: Make, change: dict[str, Any]
):
    await bench.sequencer().append(candidates(0, 3))
    found = await bench.index.get(document_id(1))
    await bench.index.replace(document_id(1), {**found.body, **change}, version=found.version)

    answer = await bench.auditing.search(Question(), None)

    assert len(answer["items"]) == 3
    with pytest.raises(VerificationError, match="leaf 1"):
        verify_search_answer(answer, bench.signer.verifier.vkey)


async def test_entry_is_read_from_the_log_not_from_the_index(bench: Any, candidates: Make):
    await bench.sequencer().append(candidates(0, 300))
    found = await bench.index.get(document_id(299))
    await bench.index.replace(document_id(299), {**found.body, "outcome": "denied"}, version=found.version)

    entry = await bench.auditing.entry(299)

    assert entry["outcome"] == "success"
    assert verify_search_answer({"items": [entry], "checkpoint": entry["checkpoint"]}, bench.signer.verifier.vkey) == 1
    for index in (-1, 300, 10**12):
        with pytest.raises(NotFound, match=str(index)):
            await bench.auditing.entry(index)


async def test_consistency_is_answered_within_the_signed_tree_only(bench: Any, candidates: Make):
    await bench.sequencer().append(candidates(0, 20))

    assert len((await bench.auditing.consistency(7, 20))["hashes"]) > 1
    assert (await bench.auditing.consistency(0, 20))["hashes"] == []
    for old, new in ((7, 21), (8, 7), (-1, 5)):
        with pytest.raises(InvalidInput, match="20"):
            await bench.auditing.consistency(old, new)


async def test_files_of_the_log_are_served_by_their_paths_and_nothing_else_is(bench: Any, candidates: Make):
    sequencer = bench.sequencer()
    await sequencer.append(candidates(0, 20))
    partial = await bench.auditing.file("tile/0/000.p/20")
    await sequencer.append(candidates(20, 300))

    assert await bench.auditing.file("tile/0/000.p/20") == partial
    assert (await bench.auditing.file("tile/0/000"))[: 20 * 32] == partial
    for path in ("tile/0/../../plan/0", "checkpoint", "tile/body/x", "tile/0/0"):
        with pytest.raises(InvalidInput):
            await bench.auditing.file(path)
    with pytest.raises(NotFound):
        await bench.auditing.file("tile/0/007")


async def test_proofs_are_built_from_cached_tiles(bench: Any, candidates: Make):
    await bench.sequencer().append(candidates(0, 600))
    await bench.auditing.search(Question(limit=200), None)
    reads: list[str] = []
    read = bench.log.read

    async def counted(name: Any) -> bytes:
        reads.append(name.path)
        return await read(name)

    bench.log.read = counted
    await bench.auditing.search(Question(limit=200), None)

    assert reads == []


async def test_leaf_of_a_hit_is_the_events_exact_bytes(bench: Any, candidates: Make):
    some = candidates(0, 1)
    await bench.sequencer().append(some)

    entry = decode_leaf(await bench.prover.entry(0, await bench.prover.head()))

    assert entry.body == some[0].body
