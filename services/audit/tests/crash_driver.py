"""A process for test_crash.py: sequences on an embedded column, and dies by SIGKILL where it is told to.

append DATA KEY FIRST END KILL_AT      append events FIRST to END; die before store write KILL_AT (0: never)
serve DATA KEY                         run the whole service on the bus until killed
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from modelworks.audit.adapters.index_documents import DocumentIndex
from modelworks.audit.adapters.log_objects import ObjectLog
from modelworks.audit.app import build
from modelworks.audit.domain import candidate
from modelworks.audit.sequencer import Sequencer
from modelworks.audit.settings import AuditSettings
from modelworks.audit.tlog.note import Signer
from modelworks.events import ClientDeleted, Envelope
from modelworks.kit.platform import Platform
from modelworks.kit.policy import Policy
from modelworks.kit.telemetry import Telemetry
from modelworks.kit.tokens import TokenVerifier
from modelworks.stores.bus.port import Message
from modelworks.stores.outbox import message_of
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import open_stores

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def message(number: int) -> Message:
    event = ClientDeleted(client=f"client-{number % 7}")
    return message_of(
        Envelope(event=event, id=f"event-{number}", source="/services/auth", time=NOON + timedelta(seconds=number))
    )


class Deadly:
    """Counts the writes to a store, over all stores, and ends the process before a certain one."""

    count = 0
    kill_at = 0

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return self._counted(found) if name in ("put", "delete", "create_many", "save") else found

    def _counted(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*args: Any, **kwargs: Any) -> Any:
            Deadly.count += 1
            if Deadly.count == Deadly.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return await call(*args, **kwargs)

        return counted


async def append(data: Path, key: str, first: int, end: int, kill_at: int) -> None:
    stores = open_stores(StoresSettings(column="embedded", data=data), environment="development")
    Deadly.kill_at = kill_at
    log, index = ObjectLog(Deadly(stores.objects)), DocumentIndex(Deadly(stores.documents))

    async def announce(_: Any) -> None:
        """Nobody listens."""

    sequencer = Sequencer(log=log, index=index, signer=Signer(key), announce=announce, window=1000, bytes_max=2**23)
    await index.ensure()
    await sequencer.start()
    messages = [message(number) for number in range(first, end)]
    Deadly.count = 0
    await sequencer.append([candidate(m.headers, m.value, at="0:0", published_at=NOON) for m in messages])
    print(Deadly.count, flush=True)
    await stores.close()


async def serve(data: Path, key: str) -> None:
    stores = open_stores(StoresSettings(column="embedded", data=data), environment="development")

    async def no_keys() -> dict[str, Any]:
        return {"keys": []}

    platform = Platform(
        verifier=TokenVerifier(issuer="http://issuer.test", audience="api", fetch_keys=no_keys),
        policy=Policy(),
        telemetry=Telemetry(),
    )
    service = build(stores, AuditSettings(signing_key=key, batch_max=20, lease_ms=500), platform)
    async with service.run():
        print("running", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    mode, folder, signing_key, *numbers = sys.argv[1:]
    if mode == "append":
        asyncio.run(append(Path(folder), signing_key, *map(int, numbers)))
    else:
        asyncio.run(serve(Path(folder), signing_key))
