"""A running registry over an empty embedded column, and a client that speaks to it in process."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from modelworks.events import BY_TOPIC, Envelope
from modelworks.kit.platform import Platform
from modelworks.kit.service import Service
from modelworks.registry.app import build
from modelworks.registry.settings import RegistrySettings
from modelworks.stores import Delivery, Subscription
from modelworks.stores.outbox import envelope_of
from modelworks.stores.stores import Stores

ROOT = "/api/v1/repositories"


@dataclass(frozen=True)
class Hub:
    """What tests say to a registry, in a sentence each."""

    http: httpx.AsyncClient
    service: Service
    stores: Stores

    async def create(self, name: str = "acme/magika", **more: Any) -> Mapping[str, Any]:
        answer = await self.http.post(ROOT, json={"name": name, **more})
        assert answer.status_code == 201, answer.text
        return answer.json()  # type: ignore[no-any-return]

    async def upload(self, data: bytes, name: str = "acme/magika") -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        answer = await self.http.put(f"{ROOT}/{name}/blobs/{sha256}", content=data)
        assert answer.status_code in (200, 201), answer.text
        return sha256

    async def commit(self, files: Mapping[str, bytes | None], name: str = "acme/magika", **more: Any) -> httpx.Response:
        """Upload and commit files; None deletes."""
        operations = [
            {"op": "delete", "path": path}
            if data is None
            else {"op": "put", "path": path, "sha256": await self.upload(data, name)}
            for path, data in files.items()
        ]
        body = {"message": "change", "operations": operations, **more}
        return await self.http.post(f"{ROOT}/{name}/commits", json=body)

    async def committed(self, files: Mapping[str, bytes | None], name: str = "acme/magika", **more: Any) -> str:
        answer = await self.commit(files, name, **more)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["revision"])

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.http.get(f"{ROOT}/{path}", **more)


@pytest.fixture
def settings() -> RegistrySettings:
    return RegistrySettings()


@pytest.fixture
async def hub(stores: Stores, platform: Platform, issuer: Any, settings: RegistrySettings) -> AsyncIterator[Hub]:
    """A registry, and an administrator named `tester` who speaks to it."""
    service = build(stores, settings, platform)
    async with service.run(), client_of(service, issuer.headers()) as http:
        yield Hub(http, service, stores)


@asynccontextmanager
async def client_of(service: Service, headers: Mapping[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://registry.test", headers=headers) as http:
        yield http


@pytest.fixture
def speak(hub: Hub, issuer: Any) -> Callable[..., Any]:
    """`async with speak("bob", "publisher") as http`: the same registry as somebody else."""
    return lambda subject, *roles, **more: client_of(hub.service, issuer.headers(subject, *roles, **more))


@pytest.fixture
async def heard(stores: Stores) -> AsyncIterator[list[Envelope]]:
    """Every event of the registry and every refusal, in the order of their arrival."""
    envelopes: list[Envelope] = []

    async def keep(deliveries: Sequence[Delivery]) -> None:
        envelopes.extend(envelope_of(delivery.message) for delivery in deliveries)

    topics = tuple(topic for topic in BY_TOPIC if topic.startswith(("registry.", "auth.access-denied")))
    consumer = await stores.bus.subscribe(Subscription(group="test", topics=topics, handler=keep))
    yield envelopes
    await consumer.stop()
