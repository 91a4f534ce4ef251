"""The scheduler: who runs with whom, in which order, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from modelworks.inference.engine.errors import Cancelled, ModelFailed
from modelworks.inference.engine.messages import Array, Lane, TensorSpec, Work
from modelworks.inference.engine.models import LoadedModel
from modelworks.inference.engine.scheduler import Bounds, Scheduler, Ticket
from modelworks.inference.engine.session import CancelToken
from modelworks.kit.errors import DeadlineExceeded, RateLimited, Unavailable

X = TensorSpec("x", "FP32", (-1, -1))
Y = TensorSpec("y", "FP32", (-1, -1))
POISON = -1.0


class FakeSession:
    """y = x + 1. Stands still while `gate` is closed, fails on a poisoned row, remembers its batches."""

    provider = platform = "fake"
    memory_bytes = 0
    inputs, outputs = (X,), (Y,)

    def __init__(self, *, batchable: bool = True) -> None:
        self.batchable = batchable
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[float]] = []
        self.closed = False
        self.mixes_rows = False
        self.stopped = 0

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str], token: CancelToken) -> list[Array]:
        assert not self.closed
        stop = threading.Event()
        token.attach(stop.set)
        while not self.gate.wait(0.005):
            if stop.is_set():
                self.stopped += 1
                raise Cancelled("stopped")
        x = inputs["x"]
        self.batches.append(x[:, 0].tolist())
        if (x == POISON).any():
            raise ModelFailed("poison")
        return [x.sum(axis=0, keepdims=True) if self.mixes_rows else x + 1]

    def close(self) -> None:
        self.closed = True


def model_of(session: FakeSession, *, max_batch: int = 8, delay: float = 0.0) -> LoadedModel:
    return LoadedModel(
        name="a/b", ref="main", revision="0" * 40, sha256="0" * 64, session=session, max_batch=max_batch,
        max_delay_seconds=delay, load_ms=0.0,
    )  # fmt: skip


def work(*values: float, width: int = 1, lane: Lane = "interactive", within: float | None = None) -> Work:
    array = np.repeat(np.array(values, np.float32)[:, None], width, axis=1)
    return Work(
        id="r", inputs={"x": array}, rows=len(values), outputs=("y",), lane=lane, mouth="online", principal="p",
        size_bytes=array.nbytes, deadline=None if within is None else time.monotonic() + within,
    )  # fmt: skip


Make = Callable[..., Scheduler]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[Scheduler] = []

    def build(*, slots: int = 1, waiting_max: int = 100, waiting_bytes_max: int = 10**6) -> Scheduler:
        made.append(Scheduler(Bounds(slots=slots, waiting_max=waiting_max, waiting_bytes_max=waiting_bytes_max)))
        return made[-1]

    yield build
    for scheduler in made:
        await scheduler.close(grace_seconds=1)


async def occupied(scheduler: Scheduler, model: LoadedModel, session: FakeSession) -> Ticket:
    """A slot that is busy until the gate opens."""
    session.gate.clear()
    return scheduler.submit(model, work(0))


async def values(*tickets: Ticket) -> list[Any]:
    outcomes = await asyncio.gather(*(ticket.outcome() for ticket in tickets))
    return [outcome.outputs[0].array[:, 0].tolist() for outcome in outcomes]


# --- batching -----------------------------------------------------------------------------------------------


async def test_lone_request_runs_at_once_though_a_delay_is_set(make: Make) -> None:
    session = FakeSession()
    scheduler = make()

    ticket = scheduler.submit(model_of(session, delay=30), work(1))

    assert await asyncio.wait_for(values(ticket), 5) == [[2.0]]


async def test_requests_that_wait_run_together_and_get_their_own_rows(make: Make) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)

    tickets = [scheduler.submit(model, work(n, n + 0.5)) for n in (1, 2, 3)]
    session.gate.set()

    assert await values(first, *tickets) == [[1.0], [2.0, 2.5], [3.0, 3.5], [4.0, 4.5]]
    assert session.batches == [[0.0], [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]]
    assert (await tickets[0].outcome()).batch_rows == 6


async def test_batch_is_never_larger_than_its_bound(make: Make) -> None:
    session = FakeSession()
    model = model_of(session, max_batch=3)
    scheduler = make()
    first = await occupied(scheduler, model, session)

    tickets = [scheduler.submit(model, work(n, n)) for n in (1, 2, 3)]
    session.gate.set()
    await values(first, *tickets)

    assert [len(batch) for batch in session.batches] == [1, 2, 2, 2]


async def test_request_larger_than_a_batch_runs_alone_in_steps_of_a_batch(make: Make) -> None:
    session = FakeSession()
    model = model_of(session, max_batch=2)
    scheduler = make()

    assert await values(scheduler.submit(model, work(1, 2, 3))) == [[2.0, 3.0, 4.0]]
    assert session.batches == [[1.0, 2.0], [3.0]]


async def test_large_request_to_a_model_that_mixes_rows_runs_whole(make: Make) -> None:
    session = FakeSession()
    session.mixes_rows = True
    model = model_of(session, max_batch=2)
    scheduler = make()

    assert await values(scheduler.submit(model, work(1, 2, 3))) == [[6.0]]


async def test_other_shapes_do_not_share_a_batch(make: Make) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)

    tickets = [scheduler.submit(model, work(1, width=w)) for w in (2, 3, 2)]
    session.gate.set()
    await values(first, *tickets)

    assert sorted(len(batch) for batch in session.batches) == [1, 1, 2]


async def test_model_without_batch_dimension_runs_alone(make: Make) -> None:
    session = FakeSession(batchable=False)
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)

    tickets = [scheduler.submit(model, work(n)) for n in (1, 2)]
    session.gate.set()
    await values(first, *tickets)

    assert [len(batch) for batch in session.batches] == [1, 1, 1]


async def test_companions_are_awaited_while_the_model_is_busy_but_no_longer_than_the_delay(
    make: Make, eventually: Any
) -> None:
    session = FakeSession()
    model = model_of(session, delay=0.05)
    scheduler = make(slots=2)
    first = await occupied(scheduler, model, session)

    tickets = [scheduler.submit(model, work(n)) for n in (1, 2)]
    assert not tickets[0].started
    await eventually(lambda: tickets[0].started and tickets[1].started)
    session.gate.set()
    await values(first, *tickets)

    assert sorted(len(batch) for batch in session.batches) == [1, 2]


async def test_full_batch_does_not_wait_for_the_delay(make: Make) -> None:
    session = FakeSession()
    model = model_of(session, delay=30, max_batch=2)
    scheduler = make(slots=2)
    await occupied(scheduler, model, session)

    tickets = [scheduler.submit(model, work(n)) for n in (1, 2)]

    assert tickets[1].started
    session.gate.set()


async def test_model_whose_rows_cannot_be_told_apart_is_run_alone_from_then_on(make: Make) -> None:
    session = FakeSession()
    session.mixes_rows = True
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)

    tickets = [scheduler.submit(model, work(n)) for n in (1, 2)]
    session.gate.set()

    assert await values(first, *tickets) == [[0.0], [1.0], [2.0]]
    assert not model.batched


# --- order --------------------------------------------------------------------------------------------------


async def test_earliest_deadline_runs_first(make: Make) -> None:
    session = FakeSession(batchable=False)
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)

    tickets = [
        scheduler.submit(model, work(n, lane="bulk", within=within)) for n, within in ((1, 30), (2, 10), (3, 20))
    ]
    session.gate.set()
    await values(first, *tickets)

    assert session.batches == [[0.0], [2.0], [3.0], [1.0]]


async def test_interactive_overtakes_bulk_but_not_for_ever(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeSession(batchable=False)
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)

    late = scheduler.submit(model, work(1, lane="bulk", within=0.04))
    bulk = scheduler.submit(model, work(2, lane="bulk"))
    interactive = scheduler.submit(model, work(3, lane="interactive"))
    session.gate.set()
    await values(first, late, bulk, interactive)

    assert session.batches == [[0.0], [1.0], [3.0], [2.0]]


# --- failure ------------------------------------------------------------------------------------------------


async def test_poisoned_row_fails_alone(make: Make) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)

    tickets = [scheduler.submit(model, work(n)) for n in (1, 2, POISON, 3, 4)]
    session.gate.set()
    results = await asyncio.gather(*(ticket.outcome() for ticket in tickets), return_exceptions=True)
    await first.outcome()

    assert [type(result).__name__ for result in results] == ["Outcome", "Outcome", "ModelFailed", "Outcome", "Outcome"]
    assert model.statistics.fail.count == 1
    assert model.outstanding == 0


async def test_expired_deadline_costs_no_compute(make: Make) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)

    late = scheduler.submit(model, work(1, lane="standard", within=0.02))
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(late.outcome(), 5)
    session.gate.set()
    await first.outcome()

    assert session.batches == [[0.0]]
    assert scheduler.waiting["standard"].requests == 0


async def test_deadline_that_has_passed_is_refused_at_the_door(make: Make) -> None:
    with pytest.raises(DeadlineExceeded):
        make().submit(model_of(FakeSession()), work(1, within=-1))


async def test_full_queue_refuses_with_a_time_to_come_back(make: Make) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make(waiting_max=2)
    await occupied(scheduler, model, session)
    for n in (1, 2):
        scheduler.submit(model, work(n))

    with pytest.raises(RateLimited) as refused:
        scheduler.submit(model, work(3))

    assert int(refused.value.headers["Retry-After"]) >= 1
    session.gate.set()


async def test_bytes_of_waiting_inputs_are_bounded(make: Make) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make(waiting_bytes_max=100)
    await occupied(scheduler, model, session)
    scheduler.submit(model, work(1, width=20))

    with pytest.raises(RateLimited):
        scheduler.submit(model, work(2, width=20))
    session.gate.set()


async def test_request_that_would_wait_beyond_its_deadline_is_refused(make: Make, eventually: Any) -> None:
    session = FakeSession()
    model = model_of(session, max_batch=1)
    scheduler = make()
    session.gate.clear()
    ticket, started = scheduler.submit(model, work(0)), time.monotonic()
    await eventually(lambda: time.monotonic() > started + 0.1)
    session.gate.set()
    await ticket.outcome()
    await occupied(scheduler, model, session)
    for n in range(5):
        scheduler.submit(model, work(n))

    assert scheduler.work_seconds() > 0.3
    with pytest.raises(RateLimited):
        scheduler.submit(model, work(9, within=0.05))
    session.gate.set()


# --- cancellation -------------------------------------------------------------------------------------------


async def test_cancelled_while_waiting_never_runs(make: Make) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)
    ticket = scheduler.submit(model, work(1))

    ticket.cancel()
    session.gate.set()
    await first.outcome()

    with pytest.raises(Cancelled):
        await ticket.outcome()
    assert session.batches == [[0.0]]


async def test_running_batch_stops_when_all_its_members_are_cancelled(make: Make, eventually: Any) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)
    tickets = [scheduler.submit(model, work(n)) for n in (1, 2)]
    first.cancel()
    await eventually(lambda: tickets[0].started)

    tickets[0].cancel()
    assert session.stopped == 1
    tickets[1].cancel()
    await eventually(lambda: session.stopped == 2)

    assert session.batches == []
    await eventually(lambda: model.outstanding == 0)


async def test_member_that_leaves_does_not_disturb_the_others(make: Make) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)
    tickets = [scheduler.submit(model, work(n)) for n in (1, 2)]
    session.gate.set()
    await first.outcome()
    tickets[0].cancel()

    assert await values(tickets[1]) == [[3.0]]


async def test_task_that_is_cancelled_gives_its_request_up(make: Make, eventually: Any) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make()
    ticket = await occupied(scheduler, model, session)
    waiting = asyncio.create_task(ticket.outcome())
    await asyncio.sleep(0)

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    await eventually(lambda: session.stopped == 1)


async def test_cancelled_requests_do_not_pile_up_behind_a_slow_one(make: Make) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)

    for n in range(1000):
        scheduler.submit(model, work(n)).cancel()

    held = [len(bucket.heap) for bucket in scheduler._buckets.values()]
    assert max(held) < 200
    session.gate.set()
    await first.outcome()


# --- models and the end -------------------------------------------------------------------------------------


async def test_retired_model_is_closed_when_its_last_request_has_left(make: Make, eventually: Any) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)
    waiting = scheduler.submit(model, work(1))

    scheduler.retire(model)
    assert not session.closed
    session.gate.set()
    await values(first, waiting)

    await eventually(lambda: session.closed)
    assert not scheduler._buckets


async def test_cancelled_request_does_not_close_a_model_under_its_run(make: Make, eventually: Any) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)
    scheduler.retire(model)

    first.cancel()
    assert not session.closed

    await eventually(lambda: session.closed)


async def test_close_finishes_what_waits(make: Make) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)
    waiting = scheduler.submit(model, work(1))
    session.gate.set()

    await scheduler.close(grace_seconds=5)

    assert await values(first, waiting) == [[1.0], [2.0]]
    with pytest.raises(Unavailable):
        scheduler.submit(model, work(2))


async def test_close_gives_up_what_waits_when_the_grace_is_over(make: Make) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)
    waiting = scheduler.submit(model, work(1))

    await scheduler.close(grace_seconds=0.01)

    with pytest.raises(Unavailable):
        await waiting.outcome()
    session.gate.set()
    await first.outcome()


async def test_statistics_count_rows_and_batches(make: Make) -> None:
    session = FakeSession()
    model = model_of(session)
    scheduler = make()
    first = await occupied(scheduler, model, session)
    tickets = [scheduler.submit(model, work(n, n)) for n in (1, 2)]
    session.gate.set()
    await values(first, *tickets)

    told = model.statistics.described("a/b", "v", 7)

    assert (told["inference_count"], told["execution_count"]) == (5, 2)
    assert told["inference_stats"]["success"]["count"] == 3
    assert [batch["batch_size"] for batch in told["batch_stats"]] == [1, 4]
    assert told["last_inference"] > 0


@pytest.mark.parametrize("slots", [1, 3])
async def test_a_thousand_mixed_requests_all_end(make: Make, slots: int) -> None:
    """INVARIANT: every request ends exactly once and nothing is left behind, whatever happens beside it."""
    session = FakeSession()
    model = model_of(session, delay=0.001)
    scheduler = make(slots=slots, waiting_max=2000)
    random = np.random.default_rng(slots)
    lanes: list[Lane] = ["interactive", "standard", "bulk"]
    tickets = []
    for n in range(1000):
        value = POISON if n % 97 == 0 else float(n)
        within = 0.001 if n % 31 == 0 else None
        try:
            tickets.append(
                scheduler.submit(model, work(value, width=int(random.integers(1, 4)), lane=lanes[n % 3], within=within))
            )
        except RateLimited:
            assert within is not None
            continue
        if n % 13 == 0:
            tickets[-1].cancel()
        if n % 50 == 0:
            await asyncio.sleep(0.002)

    results = await asyncio.gather(*(ticket.outcome() for ticket in tickets), return_exceptions=True)

    kinds = {type(result).__name__ for result in results}
    assert (
        {"Outcome", "Cancelled", "ModelFailed"} <= kinds <= {"Outcome", "Cancelled", "ModelFailed", "DeadlineExceeded"}
    )
    await scheduler.close(grace_seconds=5)
    assert model.outstanding == 0
    assert all(waiting.requests == 0 and waiting.bytes == 0 for waiting in scheduler.waiting.values())
