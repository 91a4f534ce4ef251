"""What replicas hear of each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from modelworks.kit.errors import StoreUnavailable
from modelworks.stores.bus.port import Delivery
from modelworks.stores.stores import Stores

if TYPE_CHECKING:
    from services.auth.tests.conftest import Auth, Clock, Start


async def kids(auth: Auth) -> list[str]:
    answer = await auth.http.get("/.well-known/jwks.json")
    return [key["kid"] for key in answer.json()["keys"]]


async def rotate(auth: Auth, **body: bool) -> None:
    answer = await auth.http.post("/api/v1/keys/rotate", json=body, headers=await auth.bearer())
    assert answer.status_code == 200


class Listening:
    """A bus that counts who listens, and breaks off the first `failures` listeners."""

    def __init__(self, bus: Any, *, failures: int = 0) -> None:
        self._bus = bus
        self._failures = failures
        self.listeners = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def tail(self, topics: Sequence[str]) -> AsyncIterator[Delivery]:
        if self._failures:
            self._failures -= 1
            raise StoreUnavailable("the bus went away")
        self.listeners += 1
        try:
            async for delivery in self._bus.tail(topics):
                yield delivery
        finally:
            self.listeners -= 1


async def test_rotation_is_news_to_other_replicas_before_their_clock_says_so(
    start: Start, stores: Stores, clock: Clock, eventually: Callable[..., Any]
) -> None:
    bus = Listening(stores.bus)
    async with start() as first, start(on=replace(stores, bus=bus), keys_reload_seconds=60) as second:
        await eventually(lambda: bus.listeners == 1)
        clock.forward(minutes=11)

        await rotate(first)

        async def heard() -> bool:
            return await kids(second) == await kids(first)

        await eventually(heard, within=20)


async def test_listener_that_breaks_off_listens_again(
    start: Start, stores: Stores, eventually: Callable[..., Any]
) -> None:
    bus = Listening(stores.bus, failures=3)

    async with start(on=replace(stores, bus=bus)):
        await eventually(lambda: bus.listeners == 1)


async def test_nobody_listens_after_the_end(start: Start, stores: Stores, eventually: Callable[..., Any]) -> None:
    bus = Listening(stores.bus)

    async with start(on=replace(stores, bus=bus)):
        await eventually(lambda: bus.listeners == 1)

    assert bus.listeners == 0
