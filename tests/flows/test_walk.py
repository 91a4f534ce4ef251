"""One model goes the whole way, through the public door only: publish, optimize, deploy, predict, audit."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from modelworks.audit.verify import verify_search_answer
from modelworks.client.connection import read_admin_file
from modelworks.client.demo.magika import find_magika, sample_files
from modelworks.client.demo.suite import SuiteProcess
from modelworks.client.demo.walk import Walk

from tests.flows.conftest import Running

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def walk_of(url: str, admin: Any, work: Path) -> Walk:
    work.mkdir()
    return Walk(url, admin, find_magika(), sample_files(ROOT, files_max=60), work)


async def send_over_kafka(environment: dict[str, str], actor: str, request: str, body: bytes) -> None:
    """As an upstream system with a Kafka client does: CloudEvents binary mode."""
    from aiokafka import AIOKafkaProducer

    producer = AIOKafkaProducer(bootstrap_servers=environment["STORES_KAFKA_BOOTSTRAP"], acks="all")
    await producer.start()
    headers = {
        "ce_specversion": "1.0", "ce_id": request, "ce_source": "/upstream/kafka", "ce_type": "ingest.prediction-requested.v1",
        "ce_actor": actor, "content-type": "application/json",
    }  # fmt: skip
    try:
        await producer.send_and_wait(
            "ingest.prediction-requested.v1",
            body,
            key=b"demo/magika",
            headers=[(k, v.encode()) for k, v in headers.items()],
        )
    finally:
        await producer.stop()


async def test_model_goes_the_whole_way(suite: Running, tmp_path: Path) -> None:
    walk = walk_of(suite.url, suite.admin, tmp_path / "work")

    await walk.log_in()
    await walk.publish()
    await walk.optimize(lambda stage: None)
    await walk.deploy()
    await walk.predict()
    if suite.column == "real":
        operator = walk.found["client operator"]
        await walk.answer_event(lambda request, body: send_over_kafka(suite.environment, operator, request, body))
    await walk.answer_event()
    await walk.refuse()
    await walk.audit(verify_search_answer)
    await walk.close()

    report = walk.found["job"]["report"]
    assert report["agreement"] >= 0.99 or walk.found["job"]["verdict"] == "keep"
    # Eight kinds of acts, each with at least one hit; how many more there are by then is a matter of milliseconds.
    assert walk.found["proofs"] >= 8
    assert_one_trace_from_the_door_to_the_result(suite.trace_file)


def assert_one_trace_from_the_door_to_the_result(trace_file: Path) -> None:
    """The event sent over HTTP, its way through the bus, the job and its result belong to one trace."""
    services: dict[str, set[str]] = defaultdict(set)
    names: dict[str, set[str]] = defaultdict(set)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for line in trace_file.read_text().splitlines():
            span = json.loads(line)
            services[span["trace_id"]].add(span["service"].removeprefix("modelworks."))
            names[span["trace_id"]].add(span["name"])
        whole = [
            trace
            for trace, seen in names.items()
            if "POST /api/v1/events" in seen and any("prediction-queued" in name for name in seen)
        ]
        if whole:
            break
        time.sleep(0.2)
    assert whole, sorted(map(sorted, names.values()))
    assert {"edge", "inference"} <= services[whole[0]]


async def test_killed_suite_finishes_the_work_when_it_is_started_again(tmp_path: Path) -> None:
    """INVARIANT: what was accepted is done, whatever happens to the process.

    Broken by work that lives in memory only, by an acknowledgement before the work, and by a lock that outlives its
    holder.
    """
    suite = SuiteProcess(tmp_path / "data")
    suite.start()
    port = int(suite.url.rpartition(":")[2])
    walk = walk_of(suite.url, read_admin_file(suite.data), tmp_path / "work")
    killed: list[str] = []

    def kill_once(stage: str) -> None:
        if not killed:
            killed.append(stage)
            suite.kill()
            suite.start(port=port)

    try:
        await walk.log_in()
        await walk.publish()
        await walk.optimize(kill_once)
        await walk.deploy()
        suite.kill()
        suite.start(port=port)
        await walk.predict()
        await walk.answer_event()
        await walk.refuse()
        await walk.audit(verify_search_answer)
        await walk.close()
    finally:
        suite.stop()

    assert killed


async def test_data_survives_a_restart(tmp_path: Path) -> None:
    suite = SuiteProcess(tmp_path / "data")
    suite.start()
    first = walk_of(suite.url, read_admin_file(suite.data), tmp_path / "work")
    await first.log_in()
    await first.publish()
    size = (await first.clients["auditor"].audit()).total
    await first.close()
    assert suite.stop() == 0

    suite.start()
    again = Walk(suite.url, read_admin_file(suite.data), first.magika, first.samples, tmp_path)
    try:
        await again.log_in()
        head = await again.clients["publisher"].revision(first.model)
        log_size = (await again.clients["auditor"].audit()).total
        await again.close()
    finally:
        suite.stop()

    assert head.revision == first.found["revision"]
    assert log_size >= size > 0
