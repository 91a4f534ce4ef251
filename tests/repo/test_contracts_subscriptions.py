"""What the services really subscribe to, against `contracts/asyncapi.yaml`: every service is started on a bus that takes notes."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from modelworks.audit.tlog.note import generate_key
from modelworks.client.up import Secrets, compose
from modelworks.events import ALL, Audited
from modelworks.kit.platform import Platform
from modelworks.stores import Consumer, Delivery, Message, Subscription
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import Stores

from tests.repo.test_contracts_asyncapi import document, operations


@dataclass
class Notes:
    """A bus that subscribes nobody, but remembers who wanted to, and what was followed without a group."""

    bus: Any
    service: str = ""
    subscriptions: dict[str, list[Subscription]] = field(default_factory=lambda: defaultdict(list))
    followed: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bus, name)

    async def subscribe(self, subscription: Subscription) -> Consumer:
        self.subscriptions[self.service].append(subscription)
        return Idle()

    def tail(self, topics: Sequence[str], *, after: Any = None) -> AsyncIterator[Delivery]:
        self.followed[self.service] |= set(topics)
        return self.bus.tail(topics, after=after)  # type: ignore[no-any-return]

    def topics(self, service: str) -> set[str]:
        return {topic for each in self.subscriptions[service] for topic in each.topics} | self.followed[service]


class Idle:
    """A consumer that gets nothing."""

    def check(self) -> None:
        """Always well."""

    async def stop(self) -> None:
        """Nothing to stop."""


@pytest.fixture
async def notes(stores: Stores, platform: Platform, tmp_path: Path, eventually: Any) -> Notes:
    taken = Notes(stores.bus)
    keys = Secrets(
        auth_master_key=base64.urlsafe_b64encode(b"0" * 32).decode(),
        audit_signing_key=generate_key("test/audit"),
        admin_client_secret="x" * 43,
    )
    services = compose(
        replace(stores, bus=taken),
        platform,
        address="http://127.0.0.1:1",
        data=tmp_path,
        keys=keys,  # type: ignore[arg-type]
    )
    for service in services:
        taken.service = service.name
        expected = {channel for who, channel in operations("receive") if who == service.name}
        async with AsyncExitStack() as running:
            await running.enter_async_context(service.run())
            if service.name != "edge" and expected:
                # Some subscribe in the background, once they may.
                await eventually(lambda name=service.name: bool(taken.subscriptions[name]))
                await asyncio.sleep(0)
    return taken


async def test_services_receive_what_the_contract_says(notes: Notes):
    for service in ("registry", "optimizer", "inference", "auth", "audit"):
        expected = {channel for who, channel in operations("receive") if who == service}
        assert notes.topics(service) == expected, service


async def test_control_subscriptions_as_faststream_describes_them_are_part_of_the_contract(notes: Notes):
    from faststream.specification import AsyncAPI
    from modelworks.stores.bus.kafka_admin import Cluster
    from modelworks.stores.bus.kafka_consumer import group_options
    from modelworks.stores.bus.kafka_control import ControlConsumer, make_broker
    from modelworks.stores.bus.kafka_group import Worker

    for service, subscriptions in notes.subscriptions.items():
        cluster = Cluster(StoresSettings(column="real", kafka_bootstrap="127.0.0.1:1"))
        broker = make_broker(cluster, graceful_seconds=1)
        control = [each for each in subscriptions if each.work == "control"]
        for each in control:
            ControlConsumer(
                cluster, broker, Worker(each, None, None), topics=each.topics,  # type: ignore[arg-type]
                options=group_options(each, 10_000), drain_seconds=1,
            )  # fmt: skip
        described = json.loads(AsyncAPI(broker, title=service).to_specification().to_json())
        topics = {channel["address"].partition(":")[0] for channel in described["channels"].values()}
        assert topics == {topic for each in control for topic in each.topics}
        assert topics <= {channel for who, channel in operations("receive") if who == service}
        assert {operation["action"] for operation in described["operations"].values()} <= {"receive"}


async def test_every_group_has_one_owner(notes: Notes):
    owners: dict[str, set[str]] = defaultdict(set)
    for service, subscriptions in notes.subscriptions.items():
        for each in subscriptions:
            owners[each.group].add(service)

    assert {group: who for group, who in owners.items() if len(who) > 1} == {}
    for group, (owner,) in owners.items():
        assert group == owner or group.startswith(f"{owner}-"), group


async def test_work_items_that_nobody_audits_are_worked_on(notes: Notes):
    worked = {topic for service in notes.subscriptions for topic in notes.topics(service)}

    unaudited = {event.topic for event in ALL if event.audited is Audited.NO} - {"audit.checkpoint-signed.v1"}
    assert unaudited <= worked


def test_parked_messages_carry_the_headers_that_the_contract_names():
    from modelworks.stores.bus import kafka_records as records

    headers = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/services/x", "ce_type": "a.b-done.v1"}
    moment = datetime(2026, 1, 31, tzinfo=UTC)
    delivery = Delivery(Message("a.b-done.v1", "k", b"{}", headers), 3, 17, 2, moment)
    retry = records.retry_record("optimizer", delivery, number=2, attempt=3, not_before_ms=5)
    letter = records.dead_letter_record("optimizer", delivery, error="ValueError: no", failed_at=moment)
    schemas = document()["components"]["schemas"]
    schema = {**schemas["FailureHeaders"], "components": {"schemas": schemas}}

    for parked in (retry, letter):
        assert Draft7Validator(schema).is_valid(parked.headers), parked.headers
        ours = set(parked.headers) - set(headers)
        assert ours <= set(schemas["FailureHeaders"]["properties"])
    assert {*retry.headers, *letter.headers, records.REPLAYED} - set(headers) == set(
        schemas["FailureHeaders"]["properties"]
    )
    channels = document()["channels"]
    assert retry.topic == channels["retry"]["address"].format(group="optimizer", number=2)
    assert letter.topic == channels["dead-letter"]["address"].format(topic="a.b-done.v1")
