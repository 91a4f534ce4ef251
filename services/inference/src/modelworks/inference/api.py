"""`/api/v1/deployments`: parse, call the handler, render."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from modelworks.events.values import RefName, RepositoryName
from modelworks.inference.access import require_deployable
from modelworks.inference.changes import Changes
from modelworks.inference.domain import Deployment
from modelworks.inference.handlers import Deploying
from modelworks.kit.http import Authenticated
from modelworks.kit.platform import Platform
from modelworks.kit.policy import SUITE, Resource
from pydantic import BaseModel, ConfigDict

WAIT_SECONDS_MAX = 60

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
        return render(deployment)

    @router.get("")
    async def every(principal: Authenticated) -> dict[str, Any]:
        """All deployments."""
        platform.policy.require(principal, "deployment:read", SUITE)
        items = [render(deployment) for deployment in await deploying.all()]
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
        return render(deployment)

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


def render(deployment: Deployment) -> dict[str, Any]:
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
