"""Questions to the Kafka cluster and the making of topics: one admin client, and one idle consumer for offsets.

A consumer that waits for records answers questions about offsets only after its
wait (0.5 s), so one that never fetches is kept for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    CommitFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    MessageSizeTooLargeError,
    NotCoordinatorForGroupError,
    RecordListTooLargeError,
)
from aiokafka.protocol.metadata import MetadataRequest
from modelworks.kit.errors import InvalidInput, StoreUnavailable, TooLarge
from modelworks.stores.bus.handling import MESSAGE_BYTES_MAX
from modelworks.stores.bus.kafka_consumer import STOP_SECONDS, StoppableConsumer, ended
from modelworks.stores.bus.port import DEAD_LETTER_SUFFIX, Lag
from modelworks.stores.bus.watermark import Watermark
from modelworks.stores.settings import StoresSettings

RECORD_BYTES_MAX = 2 * MESSAGE_BYTES_MAX
"""`max.message.bytes` of topics that are made here: a largest message, and what a retry adds to it."""
_DAY_MS = 24 * 60 * 60 * 1000
_VISIBLE_EVERY_SECONDS = 0.05
_PEEK_SECONDS = 1.0
_TOPIC_EXISTS = 36
_TOPIC_UNKNOWN = 3
_COORDINATOR_COMES = (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError)
_REFUSED = {17: "is no topic name", 37: "has a bad partition count", 38: "has a bad replication factor"}

Offsets = Mapping[TopicPartition, tuple[int, str]]
"""Committed offset and the metadata beside it."""


@dataclass(frozen=True, slots=True)
class TopicKind:
    """How a topic is made."""

    partitions: int
    configs: Mapping[str, str]


class Cluster:
    """The cluster as this process sees it. Connects on first use, and again after a failure."""

    def __init__(self, settings: StoresSettings) -> None:
        self.settings = settings
        self.timeout_seconds = settings.timeout_ms / 1000
        self._admin: AIOKafkaAdminClient | None = None
        self._idle: StoppableConsumer | None = None
        self._peek: StoppableConsumer | None = None
        self._peeking = asyncio.Lock()
        self._connecting = asyncio.Lock()
        self._making = asyncio.Lock()
        self._known: set[str] = set()
        self._closed = False

    # Connections.

    @property
    def common(self) -> dict[str, Any]:
        """What every client is given."""
        return {
            "bootstrap_servers": self.settings.kafka_bootstrap,
            "client_id": "modelworks",
            "request_timeout_ms": self.settings.timeout_ms,
            "metadata_max_age_ms": 60_000,
        }

    @asynccontextmanager
    async def mapped(self, doing: str, *, seconds: float | None = None) -> AsyncIterator[None]:
        """Bound what runs inside and turn its errors into ours."""
        if self._closed:
            raise StoreUnavailable("the bus is closed")
        try:
            async with asyncio.timeout(self.timeout_seconds if seconds is None else seconds):
                yield
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            raise TooLarge(
                f"Kafka refused a message as too large: raise max.message.bytes of its topic ({error})"
            ) from error
        except (KafkaError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise StoreUnavailable(
                f"Kafka at {self.settings.kafka_bootstrap} could not {doing}: {reason}. "
                "Is it running, and is STORES_KAFKA_BOOTSTRAP right?"
            ) from error

    async def started(self, client: Any) -> Any:
        """The client, connected; closed when that fails."""
        try:
            await client.start()
        except BaseException:
            await ended(client.close() if isinstance(client, AIOKafkaAdminClient) else client.stop(), STOP_SECONDS)
            raise
        return client

    async def admin(self) -> AIOKafkaAdminClient:
        """The admin client."""
        async with self._connecting:
            if self._admin is None:
                self._admin = await self.started(AIOKafkaAdminClient(**self.common))
            return self._admin

    async def idle(self) -> StoppableConsumer:
        """A consumer that reads nothing."""
        async with self._connecting:
            if self._idle is None:
                self._idle = await self.started(StoppableConsumer(**self.common))
            return self._idle

    async def check(self) -> None:
        """A metadata request.

        Raises:
            StoreUnavailable: no broker answers.
        """
        async with self.mapped("answer"):
            answer = await self._metadata([])
            # A refused client is not told so: it sees a cluster without brokers.
            if not answer["brokers"]:
                raise KafkaError("its metadata names no broker")

    async def close(self) -> None:
        """Let go."""
        self._closed = True
        if self._admin is not None:
            await ended(self._admin.close(), STOP_SECONDS)
        for consumer in (self._idle, self._peek):
            if consumer is not None:
                await consumer.stop()

    async def _metadata(self, topics: Collection[str] | None) -> dict[str, Any]:
        """Brokers, and these topics; None: all topics."""
        # The admin client's own methods ask for all topics, or let the broker make the missing ones with its defaults.
        request = MetadataRequest(None if topics is None else sorted(topics), allow_auto_topic_creation=False)
        answer = await (await self.admin())._send_request(request)
        found: dict[str, Any] = answer.to_object()
        return found

    # Topics.

    async def ensure(self, topics: Iterable[str]) -> None:
        """Make topics that are missing, and wait until they can be used.

        Raises:
            StoreUnavailable: the cluster does not answer.
        """
        if self._known.issuperset(topics := set(topics)):
            return
        async with self._making, self.mapped("make topics"):
            described = (await self._metadata(topics - self._known))["topics"]
            missing = {topic["topic"] for topic in described if topic["error_code"] == _TOPIC_UNKNOWN}
            if missing:
                await self._make(await self.admin(), missing)
            self._known |= topics

    async def exist(self, topics: Collection[str]) -> bool:
        """Whether any of the topics exists."""
        async with self.mapped("list topics"):
            return any(topic["error_code"] != _TOPIC_UNKNOWN for topic in (await self._metadata(topics))["topics"])

    def forget(self, topics: Iterable[str]) -> None:
        """These topics may not exist any more."""
        self._known.difference_update(topics)

    async def _make(self, admin: AIOKafkaAdminClient, names: Collection[str]) -> None:
        new = []
        for name in names:
            kind = self._kind(name)
            new.append(
                NewTopic(name, kind.partitions, self.settings.kafka_replication, topic_configs=dict(kind.configs))
            )
        answer = await admin.create_topics(new, timeout_ms=self.settings.timeout_ms)
        for name, code, *text in answer.topic_errors:
            if code in _REFUSED:
                raise InvalidInput(f"Kafka did not make topic {name!r}: it {_REFUSED[code]} ({text})")
            if code not in (0, _TOPIC_EXISTS):
                raise KafkaError(f"topic {name!r} was not made: error {code} {text}")
        # A consumer that joins before its topic is visible would be assigned nothing until the next metadata refresh.
        unseen = set(names)
        while unseen:
            for topic in (await self._metadata(unseen))["topics"]:
                leaders = [partition["leader"] for partition in topic["partitions"]]
                if topic["error_code"] == 0 and leaders and min(leaders) >= 0:
                    unseen.discard(topic["topic"])
            if unseen:
                await asyncio.sleep(_VISIBLE_EVERY_SECONDS)

    def _kind(self, name: str) -> TopicKind:
        large = {"max.message.bytes": str(RECORD_BYTES_MAX)}
        if name.endswith(DEAD_LETTER_SUFFIX):
            return TopicKind(1, {**large, "retention.ms": str(90 * _DAY_MS)})
        if ".retry." in name:
            # One partition, so that the order of offsets is the order in which retries are due.
            return TopicKind(1, {**large, "retention.ms": str(30 * _DAY_MS)})
        return TopicKind(self.settings.kafka_partitions, large)

    async def topics(self, suffix: str) -> list[str]:
        """Names of existing topics that end so."""
        async with self.mapped("list topics"):
            found = (await self._metadata(None))["topics"]
            return sorted(topic["topic"] for topic in found if topic["topic"].endswith(suffix))

    async def partitions(self, topics: Sequence[str]) -> list[TopicPartition]:
        """All partitions of topics; of those that do not exist there are none."""
        async with self.mapped("list partitions"):
            described = await self._metadata(topics) if topics else {"topics": []}
            return [
                TopicPartition(topic["topic"], partition["partition"])
                for topic in described["topics"]
                if topic["error_code"] == 0
                for partition in topic["partitions"]
            ]

    # Offsets.

    async def committed(self, group: str) -> dict[TopicPartition, tuple[int, str]]:
        """What the group has committed."""
        async with self.mapped(f"tell the offsets of group {group!r}"):
            found = await self._group_offsets(group)
            return {tp: (one.offset, one.metadata) for tp, one in found.items() if one.offset >= 0}

    async def _group_offsets(self, group: str) -> Mapping[TopicPartition, Any]:
        """The answer of the group's coordinator, which a young or just restarted broker is still electing."""
        deadline = time.monotonic() + self.timeout_seconds
        while True:
            try:
                return await (await self.admin()).list_consumer_group_offsets(group)  # type: ignore[no-any-return]
            except _COORDINATOR_COMES:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)

    async def beginnings(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The oldest offset of each partition."""
        async with self.mapped("tell offsets"):
            return dict(await (await self.idle()).beginning_offsets(list(partitions))) if partitions else {}

    async def ends(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The next offset of each partition."""
        async with self.mapped("tell offsets"):
            return dict(await (await self.idle()).end_offsets(list(partitions))) if partitions else {}

    async def introduce(self, group: str, topics: Sequence[str]) -> None:
        """Commit the beginnings of topics that are new to the group, so that its lag is known from now on.

        Does nothing while the group has members: they do the same when they are given a partition.
        """
        known = {tp.topic for tp in await self.committed(group)}
        new = await self.partitions([topic for topic in topics if topic not in known])
        if not new:
            return
        beginnings = await self.beginnings(new)
        async with self.mapped("take offsets"):
            consumer = StoppableConsumer(**self.common, group_id=group, enable_auto_commit=False)
            consumer.assign(new)
            await self.started(consumer)
            try:
                await consumer.commit(beginnings)
            except CommitFailedError:
                pass
            finally:
                await consumer.stop()

    async def lag(self, group: str, retries: str) -> list[Lag]:
        """How far a group is behind.

        Kafka does not tell from which topic a waiting retry came. A group with one topic gets them counted there; with
        several, they stand in an entry of their own, named as the group that reads them.
        """
        behind, starts = await self._behind(group)
        waiting = sum((await self._behind(retries))[0].values())
        oldest = await self._oldest(starts)
        if len(behind) == 1:
            [topic] = behind
            behind[topic] += waiting
        elif behind and waiting:
            behind[retries] = waiting
        return [Lag(topic, messages, oldest.get(topic)) for topic, messages in sorted(behind.items())]

    async def _behind(self, group: str) -> tuple[dict[str, int], dict[TopicPartition, int]]:
        """Messages not finished by topic, and the first of them in each partition that has any."""
        committed = await self.committed(group)
        partitions = await self.partitions(sorted({tp.topic for tp in committed}))
        ends, beginnings = await asyncio.gather(self.ends(partitions), self.beginnings(partitions))
        behind: dict[str, int] = {}
        starts: dict[TopicPartition, int] = {}
        for tp in partitions:
            position, metadata = committed.get(tp, (beginnings[tp], ""))
            position = max(position, beginnings[tp])
            finished = Watermark(position, metadata).finished_ahead if metadata else 0
            left = max(0, ends[tp] - position - finished)
            behind[tp.topic] = behind.get(tp.topic, 0) + left
            if left:
                starts[tp] = position
        return behind, starts

    async def _oldest(self, starts: Mapping[TopicPartition, int]) -> dict[str, datetime]:
        """When the first of these messages was published, by topic; the answer of a slow partition is not awaited."""
        if not starts:
            return {}
        async with self._peeking, self.mapped("tell the age of messages"):
            if self._peek is None:
                # One batch a partition is the least that Kafka gives.
                few = {"max_partition_fetch_bytes": 1, "fetch_max_wait_ms": 50, "enable_auto_commit": False}
                self._peek = await self.started(StoppableConsumer(**self.common, **few))
            self._peek.assign(list(starts))
            for tp, offset in starts.items():
                self._peek.seek(tp, offset)
            first: dict[str, int] = {}
            missing, deadline = set(starts), time.monotonic() + _PEEK_SECONDS
            while missing and time.monotonic() < deadline:
                for tp, records in (await self._peek.getmany(*missing, timeout_ms=100)).items():
                    first[tp.topic] = min(first.get(tp.topic, records[0].timestamp), records[0].timestamp)
                    missing.discard(tp)
            return {topic: datetime.fromtimestamp(at / 1000, UTC) for topic, at in first.items()}


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
