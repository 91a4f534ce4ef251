"""Reading Kafka without a group: following topics, and looking into dead-letter topics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from aiokafka import TopicPartition
from modelworks.kit.errors import NotFound
from modelworks.stores.bus.handling import positions
from modelworks.stores.bus.kafka_admin import Cluster
from modelworks.stores.bus.kafka_consumer import StoppableConsumer
from modelworks.stores.bus.kafka_records import delivery_of, letters_of
from modelworks.stores.bus.port import DEAD_LETTER_SUFFIX, DeadLetter, Delivery

_POLL_MS = 500
_SCAN_SLACK = 200
"""Records read beyond the wanted letters, because notes of replays stand between them."""


async def tail(
    cluster: Cluster, topics: Sequence[str], after: Mapping[str, str], *, closing: Callable[[], bool]
) -> AsyncIterator[Delivery]:
    """See `Bus.tail`."""
    await cluster.ensure(topics)
    partitions = await cluster.partitions(topics)
    starts = await cluster.ends(partitions)
    for topic in topics:
        if topic in after:
            known = [tp.partition for tp in partitions if tp.topic == topic]
            for partition, offset in positions(topic, after[topic], known).items():
                starts[TopicPartition(topic, partition)] = offset
    consumer = await _reader(cluster, starts)
    try:
        while not closing():
            for records in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
                for record in records:
                    yield delivery_of(record)
    finally:
        await consumer.stop()


async def letters(cluster: Cluster, *, topic: str | None, limit: int) -> list[DeadLetter]:
    """The newest dead letters, newest first."""
    topics = await cluster.topics(DEAD_LETTER_SUFFIX) if topic is None else [topic + DEAD_LETTER_SUFFIX]
    partitions = await cluster.partitions(topics)
    ends = await cluster.ends(partitions)
    beginnings = await cluster.beginnings(partitions)
    starts = {tp: max(beginnings[tp], ends[tp] - limit - _SCAN_SLACK) for tp in partitions if beginnings[tp] < ends[tp]}
    found, _ = letters_of(await _range(cluster, starts, ends))
    newest = sorted(found, key=lambda one: (one[0].failed_at, _place(one[0].id)), reverse=True)
    return [letter for letter, _ in newest[:limit]]


async def letter(cluster: Cluster, id: str) -> tuple[DeadLetter, Delivery]:
    """One dead letter, and the delivery that it was.

    Raises:
        NotFound: there is none.
    """
    missing = NotFound(f"dead letter {id!r} does not exist: list them with `modelworks events list`")
    topic, partition, offset = _place(id)
    if not topic.endswith(DEAD_LETTER_SUFFIX) or partition < 0 or offset < 0:
        raise missing
    tp = TopicPartition(topic, partition)
    if tp not in await cluster.partitions([topic]):
        raise missing
    ends = await cluster.ends([tp])
    beginnings = await cluster.beginnings([tp])
    if not beginnings[tp] <= offset < ends[tp]:
        raise missing
    found, _ = letters_of(await _range(cluster, {tp: offset}, {tp: offset + 1}))
    for one in found:
        if one[0].id == id:
            return one
    raise missing


async def _range(
    cluster: Cluster, starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> list[Any]:
    """All records from `starts` until `ends`."""
    if not starts:
        return []
    records: list[Any] = []
    async with cluster.mapped("read dead letters"):
        consumer = await _reader(cluster, starts)
        try:
            open_ = set(starts)
            while open_:
                for tp, some in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
                    records.extend(record for record in some if record.offset < ends[tp])
                for tp in list(open_):
                    if await consumer.position(tp) >= ends[tp]:
                        open_.discard(tp)
        finally:
            await consumer.stop()
    return records


async def _reader(cluster: Cluster, starts: Mapping[TopicPartition, int]) -> StoppableConsumer:
    async with cluster.mapped("start a reader"):
        consumer = StoppableConsumer(**cluster.common, enable_auto_commit=False, auto_offset_reset="earliest")
        consumer.assign(list(starts))
        await cluster.started(consumer)
        for tp, offset in starts.items():
            consumer.seek(tp, offset)
        return consumer


def _place(id: str) -> tuple[str, int, int]:
    topic, _, rest = id.partition(":")
    partition, _, offset = rest.partition(":")
    return topic, _number(partition), _number(offset)


def _number(text: str) -> int:
    """The number, or -1 when it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else -1
