"""The auditor's command against a running suite, and against a log that was rolled back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from modelworks.client.auditing import AuditDamaged, verify_log
from modelworks.client.connection import connect
from modelworks.client.demo.suite import SuiteProcess
from modelworks.kit.errors import InvalidInput

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


async def work(suite: SuiteProcess, name: str) -> None:
    async with connect(url=None, token=None, data=suite.data).client() as client:
        await client.create_repository(name)


async def check(suite: SuiteProcess, state: Path, *, size_min: int) -> int:
    async with connect(url=None, token=None, data=suite.data).client() as client:
        size = 0
        for _ in range(100):
            size = int((await verify_log(client, state=state))["size"])
            if size >= size_min:
                break
    return size


async def test_log_that_grows_is_verified_again_as_a_continuation(embedded: SuiteProcess, tmp_path: Path) -> None:
    state = tmp_path / "state.json"

    first = await check(embedded, state, size_min=1)
    await work(embedded, "a/b")
    second = await check(embedded, state, size_min=first + 1)

    assert second > first
    assert json.loads(state.read_text())["size"] == second


async def test_log_that_was_rolled_back_is_noticed(tmp_path: Path) -> None:
    """INVARIANT: whoever saw the log once notices when it is rewritten.

    Broken by a verifier that forgets its last head.
    """
    state = tmp_path / "state.json"
    suite = SuiteProcess(tmp_path / "data")
    suite.start()
    try:
        await check(suite, state, size_min=1)
        suite.stop()
        shutil.copytree(suite.data, tmp_path / "backup")
        suite.start()
        await work(suite, "a/b")
        await check(suite, state, size_min=json.loads(state.read_text())["size"] + 1)
        suite.stop()
        shutil.rmtree(suite.data)
        shutil.copytree(tmp_path / "backup", suite.data)
        suite.start()
        await work(suite, "another/one")

        with pytest.raises(AuditDamaged):
            await check(suite, state, size_min=10**6)
    finally:
        suite.stop()


async def test_other_key_is_refused(embedded: SuiteProcess, tmp_path: Path) -> None:
    async with connect(url=None, token=None, data=embedded.data).client() as client:
        with pytest.raises(InvalidInput, match="another log, or a forgery"):
            await verify_log(client, key="modelworks-audit+00000000+AAAA", state=tmp_path / "s.json")
