"""A hot path beside a FastAPI app: observed and refused alike, without the routing and its dozen layers.

Measured on the predict path: the framework's layers cost more than the token
check, the policy and the tensors together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from modelworks.kit.errors import ModelworksError
from modelworks.kit.http import ErrorAnswers, Observe
from modelworks.kit.platform import Platform
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Endpoint = Callable[[Request], Awaitable[Response]]


class Direct:
    """Answers matching requests by `endpoint`, all others by `app`."""

    def __init__(
        self,
        app: FastAPI,
        *,
        service: str,
        platform: Platform,
        errors: ErrorAnswers,
        matches: Callable[[Scope], bool],
        endpoint: Endpoint,
    ) -> None:
        self.own = app
        """What it stands beside."""
        self._matches = matches
        self._endpoint = endpoint
        self._errors = errors
        self._observed = Observe(self._answer, service=service, platform=platform, errors=errors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._matches(scope):
            await self._observed(scope, receive, send)
        else:
            await self.own(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})
        request = Request(scope, receive)
        try:
            answer = await self._endpoint(request)
        except ModelworksError as error:
            answer = await self._errors.ours(request, error)
        await answer(scope, receive, send)
