"""The one topic that auth listens to is its own: a rotation in one replica is news to the others at once."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from modelworks.auth.handlers import Keys
from modelworks.events import KeyRotated
from modelworks.kit.errors import ModelworksError
from modelworks.kit.logging import get_logger
from modelworks.stores import Bus

log = get_logger("auth")


async def follow_rotations(bus: Bus, keys: Keys, *, pause_seconds: float) -> None:
    """Read the keys again whenever somebody rotated them, for ever.

    Without a group, so that every replica hears it; and without a guarantee: what is missed here is found when the keys
    are read again by the clock.
    """
    while True:
        try:
            async with aclosing(bus.tail([KeyRotated.topic])) as deliveries:  # type: ignore[type-var]
                async for _ in deliveries:
                    await keys.tend()
        except ModelworksError as error:
            log.warning("rotations.not-heard", error=error.message)
        await asyncio.sleep(pause_seconds)
