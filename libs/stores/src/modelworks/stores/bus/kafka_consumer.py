"""How consumers are made here: aiokafka's, ended in bounded time, and for groups with a `getmany` that waits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import KafkaError
from modelworks.kit.logging import get_logger
from modelworks.stores.bus.port import Subscription

FETCH_RECORDS_MAX = 500
"""Records of one `getmany`. Five times as many were three times slower: so many objects alive at once keep Python's
garbage collector busy."""
FAULTS_MAX = 3
"""Errors in a row after which a consumer is made anew."""
STOP_SECONDS = 5.0
_LET_GO_SECONDS = 1.0
_POLL_MS = 1000
_FETCH_BYTES_MAX = 16 * 1024 * 1024

log = get_logger("bus")


class StoppableConsumer(AIOKafkaConsumer):  # type: ignore[misc]
    """Stops in bounded time and without an error, whatever the broker does.

    While no broker answers, aiokafka's `stop` waits long, or ends in a CancelledError of its own tasks, which would
    look as if the caller were cancelled, and leaves its connections open.
    """

    async def stop(self) -> None:
        """Leave the group, if that works soon, and let go of everything."""
        if not await ended(super().stop(), STOP_SECONDS):
            log.warning("bus.consumer-cut-off", group=self._group_id)
            if self._fetcher:
                await ended(self._fetcher.close(), _LET_GO_SECONDS)
            await ended(self._client.close(), _LET_GO_SECONDS)


async def ended(work: Coroutine[Any, Any, Any], seconds: float) -> bool:
    """Run the work in a task of its own for at most so long; whether it came to a good end."""
    task = asyncio.create_task(work)
    await asyncio.wait([task], timeout=seconds)
    if not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_LET_GO_SECONDS)
    return task.done() and not task.cancelled() and task.exception() is None


class WaitingConsumer(StoppableConsumer):
    """Returns from `getmany` only with records.

    FastStream sleeps after an empty answer, as long as it waited for it: that would delay the next message.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fault: str | None = None
        """The last error, until records come again."""
        self.faults = 0

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[Any]]:
        """Records; waits for them whatever `timeout_ms` says.

        Raises:
            KafkaError: as AIOKafkaConsumer.
        """
        while True:
            try:
                records: dict[TopicPartition, list[Any]] = await super().getmany(
                    *partitions, timeout_ms=_POLL_MS, max_records=max_records
                )
            except KafkaError as error:
                self.fault = str(error) or type(error).__name__
                self.faults += 1
                raise
            self.fault = None
            self.faults = 0
            if records:
                return records


def group_options(subscription: Subscription, session_ms: int) -> dict[str, Any]:
    """Options of a member of a group."""
    # A handler may wait in place for something unavailable; the member must not be thought dead meanwhile.
    patience_ms = round(subscription.retry.unavailable_max.total_seconds() * 1000)
    return {
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        # Sticky: after a rebalance most long work goes on where it is.
        "partition_assignment_strategy": (StickyPartitionAssignor,),
        "session_timeout_ms": session_ms,
        "heartbeat_interval_ms": max(100, session_ms // 4),
        "max_poll_interval_ms": 2 * patience_ms + 600_000,
        "rebalance_timeout_ms": 60_000,
        "fetch_max_bytes": _FETCH_BYTES_MAX,
        # See `_WAITING_LOW` of the pump.
        "fetch_max_wait_ms": 100 if subscription.work == "long" else 500,
    }
