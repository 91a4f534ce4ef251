"""What every bus does with long work, stops, lag and tails."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from modelworks.kit.errors import InvalidInput, StoreUnavailable, Unavailable
from modelworks.stores import Bus, Delivery, RetryPolicy, Subscription

from libs.stores.tests.contract_bus_parts import (
    SOON,
    BusSuite,
    Eventually,
    OpenBus,
    Recorder,
    drained,
    failing,
    in_place,
    message,
    tail,
    text,
)


class WorkContract(BusSuite):
    """Run, stop, and be looked at."""

    # Long work.

    async def test_long_work_runs_at_once_up_to_the_bound(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        running, most = 0, 0
        gate = asyncio.Event()

        async def react(_: Delivery) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await gate.wait()
            running -= 1

        handler = Recorder(react)
        await bus.subscribe(Subscription(group, (topic,), handler, work="long", in_flight_max=4))
        await bus.publish([message(topic, f"{n}", key=f"k{n}") for n in range(30)])
        await eventually(lambda: running == 4)

        gate.set()

        await eventually(lambda: len(handler.finished) == 30)
        assert most == 4

    async def test_long_work_keeps_the_order_within_a_key(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        busy: set[str] = set()
        overlaps: list[str] = []

        async def react(delivery: Delivery) -> None:
            key = delivery.message.key
            if key in busy:
                overlaps.append(key)
            busy.add(key)
            # Later work is shorter, so that it would overtake if it could.
            await asyncio.sleep(0.01 if int(text(delivery)) < 20 else 0.0)
            busy.remove(key)

        handler = Recorder(react)
        await bus.subscribe(Subscription(group, (topic,), handler, work="long", in_flight_max=8))

        await bus.publish([message(topic, f"{n}", key=f"k{n % 4}") for n in range(60)])

        await eventually(lambda: len(handler.finished) == 60)
        assert overlaps == []
        for key in range(4):
            got = [int(text(one)) for one in handler.deliveries if one.message.key == f"k{key}"]
            assert got == list(range(key, 60, 4))

    async def test_slow_work_does_not_hold_up_other_keys(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        gate = asyncio.Event()

        async def react(delivery: Delivery) -> None:
            if text(delivery) == "slow":
                await gate.wait()

        handler = Recorder(react)
        await bus.subscribe(Subscription(group, (topic,), handler, work="long", in_flight_max=2))

        await bus.publish(
            [message(topic, "slow", key="slow"), *(message(topic, f"{n}", key=f"{n}") for n in range(50))]
        )

        await eventually(lambda: len(handler.finished) == 50)
        assert "slow" not in handler.finished
        gate.set()
        await eventually(lambda: "slow" in handler.finished)

    async def test_finished_work_is_not_redone_although_earlier_work_is_not_finished(
        self, open_bus: OpenBus, topic: str, group: str, eventually: Eventually
    ) -> None:
        async def react(delivery: Delivery) -> None:
            if text(delivery) == "stuck":
                await asyncio.Event().wait()

        bus, handler = open_bus(drain=timedelta(milliseconds=100)), Recorder(react)
        await bus.subscribe(Subscription(group, (topic,), handler, work="long", in_flight_max=2))
        await bus.publish([message(topic, "stuck", key="s"), *(message(topic, f"{n}", key="k") for n in range(20))])
        await eventually(lambda: len(handler.finished) == 20)
        await bus.close()

        bus, handler = open_bus(), Recorder()
        await bus.subscribe(Subscription(group, (topic,), handler, work="long", in_flight_max=2))
        await bus.publish([message(topic, "new", key="k")])

        await eventually(lambda: len(handler.finished) == 2, within=20)
        await eventually(lambda: drained(bus, group))
        assert sorted(handler.seen) == ["new", "stuck"]

    async def test_long_work_that_fails_is_retried_and_dies(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        handler = Recorder(failing("bad", error=ValueError("no")))
        await bus.subscribe(Subscription(group, (topic,), handler, work="long", in_flight_max=3, retry=SOON))

        await bus.publish([message(topic, "bad"), message(topic, "good")])

        [letter] = await eventually(lambda: bus.dead_letters(topic=topic))
        assert letter.attempts == 3
        assert handler.finished == ["good"]
        assert [one.attempt for one in handler.deliveries if text(one) == "bad"] == [1, 2, 3]
        await eventually(lambda: drained(bus, group))

    # Stopping.

    @pytest.mark.parametrize("work", ["control", "long"])
    async def test_stop_waits_for_the_running_handler_and_acknowledges_its_message(
        self, bus: Bus, topic: str, group: str, work: Any, eventually: Eventually
    ) -> None:
        gate = asyncio.Event()

        async def react(_: Delivery) -> None:
            await gate.wait()

        handler = Recorder(react)
        consumer = await bus.subscribe(Subscription(group, (topic,), handler, work=work))
        await bus.publish([message(topic, "1"), message(topic, "2")])
        await eventually(lambda: handler.deliveries)

        stopping = asyncio.create_task(consumer.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        gate.set()
        await stopping

        assert handler.seen == ["1"]
        [lag] = await bus.lag(group)
        assert lag.messages == 1
        with pytest.raises(Unavailable):
            consumer.check()
        await consumer.stop()

    @pytest.mark.parametrize("work", ["control", "long"])
    async def test_a_handler_that_outlives_the_drain_time_is_cut_off_and_its_message_comes_again(
        self, open_bus: OpenBus, topic: str, group: str, work: Any, eventually: Eventually
    ) -> None:
        async def react(_: Delivery) -> None:
            await asyncio.Event().wait()

        bus, handler = open_bus(drain=timedelta(milliseconds=100)), Recorder(react)
        await bus.subscribe(Subscription(group, (topic,), handler, work=work))
        await bus.publish([message(topic, "1")])
        await eventually(lambda: handler.deliveries)
        await bus.close()

        bus, handler = open_bus(), Recorder()
        await bus.subscribe(Subscription(group, (topic,), handler, work=work))

        await eventually(lambda: handler.finished == ["1"], within=20)
        assert handler.deliveries[0].attempt == 1

    async def test_stop_does_not_wait_for_something_unavailable(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        handler = Recorder(failing("x", error=StoreUnavailable("down")))
        consumer = await bus.subscribe(Subscription(group, (topic,), handler))
        await bus.publish([message(topic, "x")])
        await eventually(lambda: handler.deliveries)

        started = time.monotonic()
        await consumer.stop()

        assert time.monotonic() - started < 5
        [lag] = await bus.lag(group)
        assert lag.messages == 1

    async def test_a_closed_bus_refuses_work(self, bus: Bus, topic: str, group: str) -> None:
        await bus.publish([message(topic, "x")])

        await bus.close()

        with pytest.raises(StoreUnavailable):
            await bus.publish([message(topic, "x")])
        with pytest.raises(StoreUnavailable):
            await bus.subscribe(Subscription(group, (topic,), Recorder()))
        with pytest.raises(StoreUnavailable):
            await bus.check()
        await bus.close()

    # Lag.

    async def test_lag_counts_what_waits_runs_and_is_to_be_retried(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        gate = asyncio.Event()

        async def react(delivery: Delivery) -> None:
            if text(delivery) == "bad":
                raise ValueError("no")
            await gate.wait()

        handler = Recorder(react)
        policy = RetryPolicy(delays=(timedelta(seconds=60),))
        await bus.subscribe(Subscription(group, (topic,), handler, work="long", in_flight_max=3, retry=policy))
        await bus.publish([message(topic, "bad", key="b")])
        await eventually(lambda: handler.deliveries)
        await bus.publish([message(topic, f"{n}", key=f"{n}") for n in range(4)])
        await eventually(lambda: len(handler.deliveries) == 4)

        async def lag() -> tuple[str, int]:
            [one] = await bus.lag(group)
            return one.topic, one.messages

        async def all_five() -> bool:
            return await lag() == (topic, 5)

        await eventually(all_five)
        gate.set()

        async def only_the_retry() -> bool:
            return await lag() == (topic, 1)

        await eventually(only_the_retry)

    async def test_lag_of_a_group_without_subscription_is_empty(self, bus: Bus, group: str) -> None:
        assert list(await bus.lag(group)) == []

    async def test_lag_is_known_while_no_member_runs(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        handler = Recorder()
        consumer = await bus.subscribe(Subscription(group, (topic,), handler))
        await bus.publish([message(topic, "1")])
        await eventually(lambda: handler.deliveries)
        await consumer.stop()

        await bus.publish([message(topic, f"{n}", key=f"{n}") for n in range(7)])

        [lag] = await bus.lag(group)
        assert (lag.topic, lag.messages) == (topic, 7)

    # Tail.

    async def test_a_tail_sees_what_is_published_from_now_on(self, bus: Bus, topic: str) -> None:
        await bus.publish([message(topic, "before")])
        following, seen = await in_place(bus, [topic])

        await bus.publish([message(topic, "1"), message(topic, "2")])

        assert [text(await asyncio.wait_for(anext(following), 10)) for _ in range(2)] == ["1", "2"]
        assert "before" not in seen
        await following.aclose()

    async def test_a_tail_goes_on_after_a_cursor(self, bus: Bus, topic: str) -> None:
        following, _ = await in_place(bus, [topic])
        await bus.publish([message(topic, "1"), message(topic, "2"), message(topic, "3")])
        cursor = (await asyncio.wait_for(anext(following), 10)).cursor
        await following.aclose()

        again = tail(bus, [topic], after={topic: cursor})

        assert [text(await asyncio.wait_for(anext(again), 10)) for _ in range(2)] == ["2", "3"]
        await again.aclose()

    async def test_a_tail_follows_several_topics_and_every_reader_sees_everything(self, bus: Bus, topic: str) -> None:
        topics = [f"{topic}-1", f"{topic}-2"]
        one, _ = await in_place(bus, topics)
        other, _ = await in_place(bus, topics)

        await bus.publish([message(topics[0], "a"), message(topics[1], "b")])

        for following in (one, other):
            got: list[tuple[str, str]] = []
            while len(got) < 2:
                delivery = await asyncio.wait_for(anext(following), 10)
                if not text(delivery).startswith("probe"):
                    got.append((delivery.message.topic, text(delivery)))
            assert sorted(got) == [(topics[0], "a"), (topics[1], "b")]
            await following.aclose()

    @pytest.mark.parametrize("cursor", ["", "x", "0", "0:x", "-1:5", "0:-5", "99999:0", "0:1,0:2", "0:1,"])
    async def test_a_tail_refuses_a_cursor_that_is_none(self, bus: Bus, topic: str, cursor: str) -> None:
        with pytest.raises(InvalidInput, match="cursor"):
            await asyncio.wait_for(anext(tail(bus, [topic], after={topic: cursor})), 10)

    async def test_a_tail_ends_when_the_bus_closes(self, bus: Bus, topic: str) -> None:
        following, _ = await in_place(bus, [topic])
        waiting = asyncio.ensure_future(anext(following, None))

        await bus.close()

        assert await asyncio.wait_for(waiting, 10) is None

    async def test_a_tail_that_is_being_opened_ends_when_the_bus_closes(self, bus: Bus, topic: str) -> None:
        waiting = asyncio.ensure_future(anext(tail(bus, [topic]), None))
        await asyncio.sleep(0)

        await bus.close()

        assert await asyncio.wait_for(waiting, 10) is None

    async def test_check_passes_while_the_bus_can_be_reached(self, bus: Bus) -> None:
        await bus.check()
