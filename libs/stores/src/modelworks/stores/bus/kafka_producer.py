"""Publishing to Kafka: one idempotent producer, and batches made by hand where there are many messages.

A message alone goes through the producer's own accumulator, where it shares a
request with whatever other callers send at the moment. Many messages at once
are packed into record batches here, which costs a third of one call for each.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError, UnknownTopicOrPartitionError
from aiokafka.partitioner import murmur2
from modelworks.kit.errors import InvalidInput
from modelworks.kit.logging import get_logger
from modelworks.stores.bus.kafka_admin import RECORD_BYTES_MAX, Cluster, now_ms
from modelworks.stores.bus.kafka_consumer import STOP_SECONDS, ended
from modelworks.stores.bus.kafka_records import encoded
from modelworks.stores.bus.port import Message

_BATCH_BYTES = 512 * 1024
"""A record batch; a larger record goes alone."""
_FEW = 4
"""Up to so many messages go one by one."""

log = get_logger("bus")


class Producer:
    """The process's one producer. Connects on first use; made anew after a failure that it cannot get over."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    async def publish(self, messages: Sequence[Message]) -> None:
        """Append records; durable on return.

        Raises:
            TooLarge: a topic allows less than a record has; others may have been written.
            StoreUnavailable: some may have been written.
        """
        await self._cluster.ensure({message.topic for message in messages})
        async with self._cluster.mapped("take messages"):
            producer = await self._started()
            try:
                if len(messages) <= _FEW:
                    await self._send_few(producer, messages)
                else:
                    await self._send_many(producer, messages)
            except UnknownTopicOrPartitionError:
                # Somebody deleted it: the next publish makes it again.
                self._cluster.forget({message.topic for message in messages})
                raise
            except (KafkaConnectionError, KafkaTimeoutError):
                raise
            except KafkaError:
                # An idempotent producer numbers its batches: after one that failed for good, the broker refuses the rest.
                self._retire(producer)
                raise

    async def close(self) -> None:
        """Send what is under way, and let go."""
        if self._producer is not None:
            self._retire(self._producer)
        if self._retiring:
            await asyncio.wait(self._retiring)

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                self._producer = await self._cluster.started(
                    AIOKafkaProducer(
                        **self._cluster.common,
                        acks="all",
                        enable_idempotence=True,
                        linger_ms=0,
                        max_batch_size=_BATCH_BYTES,
                        max_request_size=RECORD_BYTES_MAX,
                    )
                )
            return self._producer

    async def _send_few(self, producer: AIOKafkaProducer, messages: Sequence[Message]) -> None:
        timestamp = now_ms()
        futures = []
        for message in messages:
            key = message.key.encode()
            future = await producer.send(
                message.topic,
                message.value,
                key,
                partition=_partition(key, len(await producer.partitions_for(message.topic))),
                timestamp_ms=timestamp,
                headers=encoded(message.headers),
            )
            futures.append(future)
        await _all(futures)

    async def _send_many(self, producer: AIOKafkaProducer, messages: Sequence[Message]) -> None:
        batches: dict[tuple[str, int], list[Any]] = defaultdict(list)
        timestamp = now_ms()
        counts = {topic: len(await producer.partitions_for(topic)) for topic in {message.topic for message in messages}}
        # Encoded one by one, right into its batch: thousands of small objects alive at once would keep Python's garbage
        # collector busy, which cost three times the encoding.
        for message in messages:
            key = message.key.encode()
            built = batches[message.topic, _partition(key, counts[message.topic])]
            headers = encoded(message.headers)
            if built and built[-1].append(timestamp=timestamp, key=key, value=message.value, headers=headers):
                continue
            built.append(producer.create_batch())
            if not built[-1].append(timestamp=timestamp, key=key, value=message.value, headers=headers):
                raise InvalidInput(f"a message to {message.topic!r} fits no batch")
        await _all([asyncio.ensure_future(_send(producer, *where, built)) for where, built in batches.items()])

    def _retire(self, producer: AIOKafkaProducer) -> None:
        if producer is self._producer:
            self._producer = None
            task = asyncio.create_task(self._stop(producer), name="bus producer stop")
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _stop(self, producer: AIOKafkaProducer) -> None:
        if not await ended(producer.stop(), STOP_SECONDS):
            # An idempotent producer never gives up by itself; whoever published was told so by a timeout.
            log.warning("bus.producer-cut-off")
            producer._message_accumulator.fail_all(KafkaConnectionError("the producer was stopped"))
            await ended(producer._sender.close(), STOP_SECONDS)
            await ended(producer.client.close(), STOP_SECONDS)


async def _send(producer: AIOKafkaProducer, topic: str, partition: int, batches: Sequence[Any]) -> None:
    """Send the batches of one partition, in order."""
    futures = []
    for batch in batches:
        # Closed: nobody else's messages may be added, their senders would wait for this batch's fate.
        batch.close()
        futures.append(await producer.send_batch(batch, topic, partition=partition))
    await _all(futures)


async def _all(futures: Sequence[asyncio.Future[Any]]) -> None:
    """Wait for all, then raise the first error."""
    try:
        await asyncio.wait(futures)
    except asyncio.CancelledError:
        for future in futures:
            future.cancel()
        raise
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        raise error


@lru_cache(maxsize=65_536)
def _hash(key: bytes) -> int:
    # As Java's default partitioner, so that other producers put a key where we do.
    return int(murmur2(key)) & 0x7FFFFFFF


def _partition(key: bytes, count: int) -> int:
    return _hash(key) % count
