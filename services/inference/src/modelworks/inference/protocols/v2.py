"""Open Inference Protocol (V2) over HTTP under `/oip`, as `tritonclient` and Triton speak it.

The infer route is the hot path: plain ASGI request handling, a cached token and
policy check, and nothing that waits but the model.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from modelworks.inference.access import require_deployable
from modelworks.inference.changes import Changes
from modelworks.inference.engine.errors import Unsupported
from modelworks.inference.engine.messages import LANES, Lane, Outcome, Tensor
from modelworks.inference.engine.models import LoadedModel, Models
from modelworks.inference.engine.v2 import InferBody, Limits, classify, decode, deflate, encode, inflate
from modelworks.inference.handlers import Deploying
from modelworks.inference.online import Ask, Online
from modelworks.inference.protocols import v2_describe as describe
from modelworks.inference.protocols.body import left, read_body
from modelworks.inference.protocols.v2_path import Target, parse_target
from modelworks.kit.direct import Endpoint
from modelworks.kit.errors import InvalidInput, ModelworksError, NotFound
from modelworks.kit.platform import Platform
from modelworks.kit.policy import SUITE, Resource
from modelworks.kit.principal import Principal
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

PREFIX = "/oip"
_HEADER = "inference-header-content-length"
_MODELS = "/oip/v2/models/"
_CONTROL = "/oip/v2/repository/models/"
_STATUS = frozenset({400, 401, 403, 404, 405, 413, 429, 500, 501, 503})
"""What goes out as it is: Triton's statuses, and four for what Triton does not do (tokens, permissions, load shedding,
the edge's limit on bodies). All else is a bad request, as there; a missed deadline is 503."""
_LOAD_WAIT_SECONDS = 60.0


def render(error: ModelworksError) -> Response:
    """An error as V2 writes it."""
    status = 503 if error.status == 504 else error.status
    return JSONResponse({"error": error.message}, status_code=status if status in _STATUS else 400)


RENDERERS = {PREFIX: render}


@dataclass(frozen=True, slots=True)
class V2Limits:
    """Bounds of the door."""

    codec: Limits
    body_bytes_max: int
    offload_bytes_min: int


class Infer:
    """The hot path."""

    def __init__(self, *, models: Models, online: Online, platform: Platform, limits: V2Limits) -> None:
        self._models = models
        self._online = online
        self._platform = platform
        self._limits = limits

    async def __call__(self, request: Request, target: Target) -> Response:
        """One prediction."""
        principal = await allowed(self._platform, request, "model:predict", Resource("Model", target.model))
        self._online.check_room()
        model = self._models.get(target.model, target.version)
        body = await self._read(request, model)
        outcome = await self._online.predict(model, body, ask_of(body, principal), lambda: left(request))
        return await self._answer(request, model, body, outcome)

    async def _read(self, request: Request, model: LoadedModel) -> InferBody:
        raw = await read_body(request, self._limits.body_bytes_max)
        length = header_bytes(request.headers.get(_HEADER))
        coding = request.headers.get("content-encoding", "")
        codec = self._limits.codec

        def read() -> InferBody:
            plain = inflate(raw, coding, codec.inflated_bytes_max) if coding else raw
            return decode(plain, length, codec, sole=model.sole_input)

        if coding or (length is None and len(raw) >= self._limits.offload_bytes_min):
            return await asyncio.to_thread(read)
        return read()

    async def _answer(self, request: Request, model: LoadedModel, body: InferBody, outcome: Outcome) -> Response:
        wishes = {wish.name: wish for wish in body.outputs}
        outputs: list[Tensor] = []
        binary: dict[str, bool] = {}
        for tensor in outcome.outputs:
            wish = wishes.get(tensor.name)
            outputs.append(classify(tensor, wish.classes) if wish is not None and wish.classes else tensor)
            binary[tensor.name] = wish.binary if wish is not None else body.binary_outputs
        written = sum(tensor.array.nbytes for tensor in outputs if not binary[tensor.name])

        def write() -> tuple[bytes, int | None]:
            return encode(outputs, model=model.name, version=model.revision, id=body.id, binary=binary)

        content, length = (
            await asyncio.to_thread(write) if written >= self._limits.offload_bytes_min else write()
        )  # fmt: skip
        headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
        coding = _answer_coding(request.headers.get("accept-encoding", ""))
        if coding:
            content = await asyncio.to_thread(deflate, content, coding)
            headers["Content-Encoding"] = coding
        media = "application/json" if length is None else "application/octet-stream"
        return Response(content, headers=headers, media_type=media)


class Repository:
    """What is not the hot path."""

    def __init__(
        self, *, models: Models, deploying: Deploying, changes: Changes, platform: Platform, limits: V2Limits
    ) -> None:
        self._models = models
        self._deploying = deploying
        self._changes = changes
        self._platform = platform
        self._limits = limits

    async def model(self, request: Request, target: Target) -> Response:
        """Metadata, readiness, configuration or statistics of one model."""
        await allowed(self._platform, request, "deployment:read", Resource("Model", target.model))
        if target.action == "ready":
            return self._ready(target)
        model = self._models.get(target.model, target.version)
        if target.action == "config":
            return JSONResponse(describe.config(model))
        if target.action == "stats":
            return JSONResponse({"model_stats": [describe.statistics(model)]})
        return JSONResponse(describe.metadata(model))

    def _ready(self, target: Target) -> Response:
        try:
            self._models.get(target.model, target.version)
        except ModelworksError as error:
            # Triton answers 400 for a model that is there and not ready, and for one that it does not know.
            raise InvalidInput(error.message) from error
        return JSONResponse({"name": target.model, "ready": True})

    async def statistics(self, request: Request) -> Response:
        """Statistics of all models."""
        await allowed(self._platform, request, "deployment:read", SUITE)
        return JSONResponse({"model_stats": [describe.statistics(model) for model in self._models.all()]})

    async def index(self, request: Request) -> Response:
        """What is deployed, and in which state it is here."""
        await allowed(self._platform, request, "deployment:read", SUITE)
        body = await self._json(request)
        return JSONResponse(describe.index(self._models, only_ready=body.get("ready") is True))

    async def control(self, request: Request, name: str, *, load: bool) -> Response:
        """Load or unload: a deployment of `parameters.ref` (else the known ref, else `main`), or its removal."""
        principal = await allowed(self._platform, request, "deployment:write", Resource("Model", name))
        parameters = (await self._json(request)).get("parameters") or {}
        if not isinstance(parameters, dict):
            raise InvalidInput("property 'parameters' must be an object")
        for key in parameters:
            if key == "config" or key.startswith("file:"):
                raise Unsupported(f"parameter {key!r} is refused: models come from the registry; push one and load it")
        if load:
            await self._load(name, parameters.get("ref"), principal)
        else:
            await self._deploying.remove(name, by=principal.id)
            await self._changes.until(
                name, self._served_now(name), lambda served: served is None, timeout_seconds=_LOAD_WAIT_SECONDS
            )
        return Response(status_code=200)

    async def _load(self, name: str, ref: Any, principal: Principal) -> None:
        require_deployable(self._platform.policy, principal, name, await self._deploying.ownership(name))
        pinned = False
        try:
            known = await self._deploying.get(name)
            ref, pinned = ref or known.ref, known.pinned
        except NotFound:
            ref = ref or "main"
        if not isinstance(ref, str):
            raise InvalidInput("parameter 'ref' must be a string")
        wanted = await self._deploying.deploy(name, ref, pinned=pinned, by=principal.id)
        deployment = await self._changes.until(
            name, lambda: self._deploying.get(name), lambda now: now.status() != "loading",
            timeout_seconds=_LOAD_WAIT_SECONDS,
        )  # fmt: skip
        if deployment.status() == "failed":
            reasons = {loaded.error.message for loaded in deployment.workers.values() if loaded.error is not None}
            raise InvalidInput(f"loading {name}@{wanted.revision} failed: {'; '.join(sorted(reasons))}")

    def _served_now(self, name: str) -> Callable[[], Awaitable[LoadedModel | None]]:
        async def look() -> LoadedModel | None:
            return self._models.peek(name)

        return look

    async def _json(self, request: Request) -> dict[str, Any]:
        raw = await read_body(request, self._limits.codec.header_bytes_max)
        try:
            body = json.loads(raw or b"{}")
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise InvalidInput("the body must be a JSON object")
        return body


async def allowed(platform: Platform, request: Request, action: str, resource: Resource) -> Principal:
    """The principal, when it may."""
    principal = await platform.authenticate(request.headers)
    request.state.principal = principal
    platform.policy.require(principal, action, resource)
    return principal


def ask_of(body: InferBody, principal: Principal) -> Ask:
    """Priority and timeout of a request.

    Raises:
        InvalidInput: a parameter is malformed.
        Unsupported: it is part of a sequence.
    """
    parameters = body.parameters
    if not parameters:
        return Ask(principal.id)
    if parameters.get("sequence_id") not in (None, 0, ""):
        raise Unsupported("sequences are not supported: send the state as inputs and outputs, without sequence_id")
    priority, timeout_us = parameters.get("priority", 0), parameters.get("timeout", 0)
    if type(priority) is not int or priority < 0:
        raise InvalidInput("parameter 'priority' must be an integer from 0 (default); 1 is the highest")
    if type(timeout_us) is not int or timeout_us < 0:
        raise InvalidInput("parameter 'timeout' must be a number of microseconds from 0 (none)")
    lane: Lane = LANES[min(max(priority, 1), len(LANES)) - 1]
    return Ask(principal.id, lane, time.monotonic() + timeout_us / 1e6 if timeout_us else None)


def header_bytes(value: str | None) -> int | None:
    """The value of `Inference-Header-Content-Length`; None when it was not sent."""
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 12:
        raise InvalidInput(f"Inference-Header-Content-Length is {value[:30]!r}: send a number of bytes")
    return int(value)


def _answer_coding(accepted: str) -> str:
    """The coding of an answer. Only a caller who names one alone, as tritonclient does when told to compress, wants it;
    those who list several by habit get plain tensors, which hardly shrink."""
    coding = accepted.strip().lower()
    return coding if coding in ("gzip", "deflate") else ""


def router(infer: Infer, repository: Repository, platform: Platform) -> APIRouter:
    """The routes. Health is public, as everywhere in the suite; all else needs a token."""
    routes = APIRouter(tags=["oip"])

    async def models(request: Request) -> Response:
        target = parse_target(request.url.path[len(_MODELS) :])
        if target.action in ("generate", "generate_stream", "trace/setting"):
            raise Unsupported(f"{target.action} is not offered here")
        if target.action == "infer":
            _method(request, "POST")
            return await infer(request, target)
        _method(request, "GET")
        return await repository.model(request, target)

    async def control(request: Request) -> Response:
        name, _, verb = request.url.path[len(_CONTROL) :].rpartition("/")
        target = parse_target(name)
        if verb not in ("load", "unload"):
            raise NotFound(f"no such path: {request.url.path}")
        return await repository.control(request, target.model, load=verb == "load")

    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(_: Request) -> Response:
        return JSONResponse({"ready": True})

    async def server(request: Request) -> Response:
        await platform.authenticate(request.headers)
        return JSONResponse(describe.server())

    async def unsupported(request: Request) -> Response:
        await platform.authenticate(request.headers)
        raise Unsupported(f"{request.url.path} is not offered here: tensors travel in the request")

    every = ["GET", "POST", "PUT", "DELETE"]
    for path, endpoint, methods in (
        ("/oip/v2", server, ["GET"]),
        ("/oip/v2/", server, ["GET"]),
        ("/oip/v2/health/live", live, ["GET"]),
        ("/oip/v2/health/ready", ready, ["GET"]),
        ("/oip/v2/models/stats", repository.statistics, ["GET"]),
        ("/oip/v2/models/{path:path}", models, every),
        ("/oip/v2/repository/index", repository.index, ["POST"]),
        ("/oip/v2/repository/models/{path:path}", control, ["POST"]),
        ("/oip/v2/systemsharedmemory/{path:path}", unsupported, every),
        ("/oip/v2/cudasharedmemory/{path:path}", unsupported, every),
        ("/oip/v2/trace/setting", unsupported, every),
        ("/oip/v2/logging", unsupported, every),
    ):
        routes.add_route(path, endpoint, methods=methods, include_in_schema=False)
    return routes


def is_infer(scope: Scope) -> bool:
    """Whether a request is a prediction: the hot path, which goes around the framework."""
    path: str = scope["path"]
    if scope["method"] != "POST" or not path.startswith(_MODELS) or not path.endswith("/infer"):
        return False
    return path.count("/", len(_MODELS)) >= 2  # `ns/infer` alone is a model that is called so


def direct_infer(infer: Infer) -> Endpoint:
    """The endpoint for requests that `is_infer`."""

    async def endpoint(request: Request) -> Response:
        return await infer(request, parse_target(request.scope["path"][len(_MODELS) :]))

    return endpoint


def _method(request: Request, wanted: str) -> None:
    if request.method != wanted:
        error = ModelworksError(f"{request.method} is not allowed here: use {wanted}")
        error.status = 405  # type: ignore[misc]
        error.headers["Allow"] = wanted
        raise error
