"""Ending background tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any

_ASK_AGAIN_SECONDS = 0.2


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and return when they have ended; how they ended is not told.

    Asks again until they do: before Python 3.12, `asyncio.wait_for` swallows a cancellation that comes in the moment
    in which what it waits for ends, and a loop so cancelled would go on for ever.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_ASK_AGAIN_SECONDS)
    for task in tasks:
        # Looked at, so that asyncio does not complain of an error that nobody retrieved.
        if not task.cancelled():
            task.exception()
