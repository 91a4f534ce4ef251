"""Waits that end early. Loops end by an event, not by cancelling: a step under way is finished."""

from __future__ import annotations

import asyncio


async def first_of(*events: asyncio.Event, within: float) -> bool:
    """Wait until one of the events is set, at most `within` seconds; says whether one is."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=within, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return any(event.is_set() for event in events)
