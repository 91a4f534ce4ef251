"""Composition root of the optimizer: the only file that names concrete adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from modelworks.client import AsyncModelworks, ClientCredentials
from modelworks.kit.http import create_app
from modelworks.kit.platform import Platform
from modelworks.kit.service import Service, run_service, settings_or_exit
from modelworks.kit.settings import PlatformSettings
from modelworks.optimizer.access import Access
from modelworks.optimizer.adapters.jobs_outbox import SCHEMA, OutboxJobs
from modelworks.optimizer.adapters.registry_http import HttpModelRepository
from modelworks.optimizer.adapters.workshop_subprocess import SubprocessWorkshop
from modelworks.optimizer.api import router
from modelworks.optimizer.handlers import Handlers
from modelworks.optimizer.ports import ModelRepository, Workshop
from modelworks.optimizer.runner import Limits, Runner
from modelworks.optimizer.settings import OptimizerSettings
from modelworks.optimizer.stream import Stream
from modelworks.stores.outbox import Outbox
from modelworks.stores.refusals import Refusals
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import Stores, open_stores


def build(
    stores: Stores,
    settings: OptimizerSettings,
    platform: Platform,
    *,
    owns_stores: bool = False,
    models: ModelRepository | None = None,
    workshop: Workshop | None = None,
) -> Service:
    """The service on these stores.

    Args:
        owns_stores: close them at the end.
        models: the registry; None: over HTTP, as the settings say.
        workshop: where passes run; None: in processes of their own.
    """
    models = models or _registry(settings)
    workshop = workshop or SubprocessWorkshop(settings.work_folder, seconds_max=settings.worker_seconds_max)
    outbox = Outbox(
        documents=stores.documents, bus=stores.bus, schema=SCHEMA, source="/services/optimizer", clock=platform.clock
    )
    jobs = OutboxJobs(outbox, stores.documents)
    handlers = Handlers(
        jobs, models, clock=platform.clock, branches=settings.branches, recipes=settings.recipes,
        watch_ms=settings.watch_ms, waiters_max=settings.waiters_max,
    )  # fmt: skip
    limits = Limits(
        effort=settings.effort, download_bytes_max=settings.download_bytes_max,
        memory_bytes_max=settings.worker_memory_bytes_max, crashes_max=settings.crashes_max,
        progress_ms_min=settings.progress_ms_min, watch_ms=settings.watch_ms,
    )  # fmt: skip
    runner = Runner(jobs, models, workshop, clock=platform.clock, limits=limits)
    stream = Stream(stores.bus, handlers, runner, platform, in_flight_max=settings.in_flight_max)
    record = Refusals(stores.bus, service="optimizer", clock=platform.clock)
    checks = {"documents": stores.documents.check, "bus": stores.bus.check, "consumers": stream.check}
    app = create_app(
        "optimizer", platform, routers=[router(handlers, Access(platform, models, record))], record=record, checks=checks,
        description="Builds smaller and faster variants of models, measures them, and says whether they are worth having.",
    )  # fmt: skip

    @asynccontextmanager
    async def run() -> AsyncIterator[None]:
        await outbox.ensure()
        try:
            async with outbox.sweeping(), stream.consuming():
                yield
        finally:
            await models.close()
            if owns_stores:
                await stores.close()

    return Service("optimizer", app, run, checks)


def _registry(settings: OptimizerSettings) -> ModelRepository:
    token = ClientCredentials(
        token_url=settings.token_url or settings.registry_url.rstrip("/") + "/oauth/token",
        client_id=settings.client_id,
        client_secret=settings.client_secret.get_secret_value(),
    )
    return HttpModelRepository(AsyncModelworks(settings.registry_url, token, timeout_seconds=settings.timeout_seconds))


def main() -> None:
    """Run the optimizer in a process of its own."""
    settings = settings_or_exit("optimizer", OptimizerSettings)

    def compose(platform: Platform) -> Service:
        environment = settings_or_exit("optimizer", PlatformSettings).environment
        stores = open_stores(settings_or_exit("optimizer", StoresSettings), environment=environment)
        return build(stores, settings, platform, owns_stores=True)

    run_service("optimizer", settings, compose)
