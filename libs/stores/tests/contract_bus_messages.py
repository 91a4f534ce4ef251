"""What every bus does with messages, groups and batches."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from modelworks.kit.errors import InvalidInput, TooLarge
from modelworks.stores import Bus, Message, Subscription

from libs.stores.tests.contract_bus_parts import (
    SOON,
    BusSuite,
    Eventually,
    OpenBus,
    Recorder,
    drained,
    failing,
    message,
    text,
)


class MessagesContract(BusSuite):
    """Publish and receive."""

    # Publish and receive.

    async def test_a_message_arrives_as_it_was_published(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        handler = Recorder()
        await bus.subscribe(Subscription(group, (topic,), handler))
        sent = Message(topic, "schlüssel", b"\x00\xff", {"ce_id": "1", "name": "größe ✓"})
        before = datetime.now(UTC)

        await bus.publish([sent])

        await eventually(lambda: handler.deliveries)
        [delivery] = handler.deliveries
        assert delivery.message == sent
        assert delivery.attempt == 1
        assert abs(delivery.published_at - before) < timedelta(seconds=30)
        assert delivery.cursor == f"{delivery.partition}:{delivery.offset}"

    async def test_an_empty_value_and_an_empty_key_arrive(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        handler = Recorder()
        await bus.subscribe(Subscription(group, (topic,), handler))

        await bus.publish([Message(topic, "", b"")])

        await eventually(lambda: handler.deliveries)
        assert handler.deliveries[0].message == Message(topic, "", b"")

    async def test_publishing_nothing_is_allowed(self, bus: Bus) -> None:
        await bus.publish([])

    async def test_messages_of_one_key_keep_their_order(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        handler = Recorder()
        await bus.subscribe(Subscription(group, (topic,), handler, batch_max=50))

        for start in range(0, 300, 30):
            await bus.publish([message(topic, f"{n}", key=f"k{n % 7}") for n in range(start, start + 30)])

        await eventually(lambda: len(handler.deliveries) >= 300)
        for key in range(7):
            got = [int(text(one)) for one in handler.deliveries if one.message.key == f"k{key}"]
            assert got == list(range(key, 300, 7))

    async def test_concurrent_publishes_all_arrive(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        await asyncio.gather(*(bus.publish([message(topic, f"{n}")]) for n in range(200)))

        handler = Recorder()
        await bus.subscribe(Subscription(group, (topic,), handler, batch_max=100))

        await eventually(lambda: len(handler.deliveries) >= 200)
        assert sorted(handler.seen, key=int) == [f"{n}" for n in range(200)]

    async def test_a_message_above_one_mebibyte_is_refused_and_nothing_is_written(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        with pytest.raises(TooLarge, match=topic):
            await bus.publish([message(topic, "small"), Message(topic, "k", bytes(1024 * 1024 + 1))])

        handler = Recorder()
        await bus.subscribe(Subscription(group, (topic,), handler))
        await bus.publish([message(topic, "after")])
        await eventually(lambda: handler.deliveries)
        assert handler.seen == ["after"]

    async def test_the_largest_message_arrives(self, bus: Bus, topic: str, group: str, eventually: Eventually) -> None:
        handler = Recorder()
        await bus.subscribe(Subscription(group, (topic,), handler, batch_max=10))

        await bus.publish([Message(topic, "", bytes(1024 * 1024)), Message(topic, "", bytes(1024 * 1024))])

        await eventually(lambda: len(handler.deliveries) == 2)
        assert [len(one.message.value) for one in handler.deliveries] == [1024 * 1024, 1024 * 1024]

    @pytest.mark.parametrize("name", ["", "white space", "ümlaut", "x" * 201, ".."])
    async def test_a_topic_that_is_no_topic_name_is_refused(self, bus: Bus, group: str, name: str) -> None:
        with pytest.raises(InvalidInput, match="topic"):
            await bus.publish([message(name, "x")])
        with pytest.raises(InvalidInput, match="topic"):
            await bus.subscribe(Subscription(group, (name,), Recorder()))

    async def test_text_that_is_no_unicode_is_refused(self, bus: Bus, topic: str) -> None:
        with pytest.raises(InvalidInput, match="Unicode"):
            await bus.publish([Message(topic, "\udc80", b"")])
        with pytest.raises(InvalidInput, match="Unicode"):
            await bus.publish([Message(topic, "k", b"", {"name": "\udc80"})])

    @pytest.mark.parametrize(
        "wrong",
        [{"topics": ()}, {"group": ""}, {"group": "a b"}, {"batch_max": 0}, {"in_flight_max": 0}],
    )
    async def test_a_subscription_out_of_bounds_is_refused(self, bus: Bus, topic: str, wrong: dict[str, Any]) -> None:
        with pytest.raises(InvalidInput):
            await bus.subscribe(Subscription(**{"group": "g", "topics": (topic,), "handler": Recorder(), **wrong}))

    # Groups.

    async def test_a_new_group_starts_at_the_oldest_message(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        await bus.publish([message(topic, "1"), message(topic, "2")])
        handler = Recorder()

        await bus.subscribe(Subscription(group, (topic,), handler))

        await eventually(lambda: len(handler.deliveries) == 2)
        assert handler.seen == ["1", "2"]

    async def test_each_group_gets_every_message(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        one, other = Recorder(), Recorder()
        await bus.subscribe(Subscription(group, (topic,), one))
        await bus.subscribe(Subscription(f"{group}-other", (topic,), other))

        await bus.publish([message(topic, "1"), message(topic, "2")])

        await eventually(lambda: one.seen == ["1", "2"] and other.seen == ["1", "2"])

    async def test_members_of_a_group_share_the_messages(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        one, other = Recorder(), Recorder()
        await bus.subscribe(Subscription(group, (topic,), one))
        await bus.subscribe(Subscription(group, (topic,), other))

        await bus.publish([message(topic, f"{n}", key=f"k{n}") for n in range(100)])

        await eventually(lambda: len({*one.seen, *other.seen}) == 100)
        await eventually(lambda: drained(bus, group))
        assert len(one.seen) + len(other.seen) == 100

    async def test_a_member_that_stops_is_followed_by_the_next(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        one, other = Recorder(), Recorder()
        first = await bus.subscribe(Subscription(group, (topic,), one))
        await bus.subscribe(Subscription(group, (topic,), other))
        await bus.publish([message(topic, f"before-{n}", key=f"k{n}") for n in range(20)])
        await eventually(lambda: drained(bus, group))

        await first.stop()
        await bus.publish([message(topic, f"after-{n}", key=f"k{n}") for n in range(20)])

        await eventually(lambda: {f"after-{n}" for n in range(20)} <= set(other.seen), within=20)
        assert sorted(one.seen + other.seen) == sorted(f"{when}-{n}" for when in ("before", "after") for n in range(20))

    async def test_what_was_handled_is_not_handled_again_after_reopening(
        self, open_bus: OpenBus, topic: str, group: str, eventually: Eventually
    ) -> None:
        bus, handler = open_bus(), Recorder()
        await bus.subscribe(Subscription(group, (topic,), handler, batch_max=10))
        await bus.publish([message(topic, "1"), message(topic, "2")])
        await eventually(lambda: len(handler.deliveries) == 2)
        await bus.close()

        bus, handler = open_bus(), Recorder()
        await bus.subscribe(Subscription(group, (topic,), handler, batch_max=10))
        await bus.publish([message(topic, "3")])

        await eventually(lambda: handler.deliveries)
        assert handler.seen == ["3"]

    async def test_subscriptions_of_one_group_to_different_topics_keep_apart(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        left = Recorder(failing("bad", error=ValueError("no")))
        right = Recorder()
        await bus.subscribe(Subscription(group, (f"{topic}-left",), left, retry=SOON))
        await bus.subscribe(Subscription(group, (f"{topic}-right",), right, retry=SOON))

        await bus.publish([message(f"{topic}-left", "bad"), message(f"{topic}-right", "good")])

        await eventually(lambda: bus.dead_letters(topic=f"{topic}-left"), within=20)
        assert left.seen == ["bad", "bad", "bad"]
        assert right.seen == ["good"]

    async def test_one_subscription_reads_several_topics(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        handler = Recorder()
        await bus.subscribe(Subscription(group, (f"{topic}-1", f"{topic}-2"), handler, batch_max=10))

        await bus.publish([message(f"{topic}-1", "a"), message(f"{topic}-2", "b")])

        await eventually(lambda: len(handler.deliveries) == 2)
        assert {(one.message.topic, text(one)) for one in handler.deliveries} == {
            (f"{topic}-1", "a"),
            (f"{topic}-2", "b"),
        }

    # Batches.

    async def test_a_batch_is_never_larger_than_asked(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        await bus.publish([message(topic, f"{n}") for n in range(95)])
        handler = Recorder()

        await bus.subscribe(Subscription(group, (topic,), handler, batch_max=10))

        await eventually(lambda: len(handler.deliveries) == 95)
        assert max(len(batch) for batch in handler.batches) == 10
        assert handler.seen == [f"{n}" for n in range(95)]

    async def test_of_a_failing_batch_only_the_guilty_message_is_retried(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        await bus.publish([message(topic, value) for value in ("a", "bad", "c")])
        handler = Recorder(failing("bad", error=ValueError("no")))

        await bus.subscribe(Subscription(group, (topic,), handler, batch_max=3, retry=SOON))

        await eventually(lambda: bus.dead_letters(topic=topic))
        assert [text(one) for one in handler.deliveries if one.attempt > 1] == ["bad", "bad"]
        assert handler.finished == ["a", "c"]
