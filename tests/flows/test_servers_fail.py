"""Real servers that are down at the start, and ones that go away later: clear words, nothing lost, no restart needed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from modelworks.client import AsyncModelworks
from modelworks.client.connection import connect
from modelworks.client.demo.suite import SuiteProcess
from modelworks.kit.errors import Unavailable

from tests.stack.isolation import isolated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

DOWN = {
    "STORES_KAFKA_BOOTSTRAP": "127.0.0.1:9", "STORES_OPENSEARCH_URL": "http://127.0.0.1:9",
    "STORES_S3_ENDPOINT": "http://127.0.0.1:9", "STORES_S3_ACCESS_KEY": "nobody", "STORES_S3_SECRET_KEY": "nothing-at-all",
    "STORES_REDIS_URL": "redis://127.0.0.1:9/0", "STORES_TIMEOUT_MS": "2000",
}  # fmt: skip


def test_servers_that_are_down_at_the_start_are_named_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "modelworks.client", "up", "--stack", "real", "--port", "0", "--data", str(tmp_path / "d")],
        env={**os.environ, **DOWN}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert "127.0.0.1:9" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.fixture
async def real(stack: Any, tmp_path: Path) -> AsyncIterator[SuiteProcess]:
    suite = SuiteProcess(
        tmp_path / "data", column="real",
        environment={**isolated(stack.environment()), "STORES_TIMEOUT_MS": "3000", "STORES_KAFKA_PARTITIONS": "2"},
    )  # fmt: skip
    suite.start()
    yield suite
    suite.stop()


async def commit(client: AsyncModelworks, number: int, *, within: float = 60) -> str:
    """A commit that is tried until it is taken, as a patient client does; its id."""
    deadline = time.monotonic() + within
    while True:
        try:
            sha256 = await client.upload("test/outage", f"content {number}".encode())
            key = f"commit-{number}"
            done = await client.commit("test/outage", message=str(number), puts={"file": sha256}, idempotency_key=key)
            return done.revision
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def audited(client: AsyncModelworks) -> set[str]:
    """Commits that the audit knows."""
    page = await client.audit(limit=100, type="registry.revision-committed.v1", resource="test/outage")
    return {item["data"]["revision"] for item in page.items}


@pytest.mark.real
@pytest.mark.parametrize("name", ["kafka", "opensearch", "minio", "redis"])
async def test_server_that_goes_away_and_comes_back_costs_nothing(
    name: str, real: SuiteProcess, stack: Any, eventually: Callable[..., Any]
) -> None:
    """INVARIANT: what the suite answered for survives the loss of any one server, and needs no restart of the suite.

    Broken by a consumer that ends with its connection, by an event that is published only in memory, and by an answer
    given before the write.
    """
    server = stack.server(name)
    async with connect(url=None, token=None, data=real.data).client() as client, httpx.AsyncClient() as http:
        await client.create_repository("test/outage")
        taken = [await commit(client, 1)]

        server.kill()
        try:

            async def red() -> bool:
                return (await http.get(f"{real.url}/readyz", timeout=10)).status_code == 503

            if name != "redis":  # what is short-lived is asked for only when somebody logs in
                await eventually(red, within=30)
            meanwhile = asyncio.create_task(commit(client, 2, within=90))
            await asyncio.sleep(1)
        finally:
            server.restart()
        taken += [await meanwhile, await commit(client, 3)]

        async def green() -> bool:
            return (await http.get(f"{real.url}/readyz", timeout=10)).status_code == 200

        await eventually(green, within=60)

        async def all_audited() -> bool:
            return set(taken) <= await audited(client)

        await eventually(all_audited, within=60, every=0.5)
        log = {commit.revision for commit in await client.log("test/outage")}

    assert set(taken) <= log
    assert real.alive()
