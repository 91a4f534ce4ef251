"""Publish and consume through our bus, beside raw aiokafka on the same broker."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from modelworks.stores import Bus, Delivery, Message, Subscription
from modelworks.stores.bus.sqlite import SqliteBus
from modelworks.stores.settings import StoresSettings

from tests.bench.harness import Result, paired

MESSAGES = 20_000
BODY = b"x" * 1024
BATCH = 500
PARTITIONS = 3


async def _publish(bus: Bus, topic: str) -> float:
    messages = [Message(topic, f"k{n % 100}", BODY, {"ce_id": str(n)}) for n in range(MESSAGES)]
    started = time.perf_counter()
    for start in range(0, MESSAGES, BATCH):
        await bus.publish(messages[start : start + BATCH])
    return MESSAGES / (time.perf_counter() - started)


async def _consume(bus: Bus, topic: str, group: str) -> float:
    seen, first, done = 0, 0.0, asyncio.Event()

    async def handle(batch: Sequence[Delivery]) -> None:
        nonlocal seen, first
        first = first or time.perf_counter()
        seen += len(batch)
        if seen >= MESSAGES:
            done.set()

    consumer = await bus.subscribe(Subscription(group, (topic,), handle, batch_max=BATCH))
    await asyncio.wait_for(done.wait(), 120)
    seconds = time.perf_counter() - first
    await consumer.stop()
    # The first batch was there when the clock started.
    return (MESSAGES - BATCH) / seconds


async def _raw_publish(bootstrap: str, topic: str) -> float:
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, max_batch_size=1 << 20
    )
    await producer.start()
    try:
        started = time.perf_counter()
        for start in range(0, MESSAGES, BATCH):
            headers = [[("ce_id", str(n).encode())] for n in range(start, start + BATCH)]
            sent = [
                await producer.send(topic, BODY, key=f"k{(start + n) % 100}".encode(), headers=header)
                for n, header in enumerate(headers)
            ]
            await asyncio.gather(*sent)
        return MESSAGES / (time.perf_counter() - started)
    finally:
        await producer.stop()


async def _raw_consume(bootstrap: str, topic: str, group: str) -> float:
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        seen, first = 0, 0.0
        while seen < MESSAGES:
            batches = await consumer.getmany(timeout_ms=1000, max_records=BATCH)
            first = first or (time.perf_counter() if batches else 0.0)
            seen += sum(len(records) for records in batches.values())
            if batches:
                await consumer.commit()
        return (MESSAGES - BATCH) / (time.perf_counter() - first)
    finally:
        await consumer.stop()


async def on_kafka(bootstrap: str) -> list[Result]:
    """Batches on a real broker. Goal: at least 0.6 of raw aiokafka."""
    from modelworks.stores.bus.kafka import KafkaBus

    settings = StoresSettings(column="real", kafka_bootstrap=bootstrap, kafka_partitions=PARTITIONS)
    bus = KafkaBus(settings)
    name = uuid.uuid4().hex[:8]
    filled = f"bench-{name}.filled.v1"
    target = f"bench-{name}.target.v1"
    try:
        await _publish(bus, filled)
        await _publish(bus, target)
        published = await paired(
            "kafka: publish batches of 500 x 1 KiB", unit="messages/s", ours=lambda: _publish(bus, target),
            baseline_name="raw aiokafka", baseline=lambda: _raw_publish(bootstrap, target), goal="ratio >= 0.60",
        )  # fmt: skip
        consumed = await paired(
            "kafka: consume batches of 500 x 1 KiB", unit="messages/s",
            ours=lambda: _consume(bus, filled, f"ours-{uuid.uuid4().hex}"),
            baseline_name="raw aiokafka", baseline=lambda: _raw_consume(bootstrap, filled, f"raw-{uuid.uuid4().hex}"),
            goal="ratio >= 0.60",
        )  # fmt: skip
    finally:
        await bus.close()
    return [published, consumed]


async def on_sqlite(folder: Path) -> list[Result]:
    """The embedded bus, beside plain SQLite inserts in transactions of the same size."""
    import sqlite3

    bus = SqliteBus(folder / "bus.sqlite")
    counter = iter(range(1000))

    async def raw() -> float:
        def insert() -> float:
            connection = sqlite3.connect(folder / "raw.sqlite", isolation_level=None)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE IF NOT EXISTS log (topic TEXT, key TEXT, value BLOB)")
            started = time.perf_counter()
            for _ in range(0, MESSAGES, BATCH):
                connection.execute("BEGIN")
                connection.executemany("INSERT INTO log VALUES (?, ?, ?)", [("t", "k", BODY)] * BATCH)
                connection.execute("COMMIT")
            seconds = time.perf_counter() - started
            connection.close()
            return MESSAGES / seconds

        return await asyncio.to_thread(insert)

    try:
        return [
            await paired(
                "embedded: publish batches of 500 x 1 KiB", unit="messages/s",
                ours=lambda: _publish(bus, f"bench.target-{next(counter)}.v1"),
                baseline_name="raw sqlite3 inserts", baseline=raw, rounds=3,
            )
        ]  # fmt: skip
    finally:
        await bus.close()
