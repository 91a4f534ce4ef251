"""Events: the registry consumes no topic; what runs beside HTTP is the sweep that announces what a crash left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Protocol


class Announcing(Protocol):
    """A collection whose documents carry unpublished events."""

    async def ensure(self) -> None:
        """Make the collection.

        Raises:
            StoreUnavailable: the store cannot be reached.
        """

    def announcing(self, *, every: timedelta) -> AbstractAsyncContextManager[None]:
        """While open: publish, at once and then every so often, what was left unpublished."""


@asynccontextmanager
async def running(repositories: Announcing, *, every: timedelta) -> AsyncIterator[None]:
    """The collection exists, and events left behind are announced, while the body runs."""
    await repositories.ensure()
    async with repositories.announcing(every=every):
        yield
