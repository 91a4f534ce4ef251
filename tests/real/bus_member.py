"""A member of a group in a process of its own, for tests that kill it: `python -m tests.real.bus_member ORDER`.

ORDER is JSON: `group`, `topic`, `work`, `folder` (where the effects are kept) and `pause_ms` (how long one message
takes). Each message has an effect, a document named after it, that is made only if nobody made it before. Prints a
line for each delivery: `effect NAME`, or `known NAME` when its effect was there.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from modelworks.kit.errors import VersionConflict
from modelworks.stores import Delivery, Schema, Subscription
from modelworks.stores.bus.kafka import KafkaBus
from modelworks.stores.documents.sqlite import SqliteDocuments
from modelworks.stores.settings import StoresSettings

EFFECTS = "effects"


async def main(order: dict[str, Any]) -> None:
    documents = SqliteDocuments(Path(order["folder"]) / "effects.sqlite")
    await documents.ensure(Schema(EFFECTS, ()))
    bus = KafkaBus(StoresSettings(), session=timedelta(seconds=2))

    async def handle(batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            name = delivery.message.value.decode()
            await asyncio.sleep(order["pause_ms"] / 1000)
            try:
                await documents.save(EFFECTS, name, {}, expected=None)
            except VersionConflict:
                print("known", name, flush=True)
            else:
                print("effect", name, flush=True)

    subscription = Subscription(
        order["group"], (order["topic"],), handle, work=order["work"], batch_max=5, in_flight_max=8
    )
    await bus.subscribe(subscription)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
