"""`kill -9` at every step of the log's growth: the next process finishes what was begun, and nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from modelworks.audit.adapters.index_documents import DocumentIndex
from modelworks.audit.app import build
from modelworks.audit.settings import AuditSettings
from modelworks.audit.stream import GROUP
from modelworks.audit.tlog.note import Signer, generate_key
from modelworks.audit.verify import LogReport, verify_log
from modelworks.events import ClientDeleted, Envelope
from modelworks.kit.platform import Platform
from modelworks.stores.outbox import message_of
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import Stores, open_stores

DRIVER = Path(__file__).with_name("crash_driver.py")
KEY = generate_key("test/audit")


def drive(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DRIVER), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def column(data: Path) -> Stores:
    return open_stores(StoresSettings(column="embedded", data=data), environment="development")


async def whole(stores: Stores) -> tuple[LogReport, list[str]]:
    """The log verified together with its documents, and the ids of its events in order."""
    index, documents, cursor = DocumentIndex(stores.documents), [], None
    await index.ensure()
    while True:
        page, cursor = await index.page(cursor=cursor, limit=1000)
        documents += [each.body for each in page]
        if cursor is None:
            break
    report = await verify_log(
        lambda path: stores.objects.read(f"audit/{path}"), Signer(KEY).verifier.vkey, documents=documents
    )
    return report, [each["event"]["id"] for each in documents]


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_kill_before_every_single_write_loses_and_doubles_nothing(tmp_path: Path):
    """INVARIANT: the stored log verifies after a kill at any write, and the batch that was cut off is in it once, later."""
    base = tmp_path / "base"
    assert drive("append", base, KEY, 0, 250, 0).returncode == 0
    shutil.copytree(base, tmp_path / "counted")
    writes = int(drive("append", tmp_path / "counted", KEY, 250, 262, 0).stdout)
    assert writes >= 9  # plan, two bundles, three tiles, documents, checkpoint, the plan goes

    sizes = set()
    for kill_at in range(1, writes + 1):
        data = tmp_path / f"killed-{kill_at}"
        shutil.copytree(base, data)

        killed = drive("append", data, KEY, 250, 262, kill_at)
        stores = column(data)
        cut_off = await verify_log(
            lambda path, stores=stores: stores.objects.read(f"audit/{path}"), Signer(KEY).verifier.vkey
        )
        await stores.close()
        # The bus delivers the batch again, and others with it: the restart must not depend on equal batches.
        again = drive("append", data, KEY, 255, 270, 0)
        last = drive("append", data, KEY, 250, 270, 0)

        assert killed.returncode == -signal.SIGKILL
        assert (again.returncode, last.returncode) == (0, 0), again.stderr + last.stderr
        stores = column(data)
        report, ids = await whole(stores)
        left = [info.key async for info in stores.objects.list("audit/plan/")]
        await stores.close()
        assert report.size == 270
        assert sorted(ids) == sorted(f"event-{n}" for n in range(270)), kill_at
        assert left == []
        shutil.rmtree(data)
        sizes.add(cut_off.size)
    assert sizes == {250, 262}


@pytest.mark.slow
async def test_killed_service_reads_the_bus_to_its_end_with_every_event_once(
    tmp_path: Path, platform: Platform, eventually: Callable[..., Any]
):
    data, wanted, dice = tmp_path / "data", 400, random.Random(11)
    stores = column(data)
    await stores.bus.publish(
        [
            message_of(
                Envelope(event=ClientDeleted(client=f"c{n % 5}"), id=f"event-{n}", source="/services/auth",
                         time=datetime(2026, 1, 31, tzinfo=UTC))
            )
            for n in range(wanted)
        ]
    )  # fmt: skip
    await stores.close()

    kills = 0
    for _ in range(8):
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(DRIVER), "serve", str(data), KEY, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"running\n"
        # Not a wait for anything: the moment of death is what is varied.
        await asyncio.sleep(dice.uniform(0.02, 0.25))
        process.kill()
        await process.wait()
        kills += 1
    stores = column(data)
    service = build(stores, AuditSettings(signing_key=KEY), platform)

    async def drained() -> bool:
        lags = await stores.bus.lag(GROUP)
        return bool(lags) and sum(each.messages for each in lags) == 0

    async with service.run():
        await eventually(drained, within=30)

    report, ids = await whole(stores)
    await stores.close()
    assert kills == 8
    assert report.size == wanted
    assert sorted(ids) == sorted(f"event-{n}" for n in range(wanted))
