"""The HTTP shell that every service shares: errors as RFC 9457 problems, health, metrics, trace, refusals told to the audit.

A service writes routers; `create_app` wraps them. Pure ASGI middleware, so that
streams are never buffered.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import structlog
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from modelworks.events import AccessDenied
from modelworks.kit.errors import Forbidden, InvalidInput, ModelworksError, NotFound, Unauthenticated
from modelworks.kit.logging import get_logger
from modelworks.kit.platform import Platform
from modelworks.kit.policy import SCOPES
from modelworks.kit.principal import ANONYMOUS, Principal
from modelworks.kit.telemetry import extract
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Check = Callable[[], Awaitable[None]]
"""Readiness of one thing that a service needs: returns, or raises with the reason."""

Recorder = Callable[[AccessDenied, str], Awaitable[None]]
"""Tells the audit of a refusal: the event and the actor. The answer waits for it."""

Renderer = Callable[[ModelworksError], Response]
"""An error in the form of one protocol."""

PUBLIC_PATHS = frozenset({"/healthz", "/readyz"})

log = get_logger("http")


async def authenticated(request: Request) -> Principal:
    """FastAPI dependency: the verified principal of the request."""
    principal = await request.app.state.platform.authenticate(request.headers)
    request.state.principal = principal
    return principal  # type: ignore[no-any-return]


Authenticated = Annotated[Principal, Depends(authenticated)]


async def ignore_refusal(_: AccessDenied, __: str) -> None:
    """A recorder for tests that do not look at the audit."""


def create_app(
    name: str,
    platform: Platform,
    *,
    routers: Sequence[APIRouter],
    record: Recorder,
    checks: Mapping[str, Check] | None = None,
    renderers: Mapping[str, Renderer] | None = None,
    description: str = "",
) -> FastAPI:
    """A service's HTTP app.

    Args:
        name: the service, as in events and metrics.
        routers: the service's own routes.
        record: called for each refused request.
        checks: what `/readyz` asks, by name.
        renderers: path prefix to error form, for protocols with their own; longest prefix wins, RFC 9457 elsewhere.
    """
    app = FastAPI(title=f"Modelworks {name}", version="1", description=description, docs_url=None, redoc_url=None,
                  openapi_url=None)  # fmt: skip
    app.state.platform = platform
    errors = ErrorAnswers(name, record, renderers or {})
    app.state.errors = errors
    app.add_exception_handler(ModelworksError, errors.ours)
    app.add_exception_handler(RequestValidationError, errors.validation)
    app.add_exception_handler(HTTPException, errors.http)
    app.include_router(_operations(name, platform, checks or {}))
    for router in routers:
        app.include_router(router)
    app.add_middleware(Observe, service=name, platform=platform, errors=errors)
    return app


class ErrorAnswers:
    """Turns exceptions into answers, and refusals into audit events."""

    def __init__(self, service: str, record: Recorder, renderers: Mapping[str, Renderer]) -> None:
        self._service = service
        self._record = record
        self._renderers = sorted(renderers.items(), key=lambda pair: -len(pair[0]))

    async def ours(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, ModelworksError)
        if isinstance(error, (Unauthenticated, Forbidden)):
            await self._tell(request, error)
        elif error.status >= 500:
            log.warning(
                "request.failed", service=self._service, path=request.url.path, code=error.code, error=str(error)
            )
        return self._render(request, error)

    async def validation(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return self._render(request, InvalidInput(f"{where}: {first['msg']}", field=where))

    async def http(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return self._render(request, NotFound(f"no such path: {request.method} {request.url.path}"))
        if error.status_code == 400:
            return self._render(request, InvalidInput(str(error.detail)))
        plain = ModelworksError(f"{error.detail}: {request.method} {request.url.path}")
        plain.status = error.status_code  # type: ignore[misc]
        plain.code = "http-error"  # type: ignore[misc]
        plain.headers.update(error.headers or {})
        return self._render(request, plain)

    async def unexpected(self, request: Request, error: Exception) -> Response:
        log.error("request.crashed", service=self._service, path=request.url.path, exc_info=error)
        return self._render(request, ModelworksError("an internal error happened; it is in the service's log"))

    def _render(self, request: Request, error: ModelworksError) -> Response:
        path = request.url.path
        for prefix, renderer in self._renderers:
            if path == prefix or path.startswith(prefix.rstrip("/") + "/"):
                answer = renderer(error)
                break
        else:
            answer = problem(error)
        answer.headers.update(error.headers)
        return answer

    async def _tell(self, request: Request, error: Unauthenticated | Forbidden) -> None:
        principal: Principal = getattr(request.state, "principal", ANONYMOUS)
        who, policy = principal.id, None
        action, resource = f"{request.method} {request.url.path}", request.url.path
        if isinstance(error, Forbidden):
            who = error.principal or who
            action, resource, policy = error.action, error.resource, error.policy
        event = AccessDenied(
            principal=who, service=self._service, action=action[:200], resource=resource[:1000],
            reason=error.reason, detail=error.message[:500], policy=policy,
        )  # fmt: skip
        try:
            await self._record(event, who)
        except ModelworksError as failure:
            # The refusal stands whether or not the audit hears of it now; the log keeps what it would have heard.
            log.error("refusal.not-recorded", error=failure.message, **event.model_dump(exclude_none=True))


def problem(error: ModelworksError) -> JSONResponse:
    """An error as `application/problem+json` (RFC 9457): `type`, `title`, `status`, `detail`, `code` and its data."""
    body = {
        "type": "about:blank",
        "title": error.code.replace("-", " "),
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        **({"data": error.data} if error.data else {}),
    }
    return JSONResponse(body, status_code=error.status, media_type="application/problem+json")


def _operations(name: str, platform: Platform, checks: Mapping[str, Check]) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/healthz", include_in_schema=False)
    async def health() -> dict[str, str]:
        """The process runs and its event loop turns."""
        return {"status": "ok", "service": name}

    @router.get("/readyz", include_in_schema=False)
    async def ready() -> JSONResponse:
        """The service can do its work now; else 503 with what is missing."""
        results = await run_checks(checks)
        status = 200 if all(result == "ok" for result in results.values()) else 503
        body = {"status": "ready" if status == 200 else "not ready", "service": name, "checks": results}
        return JSONResponse(body, status_code=status)

    @router.get("/metrics", include_in_schema=False)
    async def metrics(request: Request, principal: Authenticated) -> PlainTextResponse:
        """Prometheus text format. Needs scope `metrics`."""
        platform.policy.require(principal, "metrics:read")
        return PlainTextResponse(generate_latest(platform.telemetry.metrics), media_type="text/plain; version=0.0.4")

    return router


async def run_checks(checks: Mapping[str, Check]) -> dict[str, str]:
    """Each check's name with `ok` or its reason. A check that takes over 2 s fails."""

    async def one(check: Check) -> str:
        try:
            await asyncio.wait_for(check(), timeout=2)
        except TimeoutError:
            return "no answer within 2 s"
        except Exception as error:  # the reason is the answer
            return str(error) or type(error).__name__
        return "ok"

    results = await asyncio.gather(*(one(check) for check in checks.values()))
    return dict(zip(checks, results, strict=True))


class HttpMetrics:
    """The HTTP metrics of a process, labelled by service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "modelworks_http_requests", "Requests answered", ["service", "method", "status"], registry=registry
        )
        self.seconds = Histogram(
            "modelworks_http_request_seconds", "Time to the last byte of the answer", ["service"], registry=registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
        )  # fmt: skip


_METRICS: WeakKeyDictionary[CollectorRegistry, HttpMetrics] = WeakKeyDictionary()


def http_metrics(registry: CollectorRegistry) -> HttpMetrics:
    """The HTTP metrics of a registry; made once, since a name can be registered only once."""
    if registry not in _METRICS:
        _METRICS[registry] = HttpMetrics(registry)
    return _METRICS[registry]


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Observe:
    """One span, one metric sample and bound log fields a request; and an answer when a handler crashed."""

    def __init__(self, app: ASGIApp, *, service: str, platform: Platform, errors: ErrorAnswers) -> None:
        self._app = app
        self._service = service
        self._errors = errors
        self._tracer = platform.telemetry.tracer(service)
        self._metrics = http_metrics(platform.telemetry.metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = _request_id(headers.get("x-request-id", ""))
        status, started = 0, time.perf_counter()
        # A caller may invent methods; metrics must not grow with them.
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name for name, _ in message.get("headers", [])}
                if b"x-request-id" not in names:
                    message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode("latin-1"))]
            await send(message)

        # In one process the edge's span is current already; across processes it comes by header.
        parent = extract(headers) if "traceparent" in headers else None
        structlog.contextvars.bind_contextvars(request_id=request_id)
        with self._tracer.start_as_current_span(
            f"{method} {_template(scope['path'])}", context=parent, kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "url.path": scope["path"][:500]},
        ) as span:  # fmt: skip
            try:
                await self._app(scope, receive, observed)
            except Exception as error:
                if status:
                    # Half an answer is out: only cutting the connection tells the client that it is not whole.
                    raise
                answer = await self._errors.unexpected(Request(scope), error)
                await answer(scope, receive, observed)
            finally:
                status = status or 500
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    span.set_status(StatusCode.ERROR)
                self._metrics.requests.labels(self._service, method, str(status)).inc()
                self._metrics.seconds.labels(self._service).observe(time.perf_counter() - started)
                structlog.contextvars.unbind_contextvars("request_id")


def _request_id(offered: str) -> str:
    """The caller's id when it is fit for logs, else a new one."""
    fit = 0 < len(offered) <= 100 and all(c.isascii() and (c.isalnum() or c in "-_.:") for c in offered)
    return offered if fit else uuid.uuid4().hex


def _template(path: str) -> str:
    """The first three segments: span names must not grow with the number of models."""
    return "/".join(path.split("/")[:4])


_PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457. `code` is what programs compare; `detail` says what is wrong and the way out.",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "data": {"type": "object"},
    },
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The app's OpenAPI document, for `contracts/http`: what FastAPI knows, with our errors and tokens in place of its own."""
    from fastapi.openapi.utils import get_openapi

    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = _PROBLEM
    flow = {"tokenUrl": "/oauth/token", "scopes": {scope: ", ".join(sorted(SCOPES[scope])) for scope in sorted(SCOPES)}}
    components["securitySchemes"] = {"token": {"type": "oauth2", "flows": {"clientCredentials": flow}}}
    problem_answer = {
        "description": "Refused or failed",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            # FastAPI would answer 422; we answer 400, as for every malformed request.
            operation["responses"].pop("422", None)
            if path.startswith("/api/"):
                operation["responses"].setdefault("default", problem_answer)
                operation.setdefault("security", [{"token": []}])
    return document
