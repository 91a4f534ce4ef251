"""What the door needs from outside."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from starlette.types import Receive, Scope, Send


class Upstream(Protocol):
    """A service behind the door, as an ASGI app: in this process, or reached over HTTP."""

    def __call__(self, scope: Scope, receive: Receive, send: Send, /) -> Awaitable[None]:
        """Answer the request; bodies are streamed in both directions.

        Raises:
            Unavailable: the service cannot be reached; nothing was sent yet.
        """
