"""What every bus does. Each adapter's test module subclasses `BusContract` and gives the fixture `open_bus`."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, cast

import pytest
from modelworks.kit.errors import InvalidInput, NotFound, StoreUnavailable, TooLarge, Unavailable
from modelworks.stores import Bus, Delivery, Message, PermanentFailure, RetryPolicy, Subscription

SOON = RetryPolicy(delays=(timedelta(milliseconds=50), timedelta(milliseconds=100)))
AT_ONCE_DEAD = RetryPolicy(delays=())
Eventually = Callable[..., Awaitable[Any]]


class OpenBus(Protocol):
    """Opens a bus on the same data each time; all are closed after the test."""

    def __call__(self, *, drain: timedelta = timedelta(seconds=10)) -> Bus: ...


class Recorder:
    """A handler that keeps what it was given, and does what `react` says."""

    def __init__(self, react: Callable[[Delivery], Awaitable[None]] | None = None) -> None:
        self.batches: list[list[Delivery]] = []
        self.finished: list[str] = []
        self._react = react

    async def __call__(self, batch: Sequence[Delivery]) -> None:
        self.batches.append(list(batch))
        for delivery in batch:
            if self._react:
                await self._react(delivery)
        self.finished.extend(text(delivery) for delivery in batch)

    @property
    def deliveries(self) -> list[Delivery]:
        return [delivery for batch in self.batches for delivery in batch]

    @property
    def seen(self) -> list[str]:
        return [text(delivery) for delivery in self.deliveries]


def text(delivery: Delivery) -> str:
    return delivery.message.value.decode()


def message(topic: str, value: str, *, key: str = "k", **headers: str) -> Message:
    return Message(topic, key, value.encode(), headers)


def failing(*bad: str, error: Exception) -> Callable[[Delivery], Awaitable[None]]:
    async def react(delivery: Delivery) -> None:
        if text(delivery) in bad:
            raise error

    return react


async def drained(bus: Bus, group: str) -> bool:
    return all(lag.messages == 0 for lag in await bus.lag(group))


def tail(bus: Bus, topics: Sequence[str], after: Mapping[str, str] | None = None) -> AsyncGenerator[Delivery, None]:
    """The port promises an iterator; both adapters give a generator, so that a test can end it."""
    return cast(AsyncGenerator[Delivery, None], bus.tail(topics, after=after))


async def in_place(bus: Bus, topics: Sequence[str]) -> tuple[AsyncGenerator[Delivery, None], list[str]]:
    """A tail that is known to be reading, and what it has seen until then; nothing of it is left to be read."""
    following = tail(bus, topics)
    first = asyncio.ensure_future(anext(following))
    while not first.done():
        await bus.publish([message(topics[0], "probe")])
        await asyncio.wait([first], timeout=0.1)
    seen = [text(first.result())]
    last = f"probe-{uuid.uuid4().hex}"
    await bus.publish([message(topics[0], last)])
    while seen[-1] != last:
        seen.append(text(await asyncio.wait_for(anext(following), 10)))
    return following, seen


class BusContract:
    """The suite. `topic` and `group` are fresh names for each test."""

    @pytest.fixture
    def topic(self) -> str:
        return f"test.happened-{uuid.uuid4().hex[:12]}.v1"

    @pytest.fixture
    def group(self) -> str:
        return f"group-{uuid.uuid4().hex[:12]}"

    @pytest.fixture
    async def bus(self, open_bus: OpenBus) -> Bus:
        return open_bus()

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
