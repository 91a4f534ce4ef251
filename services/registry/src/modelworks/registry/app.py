"""Composition root of the registry: the only file that names concrete adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from modelworks.kit.http import create_app
from modelworks.kit.platform import Platform
from modelworks.kit.service import Service, run_service, settings_or_exit
from modelworks.kit.settings import PlatformSettings
from modelworks.registry.access import SERVICE, Access
from modelworks.registry.adapters.announcer import BusAnnouncer
from modelworks.registry.adapters.blobs import ObjectBlobs
from modelworks.registry.adapters.documents import DocumentRepositories
from modelworks.registry.adapters.history import ObjectHistory
from modelworks.registry.api import routers
from modelworks.registry.handlers import Handlers
from modelworks.registry.metrics import Metrics
from modelworks.registry.settings import RegistrySettings
from modelworks.registry.stream import running
from modelworks.registry.transfers import Transfers
from modelworks.stores.refusals import Refusals
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import Stores, open_stores

DESCRIPTION = "Git for models: repositories, content-addressed commits, branches and tags, verified transfers."


def build(stores: Stores, settings: RegistrySettings, platform: Platform) -> Service:
    """The registry over these stores. Does no I/O."""
    metrics = Metrics(platform.telemetry.metrics)
    blobs = ObjectBlobs(stores.objects)
    announcer = BusAnnouncer(stores.bus, platform.clock)
    repositories = DocumentRepositories(documents=stores.documents, bus=stores.bus, clock=platform.clock)
    handlers = Handlers(
        repositories=repositories,
        history=ObjectHistory(stores.objects, cache_entries_max=settings.cache_entries_max),
        blobs=blobs, announcer=announcer, settings=settings, metrics=metrics, clock=platform.clock,
    )  # fmt: skip
    transfers = Transfers(blobs=blobs, announcer=announcer, settings=settings, metrics=metrics)
    record = Refusals(stores.bus, service=SERVICE, clock=platform.clock)
    access = Access(policy=platform.policy, handlers=handlers, record=record, metrics=metrics)
    checks = {"documents": stores.documents.check, "objects": stores.objects.check, "bus": stores.bus.check}
    app = create_app(
        SERVICE, platform, record=record, checks=checks, description=DESCRIPTION,
        routers=routers(handlers=handlers, transfers=transfers, access=access, settings=settings),
    )  # fmt: skip
    if stores.presigned is not None:
        app.mount("/objects", stores.presigned.presigned_app())

    @asynccontextmanager
    async def run() -> AsyncIterator[None]:
        async with running(repositories, every=timedelta(milliseconds=settings.sweep_ms)):
            yield

    return Service(name=SERVICE, app=app, run=run, checks=checks)


def main() -> None:
    """The registry in a process of its own."""
    settings = settings_or_exit("registry", RegistrySettings)

    def alone(platform: Platform) -> Service:
        environment = settings_or_exit("registry", PlatformSettings).environment
        stores = open_stores(settings_or_exit("registry", StoresSettings), environment=environment)
        service = build(stores, settings, platform)

        @asynccontextmanager
        async def run() -> AsyncIterator[None]:
            try:
                async with service.run():
                    yield
            finally:
                await stores.close()

        return Service(name=service.name, app=service.app, run=run, checks=service.checks)

    run_service(SERVICE, settings, alone)
