"""How consumers are made here: aiokafka's, whose `getmany` waits for records instead of returning none."""

from __future__ import annotations

from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import KafkaError
from modelworks.stores.bus.port import Subscription

FETCH_RECORDS_MAX = 500
"""Records of one `getmany`. Five times as many were three times slower: so many objects alive at once keep Python's
garbage collector busy."""
FAULTS_MAX = 3
"""Errors in a row after which a consumer is made anew."""
_POLL_MS = 1000
_FETCH_BYTES_MAX = 16 * 1024 * 1024


class WaitingConsumer(AIOKafkaConsumer):  # type: ignore[misc]
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
