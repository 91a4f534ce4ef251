"""The door itself: raw ASGI, so that the predict path pays for a token check, a rate check and nothing else."""

from __future__ import annotations

import time
from collections.abc import Mapping

from modelworks.edge.domain import OWN, RateLimiter, Route, route
from modelworks.edge.ports import Upstream
from modelworks.edge.settings import EdgeSettings
from modelworks.kit.errors import ModelworksError, NotFound, RateLimited, TooLarge
from modelworks.kit.http import ErrorAnswers
from modelworks.kit.platform import Platform
from modelworks.kit.principal import ANONYMOUS
from modelworks.kit.telemetry import extract, inject
from opentelemetry.trace import SpanKind
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Set by our own processes only; a caller may not plant them. `ce-actor` is set from the token.
_STRIPPED = frozenset({b"x-forwarded-user", b"x-modelworks-principal", b"ce-actor"})


class Door:
    """Routes each request to the service that owns its path."""

    def __init__(
        self,
        own: ASGIApp,
        upstreams: Mapping[str, Upstream],
        *,
        settings: EdgeSettings,
        platform: Platform,
        errors: ErrorAnswers,
    ) -> None:
        """`own`: serves what the edge answers itself."""
        self.own = own
        self._upstreams: dict[str, ASGIApp] = {**upstreams, OWN: own}
        self._settings = settings
        self._platform = platform
        self._errors = errors
        self._limiter = RateLimiter(per_second=settings.rate_per_second, burst=settings.rate_burst)
        self._tracer = platform.telemetry.tracer("edge")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = False

        async def tracked(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            target = await self._admit(scope)
            await self._forward(target, scope, receive, tracked)
        except ModelworksError as error:
            if started:
                raise
            answer = await self._errors.ours(Request(scope), error)
            if error.status in (408, 413, 429) or scope["method"] not in ("GET", "HEAD"):
                # The body was not read: the connection cannot carry another request.
                answer.headers["Connection"] = "close"
            await answer(scope, receive, tracked)

    async def _admit(self, scope: Scope) -> Route:
        """The route, when the caller may go there."""
        target = route(scope["path"])
        if target is None:
            raise NotFound(f"no such path: {scope['method']} {scope['path']}")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        principal = ANONYMOUS
        if not target.public:
            principal = await self._platform.authenticate(headers)
            scope.setdefault("state", {})["principal"] = principal
        client = scope.get("client")
        caller = principal.id if principal is not ANONYMOUS else f"address {client[0] if client else 'unknown'}"
        wait = self._limiter.take(caller, time.monotonic())
        if wait > 0 and scope["path"] not in ("/healthz", "/readyz"):
            seconds = max(1, round(wait + 0.5))
            raise RateLimited(f"{caller} sends too many requests: wait {seconds} s", retry_after_seconds=seconds)
        return target

    async def _forward(self, target: Route, scope: Scope, receive: Receive, send: Send) -> None:
        upstream = self._upstreams.get(target.upstream)
        if upstream is None:
            raise NotFound(f"service {target.upstream} is not part of this suite")
        bytes_max = self._settings.upload_bytes_max if target.upload else self._settings.body_bytes_max
        bounded = _Bounded(scope, receive, bytes_max)
        if target.upstream == OWN:
            await upstream(scope, bounded, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        context = extract(headers) if "traceparent" in headers else None
        with self._tracer.start_as_current_span(
            f"edge {target.upstream}", context=context, kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "url.path": scope["path"][:500]},
        ):  # fmt: skip
            trace = [(name.encode(), value.encode()) for name, value in inject().items()]
            dropped = _STRIPPED | {name for name, _ in trace}
            forwarded = [(name, value) for name, value in scope["headers"] if name not in dropped]
            # A copy of the state: what the service remembers of this request is its own.
            await upstream({**scope, "headers": forwarded + trace, "state": {}}, bounded, send)


class _Bounded:
    """Hands on the body and stops at the limit, whether its length was announced or not."""

    def __init__(self, scope: Scope, receive: Receive, bytes_max: int) -> None:
        self._receive = receive
        self._left = bytes_max
        self._bytes_max = bytes_max
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced) > bytes_max:
            raise self._error()

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise self._error()
        return message

    def _error(self) -> TooLarge:
        return TooLarge(f"the body has more than {self._bytes_max} bytes: send less, or large inputs by reference")
