"""An embedded column with the audit on it, and messages to feed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from modelworks.audit.adapters.index_documents import DocumentIndex
from modelworks.audit.adapters.log_objects import ObjectLog
from modelworks.audit.domain import Candidate, candidate
from modelworks.audit.handlers import Auditing
from modelworks.audit.proving import Prover
from modelworks.audit.sequencer import Sequencer
from modelworks.audit.sweep import IndexAudit
from modelworks.audit.tlog.note import SignedCheckpoint, Signer, generate_key
from modelworks.events import AccessDenied, ClientDeleted, Envelope, Event
from modelworks.stores.bus.port import Message
from modelworks.stores.outbox import message_of
from modelworks.stores.stores import Stores

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@dataclass
class Bench:
    """The audit's parts over one column."""

    stores: Stores
    signer: Signer
    log: ObjectLog
    index: DocumentIndex
    prover: Prover
    auditing: Auditing
    audit: IndexAudit
    announced: list[SignedCheckpoint]

    def sequencer(self, *, window: int = 1000, bytes_max: int = 8 * 1024**2) -> Sequencer:
        async def announce(checkpoint: SignedCheckpoint) -> None:
            self.announced.append(checkpoint)

        return Sequencer(
            log=self.log, index=self.index, signer=self.signer, announce=announce, window=window, bytes_max=bytes_max
        )

    async def fetch(self, path: str) -> bytes:
        return await self.stores.objects.read(f"audit/{path}")


@pytest.fixture
async def bench(stores: Stores) -> Bench:
    signer = Signer(generate_key("test/audit"))
    log, index = ObjectLog(stores.objects), DocumentIndex(stores.documents)
    await index.ensure()
    prover = Prover(log, signer.verifier, tiles_max=64)
    auditing = Auditing(log=log, index=index, prover=prover)
    return Bench(stores, signer, log, index, prover, auditing, IndexAudit(log=log, index=index, prover=prover), [])


def _message(
    number: int = 0, event: Event | None = None, actor: str = "alice", source: str = "/services/auth"
) -> Message:
    return message_of(
        Envelope(
            event=event or ClientDeleted(client=f"client-{number}"),
            id=f"event-{number}",
            source=source,
            time=NOON + timedelta(seconds=number),
            actor=actor,
        )
    )


@pytest.fixture
def message() -> Callable[..., Message]:
    """`message(number, event, actor)`: an audited event as it comes from the bus."""
    return _message


@pytest.fixture
def candidates() -> Callable[..., list[Candidate]]:
    """`candidates(first, end)`: small events; `candidates(events=[...])`: those."""

    def make(first: int = 0, end: int = 0, *, events: Sequence[Event] = (), **more: Any) -> list[Candidate]:
        messages = [_message(n) for n in range(first, end)] or [_message(n, e, **more) for n, e in enumerate(events)]
        return [
            candidate(each.headers, each.value, at=f"0:{n}", published_at=NOON)
            for n, each in enumerate(messages, first)
        ]

    return make


@pytest.fixture
def denial() -> AccessDenied:
    return AccessDenied(
        principal="mallory", service="registry", action="repository:write", resource="Repository:acme/filetype",
        reason="policy-denied", detail="mallory (roles: consumer) may not repository:write on Repository:acme/filetype",
    )  # fmt: skip
