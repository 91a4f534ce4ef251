"""What the outbox keeps on any column: no event lost, none doubled for a consumer that drops known ids.

The crash is a real one: another process saves, and is killed with SIGKILL
before it publishes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import pytest
from modelworks.events import JobAccepted, JobCancelled, JobFailed
from modelworks.events.values import Failure
from modelworks.kit.errors import StoreUnavailable, VersionConflict
from modelworks.stores import Bus, Delivery, Documents, Field, FieldType, Message, Schema, Subscription
from modelworks.stores.outbox import Outbox, envelope_of

Eventually = Callable[..., Awaitable[Any]]
REPOSITORY = "acme/bert"
REVISION = "0" * 40
AT_ONCE = timedelta(seconds=-1)
"""As `older_than`: sweep also what was saved right now."""


@dataclass
class Column:
    """A document store and a bus on the same data, opened anew."""

    documents: Documents
    bus: Bus


class OpenColumn(Protocol):
    """Opens the column; nothing is opened before its first use, so that another process may hold it until then."""

    def __call__(self) -> Column: ...


class DownBus:
    """The bus of a column, unreachable for publishers while `down`."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.down = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def publish(self, messages: Sequence[Message]) -> None:
        if self.down:
            raise StoreUnavailable("the bus is down")
        await self._bus.publish(messages)


class Audit:
    """A consumer that drops ids that it knows, as every consumer here does."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.doubled = 0
        self.types: list[str] = []
        self.actors: set[str] = set()

    async def __call__(self, batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            envelope = envelope_of(delivery.message)
            if envelope.id in self.ids:
                self.doubled += 1
                continue
            self.ids.append(envelope.id)
            self.types.append(type(envelope.event).__name__)
            self.actors.add(envelope.actor)


def accepted(job: str) -> JobAccepted:
    return JobAccepted(job=job, repository=REPOSITORY, revision=REVISION, recipe="int8")


def failed(job: str) -> JobFailed:
    failure = Failure(code="out-of-memory", message="too large")
    return JobFailed(job=job, repository=REPOSITORY, revision=REVISION, error=failure)


def cancelled(job: str) -> JobCancelled:
    return JobCancelled(job=job, repository=REPOSITORY, revision=REVISION)


TOPICS = (JobAccepted.topic, JobFailed.topic, JobCancelled.topic)


class OutboxContract:
    """Subclasses give `open_column`, and the `environment` of the process that is killed."""

    @pytest.fixture
    def collection(self) -> str:
        return f"jobs-{uuid.uuid4().hex[:12]}"

    @pytest.fixture
    async def column(self, open_column: OpenColumn) -> Column:
        return open_column()

    async def _outbox(self, column: Column, collection: str, *, bus: Any = None) -> Outbox:
        schema = Schema(collection, (Field("status", FieldType.KEYWORD),))
        outbox = Outbox(documents=column.documents, bus=bus or column.bus, schema=schema, source="/services/optimizer")
        await outbox.ensure()
        return outbox

    async def _audit(self, column: Column) -> Audit:
        audit = Audit()
        group = f"audit-{uuid.uuid4().hex[:12]}"
        await column.bus.subscribe(Subscription(group, TOPICS, self._only(audit), batch_max=100))
        return audit

    def _only(self, audit: Audit) -> Callable[[Sequence[Delivery]], Awaitable[None]]:
        """The real topics are shared by all tests of a server, so each looks at its own jobs only."""

        async def handle(batch: Sequence[Delivery]) -> None:
            await audit([one for one in batch if self.mark in one.message.value.decode()])

        return handle

    @pytest.fixture(autouse=True)
    def _marked(self) -> None:
        self.mark = uuid.uuid4().hex[:12]

    def _job(self, name: str) -> str:
        return f"{name}-{self.mark}"

    async def test_a_save_publishes_its_events_and_keeps_none(
        self, column: Column, collection: str, eventually: Eventually
    ) -> None:
        outbox, audit = await self._outbox(column, collection), await self._audit(column)

        saved = await outbox.save("1", {"status": "queued"}, [accepted(self._job("a"))], expected=None, actor="ann")

        await eventually(lambda: audit.types == ["JobAccepted"])
        assert audit.actors == {"ann"}
        assert saved.state == {"status": "queued"}
        document = await column.documents.get(collection, "1")
        assert document is not None
        assert set(document.body) == {"status", "_saves"}
        assert saved.version == document.version

    async def test_a_save_without_events_publishes_nothing_and_returns_its_version(
        self, column: Column, collection: str
    ) -> None:
        outbox = await self._outbox(column, collection)

        one = await outbox.save("1", {"status": "queued"}, [], expected=None, actor="ann")
        two = await outbox.save("1", {"status": "running"}, [], expected=one.version, actor="ann")

        assert (await outbox.get("1")) == two
        with pytest.raises(VersionConflict):
            await outbox.save("1", {"status": "lost"}, [], expected=one.version, actor="ann")

    async def test_a_save_on_an_old_version_publishes_nothing(
        self, column: Column, collection: str, eventually: Eventually
    ) -> None:
        outbox, audit = await self._outbox(column, collection), await self._audit(column)
        one = await outbox.save("1", {"status": "queued"}, [accepted(self._job("a"))], expected=None, actor="ann")
        two = await outbox.save("1", {"status": "failed"}, [failed(self._job("a"))], expected=one.version, actor="ann")

        for expected in (None, one.version):
            with pytest.raises(VersionConflict):
                await outbox.save("1", {}, [cancelled(self._job("a"))], expected=expected, actor="bob")

        await outbox.save("1", {"status": "queued"}, [accepted(self._job("b"))], expected=two.version, actor="ann")
        await eventually(lambda: len(audit.types) == 3)
        assert sorted(audit.types) == ["JobAccepted", "JobAccepted", "JobFailed"]

    async def test_a_bus_that_is_down_postpones_the_events_to_the_sweep(
        self, column: Column, collection: str, eventually: Eventually
    ) -> None:
        bus = DownBus(column.bus)
        outbox, audit = await self._outbox(column, collection, bus=bus), await self._audit(column)

        saved = await outbox.save("1", {"status": "queued"}, [accepted(self._job("a"))], expected=None, actor="ann")
        assert saved.state == {"status": "queued"}
        await column.documents.refresh(collection)
        assert await outbox.sweep(older_than=AT_ONCE) == 1
        bus.down = False
        assert await outbox.sweep(older_than=AT_ONCE) == 1

        await eventually(lambda: audit.types == ["JobAccepted"])
        await column.documents.refresh(collection)
        assert await outbox.sweep(older_than=AT_ONCE) == 0
        assert audit.doubled == 0

    async def test_a_sweep_leaves_young_saves_to_their_own_relay(self, column: Column, collection: str) -> None:
        outbox = await self._outbox(column, collection, bus=DownBus(column.bus))
        await outbox.save("1", {"status": "queued"}, [accepted(self._job("a"))], expected=None, actor="ann")
        await column.documents.refresh(collection)

        assert await outbox.sweep(older_than=timedelta(minutes=1)) == 0

    async def test_a_second_save_carries_unpublished_events_over_in_order(
        self, column: Column, collection: str, eventually: Eventually
    ) -> None:
        bus = DownBus(column.bus)
        outbox, audit = await self._outbox(column, collection, bus=bus), await self._audit(column)
        one = await outbox.save("1", {"status": "queued"}, [accepted(self._job("a"))], expected=None, actor="ann")
        bus.down = False

        await outbox.save("1", {"status": "failed"}, [failed(self._job("a"))], expected=one.version, actor="bob")

        await eventually(lambda: len(audit.types) == 2)
        assert sorted(audit.types) == ["JobAccepted", "JobFailed"]
        assert audit.actors == {"ann", "bob"}
        await column.documents.refresh(collection)
        assert await outbox.sweep(older_than=AT_ONCE) == 0

    async def test_a_sweep_that_runs_beside_a_save_doubles_nothing(
        self, column: Column, collection: str, eventually: Eventually
    ) -> None:
        outbox, audit = await self._outbox(column, collection), await self._audit(column)

        async def saves() -> None:
            version = None
            for number in range(20):
                event = accepted(self._job(f"{number}"))
                while True:
                    try:
                        saved = await outbox.save("1", {"n": number}, [event], expected=version, actor="ann")
                        break
                    except VersionConflict:
                        # The sweep cleared the events of the save before.
                        now = await outbox.get("1")
                        assert now is not None
                        version = now.version
                version = saved.version

        async def sweeps() -> None:
            for _ in range(10):
                await column.documents.refresh(collection)
                await outbox.sweep(older_than=AT_ONCE)

        await asyncio.gather(saves(), sweeps())
        await column.documents.refresh(collection)
        await outbox.sweep(older_than=AT_ONCE)

        await eventually(lambda: len(audit.ids) >= 20)
        assert len(audit.ids) == 20

    async def test_events_of_a_process_killed_before_it_published_are_found_by_the_sweep(
        self, open_column: OpenColumn, collection: str, environment: dict[str, str], eventually: Eventually
    ) -> None:
        """INVARIANT: a state that was saved announces its events, whatever dies in between.

        Broken by: saving state and events in two writes, clearing events before the bus has them, or ids that differ
        between the relay and the sweep.
        """
        self._kill_between_save_and_publish(collection, environment, "before")
        column = open_column()
        outbox, audit = await self._outbox(column, collection), await self._audit(column)
        stored = await outbox.get("1")
        assert stored is not None
        assert stored.state == {"status": "queued"}

        await column.documents.refresh(collection)
        assert await outbox.sweep(older_than=AT_ONCE) == 1

        await eventually(lambda: len(audit.types) == 2)
        assert sorted(audit.types) == ["JobAccepted", "JobFailed"]
        assert audit.actors == {"ann"}

    async def test_events_of_a_process_killed_after_it_published_are_not_doubled(
        self, open_column: OpenColumn, collection: str, environment: dict[str, str], eventually: Eventually
    ) -> None:
        """INVARIANT: publishing an event again gives the same id."""
        self._kill_between_save_and_publish(collection, environment, "after")
        column = open_column()
        outbox, audit = await self._outbox(column, collection), await self._audit(column)

        await column.documents.refresh(collection)
        assert await outbox.sweep(older_than=AT_ONCE) == 1

        await eventually(lambda: audit.doubled == 2)
        assert sorted(audit.types) == ["JobAccepted", "JobFailed"]

    def _kill_between_save_and_publish(self, collection: str, environment: dict[str, str], moment: str) -> None:
        """Another process saves a state with two events, and is killed before or after it published them."""
        script = """
            import asyncio, json, os, sys
            from modelworks.stores import Field, FieldType, Schema
            from modelworks.stores.outbox import Outbox
            from libs.stores.tests.contract_outbox import accepted, failed
            order = json.loads(sys.argv[1])

            class Dying:
                def __init__(self, bus):
                    self._bus = bus
                async def publish(self, messages):
                    if order["moment"] == "after":
                        await self._bus.publish(messages)
                    print("now", flush=True)
                    await asyncio.Event().wait()

            async def main():
                from modelworks.stores.settings import StoresSettings
                settings = StoresSettings()
                if settings.column == "real":
                    from modelworks.stores.bus.kafka import KafkaBus
                    from modelworks.stores.documents.opensearch import OpenSearchDocuments
                    bus, documents = KafkaBus(settings), OpenSearchDocuments(settings)
                else:
                    from modelworks.stores.bus.sqlite import SqliteBus
                    from modelworks.stores.documents.sqlite import SqliteDocuments
                    bus = SqliteBus(settings.data / "bus.sqlite")
                    documents = SqliteDocuments(settings.data / "documents.sqlite")
                schema = Schema(order["collection"], (Field("status", FieldType.KEYWORD),))
                outbox = Outbox(documents=documents, bus=Dying(bus), schema=schema, source="/services/optimizer")
                await outbox.ensure()
                events = [accepted(order["job"]), failed(order["job"])]
                await outbox.save("1", {"status": "queued"}, events, expected=None, actor="ann")

            asyncio.run(main())
        """
        order = json.dumps({"collection": collection, "job": self._job("a"), "moment": moment})
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), order],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
