"""The document contract on SQLite, and what only this adapter promises: its file, kill -9, the damage it names."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from modelworks.kit.errors import StoreUnavailable, VersionConflict
from modelworks.stores import Field, FieldType, Filter, Query, Schema, Sort
from modelworks.stores.documents.sqlite import SqliteDocuments

pytest.register_assert_rewrite("libs.stores.tests.contract_documents")

from libs.stores.tests.contract_documents import DocumentsContract, OpenDocuments, ids  # noqa: E402


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "documents.sqlite"


class TestSqliteDocuments(DocumentsContract):
    @pytest.fixture
    async def open_documents(self, path: Path) -> AsyncIterator[OpenDocuments]:
        opened: list[SqliteDocuments] = []

        def open_documents() -> SqliteDocuments:
            opened.append(SqliteDocuments(path))
            return opened[-1]

        yield open_documents
        for documents in opened:
            await documents.close()


SCHEMA = Schema("jobs", (Field("status", FieldType.KEYWORD), Field("n", FieldType.INTEGER)))


async def test_nothing_is_written_before_the_first_use(path: Path) -> None:
    await SqliteDocuments(path).close()

    assert not path.parent.exists()


async def test_a_folder_that_cannot_be_made_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    documents = SqliteDocuments(tmp_path / "file" / "documents.sqlite")

    with pytest.raises(StoreUnavailable, match=r"documents\.sqlite cannot be used.*user may write"):
        await documents.ensure(SCHEMA)
    with pytest.raises(StoreUnavailable):
        await documents.get("jobs", "a")
    await documents.close()


async def test_a_store_works_again_once_its_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    documents = SqliteDocuments(tmp_path / "file" / "documents.sqlite")
    with pytest.raises(StoreUnavailable):
        await documents.check()

    (tmp_path / "file").unlink()

    await documents.check()
    await documents.ensure(SCHEMA)
    await documents.close()


async def test_a_damaged_file_is_named_with_the_way_out(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is not a database, and long enough to be looked at" * 100)
    documents = SqliteDocuments(path)

    with pytest.raises(StoreUnavailable, match=r"documents\.sqlite.*restore it from a backup"):
        await documents.check()
    await documents.close()


async def test_a_closed_store_says_so(path: Path) -> None:
    documents = SqliteDocuments(path)
    await documents.ensure(SCHEMA)
    await documents.close()
    await documents.close()

    with pytest.raises(StoreUnavailable, match="closed"):
        await documents.get("jobs", "a")
    with pytest.raises(StoreUnavailable, match="closed"):
        await documents.save("jobs", "a", {}, expected=None)


async def test_what_a_killed_process_saved_is_there(path: Path) -> None:
    """INVARIANT: `save` returned means it survives kill -9; would break if commits were answered before they are made."""
    script = textwrap.dedent("""
        import asyncio, sys
        from pathlib import Path
        from modelworks.stores import Field, FieldType, Schema
        from modelworks.stores.documents.sqlite import SqliteDocuments

        async def main() -> None:
            documents = SqliteDocuments(Path(sys.argv[1]))
            await documents.ensure(Schema("jobs", (Field("status", FieldType.KEYWORD), Field("n", FieldType.INTEGER))))
            n = 0
            while True:
                batch = range(n, n + 10)
                await asyncio.gather(*(documents.save("jobs", str(i), {"n": i}, expected=None) for i in batch))
                n += 10
                print(n, flush=True)

        asyncio.run(main())
    """)
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None

    def read_until(least: int) -> int:
        while True:
            line = writer.stdout.readline()  # type: ignore[union-attr]
            if int(line) >= least:
                return int(line)

    await asyncio.to_thread(read_until, 200)
    os.kill(writer.pid, signal.SIGKILL)
    rest, _ = writer.communicate()
    acknowledged = int(rest.split()[-1]) if rest.endswith(b"\n") and rest.split() else 200

    documents = SqliteDocuments(path)
    await documents.ensure(SCHEMA)
    saved = await asyncio.gather(*(documents.get("jobs", str(n)) for n in range(acknowledged)))
    page = await documents.search("jobs", Query(filters=(Filter("n", "gte", 0),), limit=1))

    assert all(document is not None for document in saved)
    assert acknowledged <= page.total <= acknowledged + 20
    await documents.close()


async def test_two_processes_never_both_win(path: Path) -> None:
    """Two stores on one file are what two processes are."""
    first, second = SqliteDocuments(path), SqliteDocuments(path)
    await first.ensure(SCHEMA)
    saved = await first.save("jobs", "a", {"n": 0}, expected=None)
    wins = 0
    for n in range(20):
        outcomes = await asyncio.gather(
            first.save("jobs", "a", {"n": n}, expected=saved.version),
            second.save("jobs", "a", {"n": -n}, expected=saved.version),
            return_exceptions=True,
        )
        winners = [each for each in outcomes if not isinstance(each, BaseException)]
        assert len(winners) == 1
        assert sum(isinstance(each, VersionConflict) for each in outcomes) == 1
        saved = winners[0]
        wins += 1

    assert wins == 20
    await first.close()
    await second.close()


async def test_a_cancelled_save_harms_no_other(path: Path) -> None:
    documents = SqliteDocuments(path)
    await documents.ensure(SCHEMA)
    saves = [asyncio.create_task(documents.save("jobs", str(n), {"n": n}, expected=None)) for n in range(100)]
    await asyncio.sleep(0)
    for save in saves[::3]:
        save.cancel()

    outcomes = await asyncio.gather(*saves, return_exceptions=True)

    done = {str(n) for n, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException)}
    page = await documents.search("jobs", Query(limit=1000))
    # A cancelled save may have been made already; the others must have been.
    assert done <= set(ids(page))
    assert len(done) >= 66
    await documents.close()


async def test_a_refused_save_in_a_common_commit_leaves_the_others(path: Path) -> None:
    documents = SqliteDocuments(path)
    await documents.ensure(SCHEMA)

    outcomes = await asyncio.gather(
        *(documents.save("jobs", str(n), {"n": n if n % 2 else "wrong"}, expected=None) for n in range(40)),
        return_exceptions=True,
    )

    assert [isinstance(each, BaseException) for each in outcomes] == [n % 2 == 0 for n in range(40)]
    assert (await documents.search("jobs", Query())).total == 20
    await documents.close()


async def test_the_event_loop_keeps_turning_while_thousands_are_saved(path: Path) -> None:
    documents = SqliteDocuments(path)
    await documents.ensure(SCHEMA)
    longest = 0.0
    stop = asyncio.Event()

    async def watch() -> None:
        nonlocal longest
        while not stop.is_set():
            began = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - began)

    watching = asyncio.create_task(watch())
    await documents.create_many("jobs", [(str(n), {"n": n, "status": "x"}) for n in range(5000)])
    await documents.search("jobs", Query(sort=Sort("n"), limit=1000))
    stop.set()
    await watching

    # Generous: the machine is shared; a blocking implementation takes most of a second.
    assert longest < 0.2
    await documents.close()
