"""The walk: one method a step, each leaving what the next one needs and raising WalkFailed when a step does not hold."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import numpy.typing as npt
from modelworks.client.api import AsyncModelworks
from modelworks.client.connection import AdminFile
from modelworks.client.credentials import ClientCredentials
from modelworks.client.demo.magika import INPUT, OUTPUT, SUFFIXES, Magika, features, write_repository
from modelworks.client.folders import files_of
from modelworks.client.tensors import Tensor, decode_arrays, encode_request
from modelworks.kit.errors import Forbidden, InvalidInput, ModelworksError, NotFound, Unauthenticated, Unavailable

T = TypeVar("T")

RESULT_TOPIC = "inference.prediction-completed.v1"
ROLES = ("publisher", "operator", "consumer", "auditor")
_RIGHT_MIN = 0.9
"""Share of files whose type must be told as their suffix promises: the model is not perfect, and suffixes lie."""


class WalkFailed(Exception):
    """A step did not hold; the text says what was expected and what came."""


@dataclass
class Walk:
    """The steps and what they found."""

    url: str
    admin: AdminFile
    magika: Magika
    samples: Sequence[Path]
    work: Path
    """Empty folder for what is published."""
    model: str = "demo/magika"
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

    async def publish(self) -> str:
        """Create a repository and push the model with its card, training parameters and log."""
        folder = self.work / "repository"
        await asyncio.to_thread(write_repository, self.magika, self.samples, folder)
        publisher = self.clients["publisher"]
        try:
            await self.patient(lambda: publisher.create_repository(self.model))
        except ModelworksError as error:
            if error.status != 409:
                raise
        files = files_of(folder)
        puts = {path: await self.patient(partial(publisher.upload, self.model, file)) for path, file in files.items()}
        key = f"demo-{uuid.uuid4().hex}"
        commit = await self.patient(
            lambda: publisher.commit(self.model, message="Publish magika", puts=puts, idempotency_key=key)
        )
        self.found["revision"] = commit.revision
        return f"{self.model}@{commit.revision[:12]}, {len(files)} files"

    async def optimize(self, progress: Callable[[str], None]) -> str:
        """Wait for the job that the commit's event started, and read its report."""
        operator = self.clients["operator"]
        job = await self.eventually(
            lambda: self._job_of(operator, self.found["revision"]), "an optimization of the commit"
        )
        while job["status"] in ("queued", "running"):
            progress(f"{job['status']} {job.get('stage') or ''}")
            job = await self.patient(partial(operator.optimization, job["id"], wait_seconds=2))
        if job["status"] != "succeeded":
            raise WalkFailed(f"optimization {job['id']} {job['status']}: {job.get('error')}")
        self.found["job"] = job
        chosen = await self.patient(lambda: operator.ref(self.model, "tag", "recommended"))
        wanted = job["variant"]["revision"] if job["verdict"] == "promote" else self.found["revision"]
        if chosen != wanted:
            raise WalkFailed(f"verdict {job['verdict']} recommends {wanted}, but the tag points to {chosen}")
        return f"verdict {job['verdict']}: {job['report'].get('summary', '')}"

    async def deploy(self) -> str:
        """Serve the recommended revision."""
        operator = self.clients["operator"]
        deployment = await self.patient(lambda: operator.deploy(self.model, ref="recommended"))
        deadline = time.monotonic() + self.patience_seconds
        while deployment["status"] == "loading" and time.monotonic() < deadline:
            deployment = await self.patient(lambda: operator.deployment(self.model, wait_seconds=5))
        if deployment["status"] != "ready":
            raise WalkFailed(f"the deployment is {deployment['status']}: {deployment.get('error')}")
        self.found["deployment"] = deployment
        return f"{self.model}@recommended is served"

    async def predict(self) -> str:
        """Tell the types of real files through the Open Inference Protocol, and check them."""
        rows = np.stack([features(path.read_bytes()) for path in self.samples])
        started = time.perf_counter()
        scores = await self.patient(lambda: self._infer(rows))
        self.found["predict_ms"] = 1000 * (time.perf_counter() - started)
        told = [self.magika.labels[index] for index in scores.argmax(axis=1)]
        right = [label in SUFFIXES[path.suffix] for label, path in zip(told, self.samples, strict=True)]
        self.found["types"] = dict(zip((str(path) for path in self.samples), told, strict=True))
        if sum(right) < _RIGHT_MIN * len(right):
            wrong = [f"{p.name}: {t}" for p, t, ok in zip(self.samples, told, right, strict=True) if not ok][:5]
            raise WalkFailed(f"only {sum(right)} of {len(right)} file types are right, for example {', '.join(wrong)}")
        return f"{sum(right)} of {len(right)} file types right"

    async def answer_event(self, send: Callable[[str, bytes], Awaitable[None]] | None = None) -> str:
        """An upstream system asks by event and is answered by event.

        Args:
            send: how the event (its id and body) gets to the bus; None sends it over HTTP as the consumer.
        """
        consumer = self.clients["consumer"] if send is None else self.clients["operator"]
        row = features(self.samples[0].read_bytes())
        tensor = {"name": INPUT, "datatype": "INT32", "shape": [1, len(row)], "data": row.tolist()}
        body = json.dumps({"model": self.model, "inputs": [tensor], "lane": "interactive"}).encode()
        request = uuid.uuid4().hex
        async with self._listen(consumer) as results:
            if send is None:
                await self.patient(
                    lambda: consumer.send_event(
                        type="ingest.prediction-requested.v1", id=request, source="/demo/upstream", data=body
                    )
                )
            else:
                await send(request, body)
            event = await asyncio.wait_for(_answer_to(results, request), self.patience_seconds)
        if event["status"] != "succeeded":
            raise WalkFailed(f"the result event says {event['status']}: {event.get('error')}")
        result = await self.patient(lambda: consumer.job_result(event["job"]))
        scores = next(output["data"] for output in result["outputs"] if output["name"] == OUTPUT)
        told = self.magika.labels[int(np.argmax(scores))]
        expected = self.found["types"][str(self.samples[0])]
        if told != expected:
            raise WalkFailed(f"by event the type of {self.samples[0].name} is {told}, directly it was {expected}")
        self.found["event"] = event
        return f"{self.samples[0].name} is {told}; queued {event['queue_ms']:.0f} ms, computed {event['compute_ms']:.1f} ms"

    async def refuse(self) -> str:
        """No token, the wrong role, a corrupted upload: each is refused."""
        publisher, consumer = self.clients["publisher"], self.clients["consumer"]
        async with httpx.AsyncClient(base_url=self.url) as stranger:
            answer = await stranger.get("/api/v1/repositories")
        if answer.status_code != 401:
            raise WalkFailed(f"without a token the answer was {answer.status_code}, not 401")
        await self._refused(
            lambda: consumer.create_repository("demo/forbidden"), Forbidden, "a consumer creating a repository"
        )
        path = f"/api/v1/repositories/{self.model}/blobs/{'0' * 64}"
        await self._refused(
            lambda: publisher.http.json("PUT", path, content=b"not these bytes"), InvalidInput, "a corrupted upload"
        )
        await self._refused(lambda: publisher.http.json("GET", path), NotFound, "reading what was refused")
        return "no token: 401; wrong role: 403; corrupted upload: 400"

    async def audit(self, verify: Callable[[Mapping[str, Any], str], int]) -> str:
        """Find who did what; every hit's proof verifies. Refusals are there too.

        Args:
            verify: checks an answer against the log's key; returns the number of entries that verified.
        """
        auditor = self.clients["auditor"]
        key = await self.patient(lambda: auditor.text("/api/v1/audit/key"))
        me = {role: self.found[f"client {role}"] for role in ROLES}
        expected = [
            ("registry.revision-committed.v1", me["publisher"]),
            ("optimizer.variant-built.v1", None),
            ("inference.model-loaded.v1", None),
            ("inference.deployment-requested.v1", me["operator"]),
            (RESULT_TOPIC, me["consumer"]),
            ("auth.access-denied.v1", "anonymous"),
            ("auth.access-denied.v1", me["consumer"]),
            ("registry.upload-refused.v1", me["publisher"]),
        ]
        proofs = 0
        for type_, actor in expected:
            filters = {"type": type_, **({"actor": actor} if actor else {})}

            async def look(filters: Mapping[str, str] = filters) -> Mapping[str, Any] | None:
                page = await auditor.audit(limit=20, **filters)
                return {"items": list(page.items), **page.extra} if page.items else None

            answer = await self.eventually(look, f"an audit entry {type_} by {actor or 'anyone'}")
            proofs += verify(answer, key)
        self.found["proofs"] = proofs
        return f"{len(expected)} kinds of acts found, {proofs} proofs verified"

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

    async def _refused(self, call: Callable[[], Awaitable[object]], kind: type[ModelworksError], what: str) -> None:
        try:
            await self.patient(call)
        except kind:
            return
        except Unauthenticated as error:
            raise WalkFailed(f"{what} was refused for the wrong reason: {error}") from error
        raise WalkFailed(f"{what} was not refused")

    # --- parts ---------------------------------------------------------------------------------------

    def _client(self, client_id: str, secret: str) -> AsyncModelworks:
        token_url = f"{self.url}/oauth/token"
        return AsyncModelworks(
            self.url, ClientCredentials(token_url=token_url, client_id=client_id, client_secret=secret)
        )

    async def _post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self.clients["administrator"].http.json("POST", path, json=body)  # type: ignore[no-any-return]

    async def _job_of(self, client: AsyncModelworks, revision: str) -> Mapping[str, Any] | None:
        page = await client.optimizations(model=self.model)
        return next((job for job in page.items if job["revision"] == revision), None)

    async def _infer(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        body, header_bytes = encode_request([Tensor(INPUT, rows)])
        answer = await self.clients["consumer"].predict_binary(self.model, body, header_bytes)
        return decode_arrays(*answer)[OUTPUT]

    @asynccontextmanager
    async def _listen(self, client: AsyncModelworks) -> AsyncIterator[AsyncIterator[Mapping[str, Any]]]:
        """Results from now on, as server-sent events; goes on after the last one when the suite went away."""
        position: dict[str, str] = {}
        opened = asyncio.Event()
        queue: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue(1000)

        async def read() -> None:
            while True:
                try:
                    async with client.http.stream(
                        "GET", "/api/v1/events/stream", params={"topic": RESULT_TOPIC}, headers=position
                    ) as answer:
                        async for line in answer.aiter_lines():
                            opened.set()
                            if line.startswith("id: "):
                                position["Last-Event-ID"] = line[4:]
                            elif line.startswith("data: "):
                                await queue.put(json.loads(line[6:]))
                except (Unavailable, httpx.HTTPError):
                    await asyncio.sleep(0.3)

        async def results() -> AsyncIterator[Mapping[str, Any]]:
            while True:
                yield await queue.get()

        reading = asyncio.create_task(read())
        try:
            await asyncio.wait_for(opened.wait(), self.patience_seconds)
            yield results()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def _answer_to(results: AsyncIterator[Mapping[str, Any]], request: str) -> Mapping[str, Any]:
    async for event in results:
        if event["data"].get("request") == request:
            return event["data"]  # type: ignore[no-any-return]
    raise WalkFailed("the stream of results ended")
