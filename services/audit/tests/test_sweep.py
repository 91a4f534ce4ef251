"""The index against the log: a document that was edited, deleted or inserted is named."""

from __future__ import annotations

import copy
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modelworks.audit.adapters.index_documents import SCHEMA
from modelworks.audit.domain import encode_plan
from modelworks.audit.record import document, document_id
from modelworks.audit.sweep import Difference
from modelworks.audit.tlog.note import VerificationError
from modelworks.audit.verify import verify_log

Make = Callable[..., list[Any]]


def named(report: Any) -> set[tuple[str, str]]:
    return {(each.kind, each.document) for each in report.differences}


async def edit(bench: Any, index: int, **changes: Any) -> None:
    found = await bench.index.get(document_id(index))
    body = copy.deepcopy(dict(found.body)) | changes
    await bench.index.replace(document_id(index), body, version=found.version)


async def delete(bench: Any, index: int) -> None:
    found = await bench.index.get(document_id(index))
    await bench.stores.documents.delete(SCHEMA.collection, found.id, expected=found.version)


async def test_untouched_index_has_no_differences(bench: Any, candidates: Make):
    await bench.sequencer().append(candidates(0, 600))

    report = await bench.audit.sweep()

    assert (report.leaves, report.checked, report.differing) == (600, 600, 0)


async def test_edited_deleted_and_inserted_documents_are_named(bench: Any, candidates: Make):
    await bench.sequencer().append(candidates(0, 600))
    await edit(bench, 17, outcome="denied")
    await delete(bench, 0)
    await delete(bench, 300)
    await delete(bench, 599)
    foreign = candidates(900, 901)[0]
    body = document(600, foreign.leaf, foreign.entry)
    await bench.stores.documents.save(SCHEMA.collection, document_id(600), body, expected=None)
    await bench.stores.documents.save(SCHEMA.collection, "not-a-number", body, expected=None)

    report = await bench.audit.sweep()

    assert named(report) == {
        ("edited", document_id(17)),
        ("deleted", document_id(0)),
        ("deleted", document_id(300)),
        ("deleted", document_id(599)),
        ("inserted", document_id(600)),
        ("inserted", "not-a-number"),
    }
    assert report.differing == 6
    assert Difference("edited", document_id(17), "outcome of leaf 17's document was changed") in report.differences


async def test_document_edited_behind_the_stores_back_is_named(bench: Any, candidates: Make, tmp_path: Path):
    """With SQL, as somebody with the file would do it: the version is not touched, the index neither."""
    await bench.sequencer().append(candidates(0, 10))
    await bench.stores.documents.close()
    edited = 0
    with sqlite3.connect(tmp_path / "data" / "documents.sqlite") as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for number, name, *_ in database.execute(f'PRAGMA table_info("{table}")').fetchall():
                for (value,) in database.execute(f'SELECT DISTINCT "{name}" FROM "{table}"').fetchall():
                    if isinstance(value, str) and '"event-4"' in value and value.startswith("{"):
                        changed = value.replace('"name":"alice"', '"name":"bob"')
                        assert json.loads(changed) != json.loads(value), number
                        edited += database.execute(
                            f'UPDATE "{table}" SET "{name}" = ? WHERE "{name}" = ?', (changed, value)
                        ).rowcount
    assert edited == 1
    from modelworks.audit.adapters.index_documents import DocumentIndex
    from modelworks.stores.documents.sqlite import SqliteDocuments

    reopened = SqliteDocuments(tmp_path / "data" / "documents.sqlite")
    bench.audit._index = DocumentIndex(reopened)
    await bench.audit._index.ensure()

    report = await bench.audit.sweep()
    await reopened.close()

    assert named(report) == {("edited", document_id(4))}
    assert "actor" in report.differences[0].detail


async def test_everything_deleted_is_named_up_to_a_bound_and_counted_in_all(bench: Any, candidates: Make):
    await bench.sequencer().append(candidates(0, 1100))
    for index in range(1100):
        await delete(bench, index)

    report = await bench.audit.sweep()

    assert report.differing == 1100
    assert len(report.differences) == 1000


async def test_step_under_way_is_no_difference(bench: Any, candidates: Make):
    await bench.sequencer().append(candidates(0, 5))
    planned = candidates(5, 7)
    await bench.log.write_plan(5, encode_plan(5, [each.leaf for each in planned]))
    await bench.index.create([(document_id(5), document(5, planned[0].leaf, planned[0].entry))])

    assert (await bench.audit.sweep()).differing == 0
    assert (await bench.audit.sample(5)).differing == 0


async def test_sample_of_all_leaves_finds_what_the_sweep_finds(bench: Any, candidates: Make):
    await bench.sequencer().append(candidates(0, 20))
    await edit(bench, 3, message="nothing happened")
    await delete(bench, 4)
    foreign = candidates(900, 903)
    for number, each in enumerate(foreign, 20):
        await bench.index.create([(document_id(number), document(number, each.leaf, each.entry))])

    report = await bench.audit.sample(20)

    assert named(report) == {("edited", document_id(3)), ("deleted", document_id(4)), ("inserted", "")}


@pytest.mark.parametrize("how", ["edit", "delete", "insert"])
async def test_offline_verifier_given_the_documents_refuses_a_changed_index(bench: Any, candidates: Make, how: str):
    await bench.sequencer().append(candidates(0, 5))
    page, _ = await bench.index.page(cursor=None, limit=10)
    documents = [copy.deepcopy(dict(each.body)) for each in page]
    if how == "edit":
        documents[2]["actor"]["user"]["name"] = "bob"
    elif how == "delete":
        documents.pop(2)
    else:
        documents.append(copy.deepcopy(documents[2]) | {"event": documents[2]["event"] | {"index": 5}})

    with pytest.raises(VerificationError, match=r"leaf 2|documents have no leaf: \[5\]"):
        await verify_log(bench.fetch, bench.signer.verifier.vkey, documents=documents)
