"""Background tasks end when they are told to."""

from __future__ import annotations

import asyncio

from modelworks.kit.tasks import end


async def test_task_that_swallows_a_cancellation_ends_all_the_same() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed > 1:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)

    await asyncio.wait_for(end(task), 5)

    assert task.cancelled()
    assert swallowed == 2


async def test_ended_and_failed_tasks_are_no_trouble() -> None:
    async def fail() -> None:
        raise ValueError("for this test")

    async def succeed() -> None: ...

    tasks = [asyncio.create_task(fail()), asyncio.create_task(succeed())]
    await asyncio.sleep(0.01)

    await end(*tasks)
    await end()
