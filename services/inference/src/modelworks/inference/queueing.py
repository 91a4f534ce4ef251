"""The queued mouth: jobs are written down before anybody is told, and everything about them is read from there."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from modelworks.events import PredictionRequested
from modelworks.inference.changes import Changes
from modelworks.inference.domain import Change, Job, Lane, cancel, enqueue, fail, failure, job_id
from modelworks.inference.engine.v2 import InferBody, Limits, decode, decode_answer, encode
from modelworks.inference.ports import Cancellations, JobPage, Jobs, Payloads, Versioned
from modelworks.inference.references import InputReferences
from modelworks.kit.clock import Clock
from modelworks.kit.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    ModelworksError,
    NotFound,
    StoreUnavailable,
    VersionConflict,
)
from modelworks.kit.logging import get_logger

log = get_logger("jobs")

_SAVE_ATTEMPTS = 10
_OFFLOAD_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Submission:
    """A prediction to be queued."""

    model: str
    ref: str | None
    lane: Lane
    owner: str
    body: bytes
    """V2 request."""
    header_bytes: int | None
    timeout: timedelta | None = None
    key: str | None = None
    """The caller's name for it: the same key gives the same job."""


class Queueing:
    """Commands on jobs."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        payloads: Payloads,
        references: InputReferences,
        cancellations: Cancellations,
        changes: Changes,
        limits: Limits,
        timeout_default: timedelta,
        clock: Clock,
    ) -> None:
        self._jobs = jobs
        self._payloads = payloads
        self._references = references
        self._cancellations = cancellations
        self._changes = changes
        self._limits = limits
        self._timeout_default = timeout_default
        self._clock = clock

    async def submit(self, asked: Submission) -> Job:
        """Queue a prediction; returns once it is durable.

        Raises:
            InvalidInput, TooLarge: the body is no V2 request.
            Conflict: the key was used for another prediction.
        """
        body = await self._checked(asked.body, asked.header_bytes)
        id = job_id("key", asked.owner, asked.key) if asked.key else uuid.uuid4().hex
        at = self._clock()
        payload = None
        if asked.key:
            known = await self._jobs.get(id)
            if known is not None:
                return await self._same(known.state, asked)
        payload = await self._payloads.put(id, "inputs", asked.body, asked.header_bytes)
        job = Job(
            id=id, model=asked.model, ref=asked.ref, lane=asked.lane, owner=asked.owner, inputs=payload,
            binary=_binary(body, asked.header_bytes), created_at=at, deadline=at + (asked.timeout or self._timeout_default),
        )  # fmt: skip
        try:
            saved = await self._jobs.save(enqueue(job), expected=None, actor=asked.owner)
        except VersionConflict:
            # The same key from the same owner, at the same moment.
            raced = await self._jobs.get(id)
            if raced is None:
                raise
            return await self._same(raced.state, asked)
        return saved.state

    async def get(self, id: str) -> Job:
        """A job.

        Raises:
            NotFound: there is none, or it ended so long ago that it was deleted.
        """
        return (await self._stored(id)).state

    async def find(
        self, *, owner: str | None, model: str | None, status: str | None, limit: int, cursor: str | None
    ) -> JobPage:
        """Jobs, newest first; `owner` None: of everybody."""
        return await self._jobs.find(owner=owner, model=model, status=status, limit=limit, cursor=cursor)

    async def cancel(self, id: str, *, by: str) -> Job:
        """Give a job up, waiting or running. What has ended stays as it is.

        Raises:
            NotFound: there is none.
            Conflict: it has ended another way.
        """
        at = self._clock()
        job = await self._change(id, lambda job: cancel(job, at=at), actor=by)
        try:
            await self._cancellations.announce(id)
        except StoreUnavailable as error:
            # It is cancelled all the same: a run that goes on is dropped at its end.
            log.warning("job.cancel-not-announced", job=id, error=str(error))
        self._changes.notify(f"cancel {id}")
        self._changes.notify(f"job {id}")
        return job

    async def result(self, job: Job, *, binary: bool | None) -> tuple[bytes, int | None]:
        """The output of a job that succeeded, and the length of its JSON header (None: it is all JSON).

        Args:
            binary: the wanted form; None: as it is stored.

        Raises:
            Conflict: it has no result: it has not ended, or ended otherwise.
            InvalidInput: the wanted form cannot hold it.
        """
        if job.output is None:
            why = f": {job.error.message}" if job.error else ""
            raise Conflict(f"job {job.id} has no result: it is {job.status}{why}", status=job.status)
        body = await self._payloads.read(job.output)
        if binary is None or binary == (job.output.header_bytes is not None):
            return body, job.output.header_bytes
        stored = job.output.header_bytes

        def convert() -> tuple[bytes, int | None]:
            header, outputs = decode_answer(body, stored, self._limits)
            return encode(
                outputs, model=header["model_name"], version=header["model_version"], id=header.get("id", ""),
                binary={tensor.name: bool(binary) for tensor in outputs},
            )  # fmt: skip

        return await asyncio.to_thread(convert) if len(body) >= _OFFLOAD_BYTES else convert()

    async def accept_event(
        self, event: PredictionRequested, *, id: str, source: str, actor: str, time: datetime
    ) -> None:
        """An upstream system asks by event. Told again, it changes nothing; what cannot be done is answered as failed."""
        job = job_id("event", source, id)
        if await self._jobs.get(job) is not None:
            return
        timeout = timedelta(milliseconds=event.timeout_ms) if event.timeout_ms else self._timeout_default
        fresh = Job(
            id=job, model=event.model, ref=event.ref, lane=event.lane, owner=actor, request=id, inputs=None,
            created_at=self._clock(), deadline=time + timeout,
        )  # fmt: skip
        try:
            raw, header_bytes = await self._inputs(event, actor)
            body = await self._checked(raw, header_bytes)
        except ModelworksError as error:
            if error.transient:
                raise
            change = fail(fresh, failure(error), at=self._clock())
        else:
            payload = await self._payloads.put(job, "inputs", raw, header_bytes)
            read = {"inputs": payload, "binary": _binary(body, header_bytes)}
            change = enqueue(fresh.model_copy(update=read))
        try:
            await self._jobs.save(change, expected=None, actor=actor)
        except VersionConflict:
            # Another member got the same event: it has the job.
            return
        self._changes.notify(f"job {job}")

    async def _inputs(self, event: PredictionRequested, actor: str) -> tuple[bytes, int | None]:
        if (event.inputs is None) == (event.inputs_ref is None):
            raise InvalidInput("exactly one of 'inputs' and 'inputs_ref' must be given")
        if event.inputs_ref is not None:
            return await self._references.read(event.inputs_ref, actor)
        assert event.inputs is not None
        entries = [tensor.model_dump() for tensor in event.inputs]
        return json.dumps({"inputs": entries}, separators=(",", ":")).encode(), None

    async def _checked(self, body: bytes, header_bytes: int | None) -> InferBody:
        """The body, once it is sure that it can be read; whether it suits the model is known when the model is."""
        if header_bytes == 0:
            raise InvalidInput(
                "a raw request (Inference-Header-Content-Length: 0) cannot be queued: send a JSON header"
            )
        if header_bytes is None and len(body) >= _OFFLOAD_BYTES:
            return await asyncio.to_thread(decode, body, header_bytes, self._limits)
        return decode(body, header_bytes, self._limits)

    async def _same(self, job: Job, asked: Submission) -> Job:
        """The job that a key named before, when it is the same prediction."""
        digest = (await self._payloads.describe(job.id, "inputs", asked.body, asked.header_bytes)).sha256
        same = (job.model, job.ref, job.lane) == (asked.model, asked.ref, asked.lane)
        if not same or job.inputs is None or job.inputs.sha256 != digest:
            raise Conflict(f"the Idempotency-Key was used for another prediction, job {job.id}: take a new key")
        return job

    async def _stored(self, id: str) -> Versioned[Job]:
        found = await self._jobs.get(id)
        if found is None:
            raise NotFound(f"no job {id!r}: it never was, or it ended long ago and was deleted")
        return found

    async def _change(self, id: str, decide: Callable[[Job], Change[Job]], *, actor: str) -> Job:
        for _ in range(_SAVE_ATTEMPTS):
            found = await self._stored(id)
            change = decide(found.state)
            if change.state == found.state and not change.events:
                return found.state
            try:
                return (await self._jobs.save(change, expected=found.version, actor=actor)).state
            except VersionConflict:
                await asyncio.sleep(random.uniform(0, 0.02))  # noqa: S311 - to part from the others, not a secret
        raise Conflict(f"job {id} is being changed by many at once: try again")


def remaining_seconds(job: Job, now: datetime) -> float | None:
    """Time to the deadline; None without one.

    Raises:
        DeadlineExceeded: it is over.
    """
    if job.deadline is None:
        return None
    left = (job.deadline - now).total_seconds()
    if left <= 0:
        raise DeadlineExceeded(f"the deadline of job {job.id} passed {-left:.1f} s ago")
    return left


def _binary(body: InferBody, header_bytes: int | None) -> bool:
    return body.binary_outputs or (header_bytes is not None and not body.outputs)
