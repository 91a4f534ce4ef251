"""What every walk does alike: log in, publish, follow a job, deploy, find it all in the audit; and how a step waits."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
from modelworks.client.api import AsyncModelworks
from modelworks.client.connection import AdminFile
from modelworks.client.credentials import ClientCredentials
from modelworks.kit.errors import ModelworksError, Unavailable

T = TypeVar("T")

ROLES = ("publisher", "operator", "consumer", "auditor")

Verify = Callable[[Mapping[str, Any], str], int]
"""Checks an audit answer against the log's key; returns the number of entries that verified."""


class WalkFailed(Exception):
    """A step did not hold; the text says what was expected and what came."""


@dataclass
class Steps:
    """A suite, a client for each role, and what was found so far."""

    url: str
    admin: AdminFile
    _: KW_ONLY
    model: str
    patience_seconds: float = 120
    """How long a step outlasts a suite that went away and comes back."""
    found: dict[str, Any] = field(default_factory=dict)
    """Figures for the final table."""
    clients: dict[str, AsyncModelworks] = field(default_factory=dict)
    """A client for each role."""

    async def log_in(self) -> str:
        """Client credentials of the administrator, and a client of its own for each role."""
        self.clients["administrator"] = self._client(self.admin.client_id, self.admin.client_secret)
        for role in ROLES:
            body = {"client_id": f"demo-{role}-{uuid.uuid4().hex[:8]}", "roles": [role]}
            made = await self.patient(partial(self._post, "/api/v1/clients", body))
            self.clients[role] = self._client(made["client_id"], made["client_secret"])
            self.found[f"client {role}"] = made["client_id"]
        return f"administrator and {len(ROLES)} clients, one a role"

    async def publish_files(self, files: Mapping[str, Path], message: str) -> str:
        """Create the repository, unless it is there, and commit the files; returns the revision."""
        publisher = self.clients["publisher"]
        try:
            await self.patient(lambda: publisher.create_repository(self.model))
        except ModelworksError as error:
            if error.status != 409:
                raise
        puts = {path: await self.patient(partial(publisher.upload, self.model, file)) for path, file in files.items()}
        key = f"demo-{uuid.uuid4().hex}"
        commit = await self.patient(
            lambda: publisher.commit(self.model, message=message, puts=puts, idempotency_key=key)
        )
        return commit.revision

    async def follow(self, job: Mapping[str, Any], progress: Callable[[str], None]) -> Mapping[str, Any]:
        """Wait until an optimization has succeeded, and check that `recommended` is where its verdict says."""
        operator = self.clients["operator"]
        while job["status"] in ("queued", "running"):
            progress(f"{job['status']} {job.get('stage') or ''}")
            job = await self.patient(partial(operator.optimization, job["id"], wait_seconds=2))
        if job["status"] != "succeeded":
            raise WalkFailed(f"optimization {job['id']} {job['status']}: {job.get('error')}")
        chosen = await self.patient(lambda: operator.ref(self.model, "tag", "recommended"))
        wanted = job["variant"]["revision"] if job["verdict"] == "promote" else job["revision"]
        if chosen != wanted:
            raise WalkFailed(f"verdict {job['verdict']} recommends {wanted}, but the tag points to {chosen}")
        return job

    async def serve(self, ref: str) -> Mapping[str, Any]:
        """Deploy a ref and wait until it is ready."""
        operator = self.clients["operator"]
        deployment = await self.patient(lambda: operator.deploy(self.model, ref=ref))
        deadline = time.monotonic() + self.patience_seconds
        while deployment["status"] == "loading" and time.monotonic() < deadline:
            deployment = await self.patient(lambda: operator.deployment(self.model, wait_seconds=5))
        if deployment["status"] != "ready":
            raise WalkFailed(f"the deployment is {deployment['status']}: {deployment.get('error')}")
        return deployment

    async def find_in_audit(self, expected: Sequence[tuple[str, str | None]], verify: Verify) -> int:
        """Find an entry of each type by its actor (None: anyone); returns the number of proofs that verified."""
        auditor = self.clients["auditor"]
        key = await self.patient(lambda: auditor.text("/api/v1/audit/key"))
        proofs = 0
        for type_, actor in expected:
            filters = {"type": type_, **({"actor": actor} if actor else {})}

            async def look(filters: Mapping[str, str] = filters) -> Mapping[str, Any] | None:
                page = await auditor.audit(limit=20, **filters)
                return {"items": list(page.items), **page.extra} if page.items else None

            answer = await self.eventually(look, f"an audit entry {type_} by {actor or 'anyone'}")
            proofs += verify(answer, key)
        return proofs

    async def close(self) -> None:
        """Close all clients."""
        for client in self.clients.values():
            await client.close()

    # --- how steps wait -----------------------------------------------------------------------------

    async def patient(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until the suite answers: it may be killed and started again in the middle of a step."""
        deadline = time.monotonic() + self.patience_seconds
        while True:
            try:
                return await call()
            except (Unavailable, httpx.HTTPError) as error:
                if time.monotonic() > deadline:
                    raise WalkFailed(
                        f"the suite did not come back within {self.patience_seconds:.0f} s: {error}"
                    ) from error
                await asyncio.sleep(0.3)

    async def eventually(self, look: Callable[[], Awaitable[T | None]], what: str) -> T:
        """Look until there is something."""
        deadline = time.monotonic() + self.patience_seconds
        while True:
            seen = await self.patient(look)
            if seen is not None:
                return seen
            if time.monotonic() > deadline:
                raise WalkFailed(f"{what} did not appear within {self.patience_seconds:.0f} s")
            await asyncio.sleep(0.1)

    # --- parts ---------------------------------------------------------------------------------------

    def _client(self, client_id: str, secret: str) -> AsyncModelworks:
        token_url = f"{self.url}/oauth/token"
        return AsyncModelworks(
            self.url, ClientCredentials(token_url=token_url, client_id=client_id, client_secret=secret)
        )

    async def _post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self.clients["administrator"].http.json("POST", path, json=body)  # type: ignore[no-any-return]
