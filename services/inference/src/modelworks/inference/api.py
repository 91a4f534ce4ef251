"""`/api/v1/deployments` and `/api/v1/jobs`: parse, call the handler, render."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from modelworks.events.values import RefName, RepositoryName
from modelworks.inference.access import require_deployable
from modelworks.inference.changes import Changes
from modelworks.inference.domain import Deployment, Job, JobStatus, Lane
from modelworks.inference.handlers import Deploying
from modelworks.inference.protocols.body import read_body
from modelworks.inference.protocols.v2 import header_bytes
from modelworks.inference.queueing import Queueing, Submission
from modelworks.kit.errors import InvalidInput, TooLarge
from modelworks.kit.http import Authenticated
from modelworks.kit.platform import Platform
from modelworks.kit.policy import SUITE, Resource
from modelworks.kit.principal import Principal
from pydantic import BaseModel, ConfigDict, Field, ValidationError

WAIT_SECONDS_MAX = 60
_TIMEOUT_MS_MAX = 86_400_000
_OFFLOAD_BYTES = 128 * 1024

Prefer = Annotated[
    str | None, Header(description="`wait=N`: answer when there is something to say, at most N seconds.")
]


class DeploymentBody(BaseModel):
    """What to serve."""

    model_config = ConfigDict(extra="forbid")

    model: RepositoryName
    ref: RefName = "main"
    pinned: bool = False
    """Never unload it to make room for others."""


def deployments_router(deploying: Deploying, changes: Changes, platform: Platform) -> APIRouter:
    """Routes of deployments."""
    router = APIRouter(prefix="/api/v1/deployments", tags=["deployments"])

    @router.post("", status_code=202)
    async def deploy(body: DeploymentBody, principal: Authenticated, response: Response) -> dict[str, Any]:
        """Serve a model under its name, and follow the ref from now on."""
        platform.policy.require(principal, "deployment:write", Resource("Model", body.model))
        require_deployable(platform.policy, principal, body.model, await deploying.ownership(body.model))
        deployment = await deploying.deploy(body.model, body.ref, pinned=body.pinned, by=principal.id)
        response.headers["Location"] = f"/api/v1/deployments/{body.model}"
        return render_deployment(deployment)

    @router.get("")
    async def every(principal: Authenticated) -> dict[str, Any]:
        """All deployments."""
        platform.policy.require(principal, "deployment:read", SUITE)
        items = [render_deployment(deployment) for deployment in await deploying.all()]
        return {"items": items, "total": len(items), "cursor": None}

    @router.get("/{namespace}/{name}")
    async def one(namespace: str, name: str, principal: Authenticated, prefer: Prefer = None) -> dict[str, Any]:
        """One deployment; with `Prefer: wait=N` as soon as it no longer loads."""
        model = f"{namespace}/{name}"
        platform.policy.require(principal, "deployment:read", Resource("Model", model))
        deployment = await changes.until(
            model, lambda: deploying.get(model), lambda now: now.status() != "loading",
            timeout_seconds=wait_seconds(prefer),
        )  # fmt: skip
        return render_deployment(deployment)

    @router.delete("/{namespace}/{name}", status_code=204)
    async def remove(namespace: str, name: str, principal: Authenticated) -> Response:
        """Stop serving a model."""
        model = f"{namespace}/{name}"
        platform.policy.require(principal, "deployment:write", Resource("Model", model))
        await deploying.remove(model, by=principal.id)
        return Response(status_code=204)

    return router


def wait_seconds(prefer: str | None) -> float:
    """The wait that a caller prefers (RFC 7240 section 4.3); 0 without one, at most 60."""
    match = re.search(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])", prefer or "")
    return min(int(match.group(1)), WAIT_SECONDS_MAX) if match else 0


def render_deployment(deployment: Deployment) -> dict[str, Any]:
    """A deployment as the API shows it."""
    errors = [deployment.error, *(loaded.error for loaded in deployment.workers.values())]
    error = next((error for error in errors if error is not None), None)
    return {
        "model": deployment.model,
        "ref": deployment.ref,
        "revision": deployment.revision,
        "status": deployment.status(),
        "error": error.model_dump() if error and deployment.status() == "failed" else None,
        "file": deployment.artifact.model_dump(),
        "pinned": deployment.pinned,
        "requested_by": deployment.requested_by,
        "requested_at": deployment.requested_at.isoformat(),
        "updated_at": deployment.updated_at.isoformat(),
        "workers": [
            {"worker": worker, **loaded.model_dump(mode="json", exclude_none=True)}
            for worker, loaded in sorted(deployment.workers.items())
        ],
    }


class JobOptions(BaseModel):
    """Everything about a job but its tensors: the query of a V2 body, or properties beside `inputs` in JSON."""

    model_config = ConfigDict(extra="ignore")

    model: RepositoryName
    ref: RefName | None = None
    lane: Lane = "standard"
    timeout_ms: Annotated[int, Field(ge=1, le=_TIMEOUT_MS_MAX)] | None = None


def jobs_router(
    queueing: Queueing, changes: Changes, platform: Platform, *, body_bytes_max: int, json_bytes_max: int
) -> APIRouter:
    """Routes of jobs."""
    router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])

    def visible(principal: Principal, action: str, job: Job) -> None:
        platform.policy.require(principal, action, Resource("Job", job.id, owner=job.owner))

    @router.post(
        "",
        status_code=202,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["model", "inputs"],
                            "properties": {
                                **JobOptions.model_json_schema()["properties"],
                                "inputs": {"type": "array", "items": {"type": "object"}},
                                "outputs": {"type": "array", "items": {"type": "object"}},
                            },
                        }
                    },
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                },
            }
        },
    )
    async def submit(
        request: Request,
        response: Response,
        principal: Authenticated,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    ) -> dict[str, Any]:
        """Queue a prediction: JSON with `model` and `inputs`, or a V2 body (JSON or binary) with `?model=`."""
        options, body, length = await _read(request, body_bytes_max, json_bytes_max)
        platform.policy.require(principal, "model:predict", Resource("Model", options.model))
        timeout = timedelta(milliseconds=options.timeout_ms) if options.timeout_ms else None
        job = await queueing.submit(
            Submission(
                model=options.model, ref=options.ref, lane=options.lane, owner=principal.id, body=body,
                header_bytes=length, timeout=timeout, key=idempotency_key,
            )
        )  # fmt: skip
        response.headers["Location"] = f"/api/v1/jobs/{job.id}"
        return render_job(job)

    @router.get("")
    async def find(
        principal: Authenticated,
        model: str | None = None,
        status: JobStatus | None = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """The caller's jobs, newest first; those of everybody for who may read them all."""
        platform.policy.require(principal, "job:read", Resource("Job", "*", owner=principal.id))
        everybody = platform.policy.check(principal, "job:read", SUITE).allowed
        page = await queueing.find(
            owner=None if everybody else principal.id, model=model, status=status, limit=limit, cursor=cursor
        )
        return {"items": [render_job(job) for job in page.jobs], "total": page.total, "cursor": page.cursor}

    @router.get("/{id}")
    async def one(id: str, principal: Authenticated, prefer: Prefer = None) -> dict[str, Any]:
        """One job; with `Prefer: wait=N` as soon as it has ended."""
        visible(principal, "job:read", await queueing.get(id))
        job = await changes.until(
            f"job {id}", lambda: queueing.get(id), lambda job: job.final, timeout_seconds=wait_seconds(prefer)
        )
        return render_job(job)

    @router.get("/{id}/result", response_class=Response)
    async def result(
        id: str, principal: Authenticated, accept: Annotated[str, Header()] = "*/*"
    ) -> Response:  # fmt: skip
        """The output as a V2 answer, in the form that `Accept` names, else as it is stored."""
        job = await queueing.get(id)
        visible(principal, "job:read", job)
        content, length = await queueing.result(job, binary=_wants_binary(accept))
        headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
        media = "application/json" if length is None else "application/octet-stream"
        return Response(content, headers=headers, media_type=media)

    @router.delete("/{id}")
    async def cancel(id: str, principal: Authenticated) -> dict[str, Any]:
        """Give a job up, waiting or running."""
        visible(principal, "job:cancel", await queueing.get(id))
        return render_job(await queueing.cancel(id, by=principal.id))

    return router


async def _read(request: Request, body_bytes_max: int, json_bytes_max: int) -> tuple[JobOptions, bytes, int | None]:
    raw = await read_body(request, body_bytes_max)
    length = header_bytes(request.headers.get("inference-header-content-length"))
    if "model" in request.query_params or length is not None:
        return _options(dict(request.query_params)), raw, length
    return (
        await asyncio.to_thread(_split, raw, json_bytes_max)
        if len(raw) >= _OFFLOAD_BYTES
        else _split(raw, json_bytes_max)
    )


def _split(raw: bytes, json_bytes_max: int) -> tuple[JobOptions, bytes, None]:
    """The options and the V2 body of a JSON request that holds both."""
    if len(raw) > json_bytes_max:
        raise TooLarge(f"{len(raw)} bytes of JSON, at most {json_bytes_max} allowed: send tensors as binary data")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {error}; send a V2 body with ?model=") from error
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object with 'model' and 'inputs'")
    kept = {name: body[name] for name in ("id", "parameters", "inputs", "outputs") if name in body}
    # NaN and its kin, which Python reads though they are not JSON, are refused where the tensors are read.
    return _options(body), json.dumps(kept, separators=(",", ":")).encode(), None


def _options(given: dict[str, Any]) -> JobOptions:
    try:
        return JobOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise InvalidInput(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error


def _wants_binary(accept: str) -> bool | None:
    kinds = {part.split(";")[0].strip().lower() for part in accept.split(",")}
    if "application/octet-stream" in kinds:
        return True
    return False if "application/json" in kinds else None


def render_job(job: Job) -> dict[str, Any]:
    """A job as the API shows it."""
    shown = job.model_dump(mode="json", exclude={"inputs", "output", "binary"})
    return {
        **shown,
        "result": job.result_uri if job.output else None,
        "input_bytes": job.inputs.size_bytes if job.inputs else 0,
        "output_bytes": job.output.size_bytes if job.output else 0,
    }
