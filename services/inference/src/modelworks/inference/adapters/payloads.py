"""V2 bodies of jobs in the object store."""

from __future__ import annotations

import asyncio
import hashlib

from modelworks.inference.domain import Payload
from modelworks.kit.errors import InvalidInput
from modelworks.stores.objects.port import Objects

_OFFLOAD_BYTES = 1024 * 1024
"""Hashing this much takes about a millisecond."""


class ObjectPayloads:
    """`inference/jobs/<job>/<name>`."""

    def __init__(self, objects: Objects, *, bytes_max: int) -> None:
        self._objects = objects
        self._bytes_max = bytes_max

    async def put(self, job: str, name: str, body: bytes, header_bytes: int | None) -> Payload:
        """See Payloads."""
        payload = await self.describe(job, name, body, header_bytes)
        await self._objects.put(payload.key, body, sha256=payload.sha256, size_bytes=payload.size_bytes)
        return payload

    async def describe(self, job: str, name: str, body: bytes, header_bytes: int | None) -> Payload:
        """See Payloads."""
        digest = await _digest(body)
        return Payload(
            key=f"inference/jobs/{job}/{name}", sha256=digest, size_bytes=len(body), header_bytes=header_bytes
        )

    async def read(self, payload: Payload) -> bytes:
        """See Payloads."""
        body = await self._objects.read(payload.key, bytes_max=max(self._bytes_max, payload.size_bytes))
        if await _digest(body) != payload.sha256:
            raise InvalidInput(f"{payload.key} no longer has its sha256 {payload.sha256}: the object store damaged it")
        return body

    async def delete(self, payload: Payload) -> None:
        """See Payloads."""
        await self._objects.delete(payload.key)


async def _digest(body: bytes) -> str:
    if len(body) < _OFFLOAD_BYTES:
        return hashlib.sha256(body).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(body).hexdigest())
