"""The walk: one method a step, each leaving what the next one needs and raising WalkFailed when a step does not hold."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from modelworks.client.api import AsyncModelworks
from modelworks.client.demo.magika import INPUT, OUTPUT, SUFFIXES, Magika, features, write_repository
from modelworks.client.demo.steps import ROLES, Steps, Verify, WalkFailed
from modelworks.client.folders import files_of
from modelworks.client.tensors import Tensor, decode_arrays, encode_request
from modelworks.kit.errors import Forbidden, InvalidInput, ModelworksError, NotFound, Unauthenticated, Unavailable

RESULT_TOPIC = "inference.prediction-completed.v1"
_RIGHT_MIN = 0.9
"""Share of files whose type must be told as their suffix promises: the model is not perfect, and suffixes lie."""


@dataclass
class Walk(Steps):
    """The steps and what they found."""

    magika: Magika
    samples: Sequence[Path]
    work: Path
    """Empty folder for what is published."""
    model: str = field(default="demo/magika", kw_only=True)

    async def publish(self) -> str:
        """Create a repository and push the model with its card, training parameters and log."""
        folder = self.work / "repository"
        await asyncio.to_thread(write_repository, self.magika, self.samples, folder)
        files = files_of(folder)
        self.found["revision"] = await self.publish_files(files, "Publish magika")
        return f"{self.model}@{self.found['revision'][:12]}, {len(files)} files"

    async def optimize(self, progress: Callable[[str], None]) -> str:
        """Wait for the job that the commit's event started, and read its report."""
        operator = self.clients["operator"]
        job = await self.eventually(
            lambda: self._job_of(operator, self.found["revision"]), "an optimization of the commit"
        )
        job = self.found["job"] = await self.follow(job, progress)
        return f"verdict {job['verdict']}: {job['report'].get('summary', '')}"

    async def deploy(self) -> str:
        """Serve the recommended revision."""
        self.found["deployment"] = await self.serve("recommended")
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

    async def audit(self, verify: Verify) -> str:
        """Find who did what; every hit's proof verifies. Refusals are there too.

        Args:
            verify: checks an answer against the log's key; returns the number of entries that verified.
        """
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
        proofs = self.found["proofs"] = await self.find_in_audit(expected, verify)
        return f"{len(expected)} kinds of acts found, {proofs} proofs verified"

    async def _refused(self, call: Callable[[], Awaitable[object]], kind: type[ModelworksError], what: str) -> None:
        try:
            await self.patient(call)
        except kind:
            return
        except Unauthenticated as error:
            raise WalkFailed(f"{what} was refused for the wrong reason: {error}") from error
        raise WalkFailed(f"{what} was not refused")

    # --- parts ---------------------------------------------------------------------------------------

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
