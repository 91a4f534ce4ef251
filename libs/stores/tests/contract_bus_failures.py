"""What every bus does with failures and dead letters."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime, timedelta

import pytest
from modelworks.kit.errors import InvalidInput, NotFound, StoreUnavailable, Unavailable
from modelworks.stores import Bus, Delivery, PermanentFailure, RetryPolicy, Subscription

from libs.stores.tests.contract_bus_parts import (
    AT_ONCE_DEAD,
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


class FailuresContract(BusSuite):
    """Retry and give up."""

    # Failures.

    async def test_a_failing_message_is_retried_later_while_others_go_on(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        async def react(delivery: Delivery) -> None:
            if text(delivery) == "flaky" and delivery.attempt < 3:
                raise ValueError("not yet")

        handler = Recorder(react)
        await bus.subscribe(Subscription(group, (topic,), handler, retry=SOON))

        await bus.publish([message(topic, "flaky", ce_id="7"), message(topic, "next")])

        await eventually(lambda: "flaky" in handler.finished)
        assert handler.finished == ["next", "flaky"]
        flaky = [one for one in handler.deliveries if text(one) == "flaky"]
        assert [one.attempt for one in flaky] == [1, 2, 3]
        assert len({(one.partition, one.offset, one.message.topic) for one in flaky}) == 1
        assert flaky[2].message == flaky[0].message == message(topic, "flaky", ce_id="7")
        assert flaky[2].published_at == flaky[0].published_at
        assert await bus.dead_letters(topic=topic) == []

    async def test_a_retry_waits_for_its_delay(self, bus: Bus, topic: str, group: str, eventually: Eventually) -> None:
        times: list[float] = []

        async def react(_: Delivery) -> None:
            times.append(time.monotonic())
            raise ValueError("no")

        delays = (timedelta(milliseconds=300), timedelta(milliseconds=600))
        await bus.subscribe(Subscription(group, (topic,), Recorder(react), retry=RetryPolicy(delays=delays)))

        await bus.publish([message(topic, "x")])

        await eventually(lambda: bus.dead_letters(topic=topic))
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert 0.29 < waits[0] < 2
        assert 0.59 < waits[1] < 3

    async def test_after_the_last_retry_the_message_is_a_dead_letter(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        handler = Recorder(failing("bad", error=ValueError("cannot read it")))
        await bus.subscribe(Subscription(group, (topic,), handler, retry=SOON))
        before = datetime.now(UTC)

        await bus.publish([message(topic, "bad", ce_id="7")])

        [letter] = await eventually(lambda: bus.dead_letters(topic=topic))
        assert letter.message == message(topic, "bad", ce_id="7")
        assert letter.group == group
        assert letter.error == "ValueError: cannot read it"
        assert letter.attempts == 3
        assert timedelta() <= letter.failed_at - before < timedelta(seconds=30)
        assert not letter.replayed
        assert handler.seen == ["bad", "bad", "bad"]
        await eventually(lambda: drained(bus, group))

    async def test_a_permanent_failure_is_a_dead_letter_at_once(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        handler = Recorder(failing("bad", error=PermanentFailure("breaks its schema")))
        await bus.subscribe(Subscription(group, (topic,), handler, retry=SOON))

        await bus.publish([message(topic, "bad"), message(topic, "good")])

        [letter] = await eventually(lambda: bus.dead_letters(topic=topic))
        assert letter.error == "PermanentFailure: breaks its schema"
        assert letter.attempts == 1
        await eventually(lambda: handler.finished == ["good"])
        assert handler.seen == ["bad", "good"]

    async def test_without_delays_a_failure_is_a_dead_letter_at_once(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        handler = Recorder(failing("bad", error=ValueError("no")))
        await bus.subscribe(Subscription(group, (topic,), handler, retry=AT_ONCE_DEAD))

        await bus.publish([message(topic, "bad")])

        await eventually(lambda: bus.dead_letters(topic=topic))
        assert handler.seen == ["bad"]

    async def test_something_unavailable_is_waited_for_without_counting_an_attempt(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        down = True

        async def react(_: Delivery) -> None:
            if down:
                raise StoreUnavailable("the store is down")

        handler = Recorder(react)
        consumer = await bus.subscribe(Subscription(group, (topic,), handler, retry=AT_ONCE_DEAD))
        consumer.check()

        await bus.publish([message(topic, "1"), message(topic, "2")])
        await eventually(lambda: len(handler.deliveries) >= 2)
        with pytest.raises(Unavailable, match="the store is down"):
            consumer.check()
        down = False

        await eventually(lambda: handler.finished == ["1", "2"])
        assert {one.attempt for one in handler.deliveries} == {1}
        assert await bus.dead_letters(topic=topic) == []
        consumer.check()

    async def test_something_unavailable_for_too_long_is_an_ordinary_failure(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        handler = Recorder(failing("x", error=StoreUnavailable("the store is down")))
        policy = RetryPolicy(delays=(), unavailable_max=timedelta(milliseconds=500))
        await bus.subscribe(Subscription(group, (topic,), handler, retry=policy))

        await bus.publish([message(topic, "x")])

        [letter] = await eventually(lambda: bus.dead_letters(topic=topic))
        assert letter.error == "StoreUnavailable: the store is down"
        assert letter.attempts == 1
        assert len(handler.deliveries) > 1

    async def test_a_retry_that_waits_survives_reopening(
        self, open_bus: OpenBus, topic: str, group: str, eventually: Eventually
    ) -> None:
        policy = RetryPolicy(delays=(timedelta(seconds=1),))
        bus, handler = open_bus(), Recorder(failing("x", error=ValueError("no")))
        await bus.subscribe(Subscription(group, (topic,), handler, retry=policy))
        await bus.publish([message(topic, "x")])
        await eventually(lambda: handler.deliveries)
        await bus.close()

        bus, handler = open_bus(), Recorder()
        await bus.subscribe(Subscription(group, (topic,), handler, retry=policy))

        await eventually(lambda: handler.deliveries, within=20)
        assert [one.attempt for one in handler.deliveries] == [2]
        assert handler.deliveries[0].message == message(topic, "x")

    # Dead letters.

    async def test_dead_letters_are_listed_newest_first_and_bounded(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        handler = Recorder(failing("1", "2", "3", error=PermanentFailure("no")))
        await bus.subscribe(Subscription(group, (topic,), handler))
        for value in ("1", "2", "3"):
            await bus.publish([message(topic, value)])
            await eventually(lambda value=value: value in handler.seen)
        await eventually(lambda: drained(bus, group))

        letters = await bus.dead_letters(topic=topic)

        assert [letter.message.value for letter in letters] == [b"3", b"2", b"1"]
        assert [one.id for one in await bus.dead_letters(topic=topic, limit=2)] == [one.id for one in letters[:2]]
        assert {letter.id for letter in letters} <= {letter.id for letter in await bus.dead_letters(limit=1000)}

    @pytest.mark.parametrize("limit", [0, 1001, -1])
    async def test_a_limit_out_of_bounds_is_refused(self, bus: Bus, limit: int) -> None:
        with pytest.raises(InvalidInput, match=str(limit)):
            await bus.dead_letters(limit=limit)

    async def test_a_replayed_dead_letter_is_delivered_again_as_a_first_attempt(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        broken = True

        async def react(_: Delivery) -> None:
            if broken:
                raise ValueError("no")

        handler = Recorder(react)
        await bus.subscribe(Subscription(group, (topic,), handler, retry=AT_ONCE_DEAD))
        await bus.publish([message(topic, "x", ce_id="7")])
        [letter] = await eventually(lambda: bus.dead_letters(topic=topic))
        broken = False

        replayed = await bus.replay(letter.id)

        assert replayed.id == letter.id
        assert replayed.replayed
        await eventually(lambda: handler.finished == ["x"])
        assert [one.attempt for one in handler.deliveries] == [1, 1]
        assert handler.deliveries[1].message == message(topic, "x", ce_id="7")
        [listed] = await bus.dead_letters(topic=topic)
        assert listed.replayed

    async def test_a_replay_that_fails_is_a_second_dead_letter(
        self, bus: Bus, topic: str, group: str, eventually: Eventually
    ) -> None:
        handler = Recorder(failing("x", error=ValueError("no")))
        await bus.subscribe(Subscription(group, (topic,), handler, retry=AT_ONCE_DEAD))
        await bus.publish([message(topic, "x")])
        [letter] = await eventually(lambda: bus.dead_letters(topic=topic))

        await bus.replay(letter.id)

        async def two() -> bool:
            return len(await bus.dead_letters(topic=topic)) == 2

        await eventually(two)
        newer, older = await bus.dead_letters(topic=topic)
        assert (newer.replayed, older.replayed) == (False, True)

    @pytest.mark.parametrize(
        "id", ["", "999999999", "x", "test.happened.v1.dead-letter:0:999999999", "a:b:c", "1" * 40]
    )
    async def test_replaying_what_is_not_there_says_so(self, bus: Bus, id: str) -> None:
        with pytest.raises(NotFound):
            await bus.replay(id)
