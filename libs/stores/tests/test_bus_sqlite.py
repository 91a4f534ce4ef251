"""The bus contract on SQLite, and what only this adapter promises: files, locks, kill -9, retention, idleness."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from modelworks.kit.errors import InvalidInput, StoreUnavailable
from modelworks.stores import Message, Subscription
from modelworks.stores.bus.sqlite import SqliteBus
from modelworks.stores.bus.sqlite_log import Retention

pytest.register_assert_rewrite("libs.stores.tests.contract_bus")

from libs.stores.tests.contract_bus import BusContract  # noqa: E402
from libs.stores.tests.contract_bus_parts import Eventually, OpenBus, Recorder, drained, message  # noqa: E402


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "bus.sqlite"


class TestSqliteBus(BusContract):
    @pytest.fixture
    async def open_bus(self, path: Path) -> AsyncIterator[OpenBus]:
        opened: list[SqliteBus] = []

        def open_bus(*, drain: timedelta = timedelta(seconds=10)) -> SqliteBus:
            opened.append(SqliteBus(path, drain=drain))
            return opened[-1]

        yield open_bus
        for bus in opened:
            await bus.close()


async def test_nothing_is_written_before_the_first_use(path: Path) -> None:
    bus = SqliteBus(path)
    await bus.close()

    assert not path.parent.exists()


async def test_a_folder_that_cannot_be_made_is_named_with_the_way_out(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    bus = SqliteBus(blocked / "bus.sqlite")

    with pytest.raises(StoreUnavailable, match=r"file.bus\.sqlite.*data folder that can be written"):
        await bus.check()

    blocked.unlink()
    await bus.check()
    await bus.close()


async def test_a_file_that_is_no_database_is_named(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    bus = SqliteBus(path)

    with pytest.raises(StoreUnavailable, match=r"bus\.sqlite"):
        await bus.publish([message("t", "x")])
    await bus.close()


async def test_a_second_process_on_the_same_folder_is_told_so(path: Path) -> None:
    bus = SqliteBus(path)
    await bus.check()
    script = f"""
        import asyncio
        from pathlib import Path
        from modelworks.stores.bus.sqlite import SqliteBus
        try:
            asyncio.run(SqliteBus(Path({str(path)!r})).check())
        except Exception as error:
            print(type(error).__name__, error)
    """

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.startswith("StoreUnavailable")
    assert "another process" in done.stdout
    await bus.close()


async def test_what_was_published_survives_kill_9(path: Path, eventually: Eventually) -> None:
    script = f"""
        import asyncio
        from pathlib import Path
        from modelworks.stores import Message
        from modelworks.stores.bus.sqlite import SqliteBus
        async def main():
            bus = SqliteBus(Path({str(path)!r}))
            n = 0
            while True:
                await bus.publish([Message("t", "k", str(n).encode())])
                print(n, flush=True)
                n += 1
        asyncio.run(main())
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    told.extend(int(line) for line in process.stdout.read().splitlines() if line)
    process.wait(10)

    bus, handler = SqliteBus(path), Recorder()
    await bus.subscribe(Subscription("g", ("t",), handler, batch_max=100))

    await eventually(lambda: drained(bus, "g"))
    assert handler.seen[: len(told)] == [str(n) for n in told]
    await bus.close()


async def test_old_messages_go_when_every_group_has_passed_them(path: Path, eventually: Eventually) -> None:
    bus = SqliteBus(path)
    quick, slow = Recorder(), Recorder()
    await bus.publish([message("t", f"{n}") for n in range(100)])
    await bus.subscribe(Subscription("quick", ("t",), quick, batch_max=100))
    behind = await bus.subscribe(Subscription("slow", ("t",), slow, batch_max=100))
    await eventually(lambda: len(quick.seen) == 100 and len(slow.seen) == 100)
    await behind.stop()
    await bus.publish([message("t", f"{n}") for n in range(100, 150)])
    await eventually(lambda: len(quick.seen) == 150)
    await eventually(lambda: drained(bus, "quick"))
    await bus.close()

    # A bus trims with its first publish, and then about once a minute.
    bus = SqliteBus(path, retention=Retention(messages_max=10))
    await bus.publish([message("other", "x")])
    await bus.close()
    bus, slow, late = SqliteBus(path), Recorder(), Recorder()
    await bus.subscribe(Subscription("slow", ("t",), slow, batch_max=100))
    await bus.subscribe(Subscription("late", ("t",), late, batch_max=100))
    await eventually(lambda: len(slow.seen) == 50 and len(late.seen) == 50)

    assert slow.seen == late.seen == [f"{n}" for n in range(100, 150)]
    await bus.close()


async def test_offsets_go_on_after_everything_was_trimmed(path: Path, eventually: Eventually) -> None:
    bus = SqliteBus(path, retention=Retention(age=timedelta(0)))
    handler = Recorder()
    await bus.subscribe(Subscription("g", ("t",), handler, batch_max=100))
    await bus.publish([message("t", f"{n}") for n in range(20)])
    await eventually(lambda: drained(bus, "g"))
    await bus.close()
    bus = SqliteBus(path, retention=Retention(age=timedelta(0)))
    await bus.publish([message("other", "x")])
    await bus.close()

    bus, handler = SqliteBus(path), Recorder()
    await bus.subscribe(Subscription("g", ("t",), handler))
    await bus.publish([message("t", "next")])
    await eventually(lambda: handler.seen)

    assert handler.seen == ["next"]
    assert handler.deliveries[0].offset == 20
    await bus.close()
    rows = sqlite3.connect(path).execute("SELECT count(*) FROM log").fetchone()
    assert rows[0] <= 3


async def test_an_idle_bus_uses_no_processor_time(path: Path) -> None:
    bus = SqliteBus(path)
    for number in range(20):
        await bus.subscribe(Subscription(f"g{number}", ("t",), Recorder()))
    await asyncio.sleep(0.1)

    before = resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.sleep(1.0)
    after = resource.getrusage(resource.RUSAGE_SELF)

    used = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    assert used < 0.05
    await bus.close()


async def test_a_full_disk_is_unavailable_and_nothing_is_half_written(path: Path, eventually: Eventually) -> None:
    bus = SqliteBus(path)
    await bus.publish([message("t", "1")])
    await bus._log.run(lambda c: c.execute(f"PRAGMA max_page_count={c.execute('PRAGMA page_count').fetchone()[0]}"))

    with pytest.raises(StoreUnavailable, match="disk"):
        await bus.publish([Message("t", "k", os.urandom(100_000)), Message("u", "k", os.urandom(100_000))])

    await bus._log.run(lambda c: c.execute("PRAGMA max_page_count=1000000"))
    await bus.publish([message("t", "2"), message("u", "3")])
    handler = Recorder()
    await bus.subscribe(Subscription("g", ("t", "u"), handler))
    await eventually(lambda: len(handler.seen) == 3)
    assert sorted(handler.seen) == ["1", "2", "3"]
    assert [one.offset for one in handler.deliveries if one.message.topic == "t"] == [0, 1]
    await bus.close()


async def test_a_cursor_of_a_partition_that_is_not_there_is_refused(path: Path) -> None:
    bus = SqliteBus(path)
    with pytest.raises(InvalidInput):
        await anext(bus.tail(["t"], after={"t": "1:0"}))
    await bus.close()
