"""Composition root of inference: the only file that names concrete adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from modelworks.client import AsyncModelworks, ClientCredentials
from modelworks.inference.adapters.cache import FolderCache
from modelworks.inference.adapters.cancellations import KeyValueCancellations
from modelworks.inference.adapters.completions import BufferedCompletions
from modelworks.inference.adapters.documents import SOURCE, DocumentDeployments, DocumentJobs
from modelworks.inference.adapters.payloads import ObjectPayloads
from modelworks.inference.adapters.presence import KeyValuePresence
from modelworks.inference.adapters.registry import RegistrySource
from modelworks.inference.api import deployments_router, jobs_router
from modelworks.inference.changes import Changes
from modelworks.inference.domain import LANES, Lane
from modelworks.inference.engine.models import Models
from modelworks.inference.engine.scheduler import Bounds, Scheduler
from modelworks.inference.engine.session import SessionLoader
from modelworks.inference.engine.session_onnx import onnx_loader
from modelworks.inference.engine.v2 import Limits
from modelworks.inference.handlers import Deploying
from modelworks.inference.metrics import QueueMetrics, SchedulerMetrics, inference_metrics
from modelworks.inference.online import Online
from modelworks.inference.ports import ModelSource
from modelworks.inference.protocols import v2
from modelworks.inference.queueing import Queueing
from modelworks.inference.references import InputReferences
from modelworks.inference.retention import Retention
from modelworks.inference.runner import Runner, RunnerLimits
from modelworks.inference.settings import InferenceSettings
from modelworks.inference.stream import accept_events, do_jobs, follow_refs, lane_group, watch_deployments
from modelworks.inference.worker import Worker, WorkerLimits
from modelworks.kit.direct import Direct
from modelworks.kit.http import create_app
from modelworks.kit.platform import Platform
from modelworks.kit.service import Service, run_service, settings_or_exit
from modelworks.kit.settings import PlatformSettings
from modelworks.kit.tasks import end
from modelworks.stores.refusals import Refusals
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import Stores, open_stores


class Composition:
    """One worker with the doors in front of it, before anything runs."""

    def __init__(
        self,
        stores: Stores,
        settings: InferenceSettings,
        platform: Platform,
        *,
        source: ModelSource | None = None,
        loader: SessionLoader | None = None,
    ) -> None:
        """`source` and `loader`: in place of the registry and of ONNX Runtime, for tests."""
        self.stores = stores
        self.settings = settings
        self.platform = platform
        self.name = settings.worker_name()
        self.tracer = platform.telemetry.tracer("inference")
        credentials = ClientCredentials(
            token_url=settings.token_url, client_id=settings.client_id,
            client_secret=settings.client_secret.get_secret_value(),
        )  # fmt: skip
        self.client = AsyncModelworks(settings.registry_url, credentials)
        self.source = source or RegistrySource(self.client)
        self.deployments = DocumentDeployments(stores.documents, stores.bus, platform.clock)
        self.presence = KeyValuePresence(stores.keyvalue, expires=timedelta(seconds=settings.presence_seconds))
        self.completions = BufferedCompletions(
            stores.bus, source=SOURCE, clock=platform.clock, events_max=settings.completions_max,
            flush_seconds=settings.completions_flush_ms / 1000,
        )  # fmt: skip
        self.models = Models()
        self.changes = Changes()
        bounds = Bounds(
            slots=settings.slot_count(), waiting_max=settings.waiting_max,
            waiting_bytes_max=settings.waiting_bytes_max,
        )  # fmt: skip
        metrics = inference_metrics(platform.telemetry.metrics)
        observed = SchedulerMetrics(metrics)
        self.scheduler = Scheduler(bounds, tracer=self.tracer, observer=observed)
        self.queue_metrics = QueueMetrics(
            metrics, observed, bus=stores.bus, groups={lane: lane_group(lane) for lane in LANES},
            scheduler=self.scheduler, models=self.models, clock=platform.clock, every_seconds=settings.metrics_seconds,
        )  # fmt: skip
        self.worker = self._worker(
            loader or onnx_loader(intra_op_threads=settings.intra_op_threads, providers=settings.provider_names())
        )
        self.deploying = Deploying(
            source=self.source, deployments=self.deployments, presence=self.presence, worker=self.name,
            clock=platform.clock,
        )  # fmt: skip
        self.online = Online(self.scheduler, self.completions, rows_max=settings.request_rows_max)

        self.jobs = DocumentJobs(stores.documents, stores.bus, platform.clock)
        self.payloads = ObjectPayloads(stores.objects, bytes_max=settings.body_bytes_max)
        self.retention = Retention(
            jobs=self.jobs, payloads=self.payloads, keep=timedelta(hours=settings.job_retention_hours),
            clock=platform.clock,
        )  # fmt: skip
        cancellations = KeyValueCancellations(stores.keyvalue)
        self.queueing = Queueing(
            jobs=self.jobs, payloads=self.payloads, references=InputReferences(self.source, self.limits()),
            cancellations=cancellations, changes=self.changes, limits=self.limits(), clock=platform.clock,
            timeout_default=timedelta(seconds=settings.job_timeout_seconds),
        )  # fmt: skip
        self.runner = Runner(
            self.name, jobs=self.jobs, payloads=self.payloads, models=self.models, scheduler=self.scheduler,
            cancellations=cancellations, changes=self.changes, clock=platform.clock,
            limits=RunnerLimits(
                attempts_max=settings.job_attempts_max, model_wait=timedelta(seconds=settings.model_wait_seconds),
                cancel_poll=timedelta(milliseconds=settings.cancel_poll_ms), rows_max=settings.request_rows_max,
                codec=self.limits(),
            ),
        )  # fmt: skip

    def _worker(self, loader: SessionLoader) -> Worker:
        settings = self.settings
        limits = WorkerLimits(
            memory_bytes_max=settings.memory_bytes_max, batch_rows=settings.batch_rows,
            batch_delay_ms=settings.batch_delay_ms, reconcile=timedelta(seconds=settings.reconcile_seconds),
            beat=timedelta(seconds=settings.presence_seconds / 3),
            retry_max=timedelta(seconds=settings.load_retry_seconds_max),
        )  # fmt: skip
        return Worker(
            self.name, models=self.models, scheduler=self.scheduler, deployments=self.deployments,
            cache=FolderCache(settings.cache, self.source, bytes_max=settings.cache_bytes_max),
            presence=self.presence, limits=limits, clock=self.platform.clock, on_change=self.changes.notify,
            loader=loader,
        )  # fmt: skip

    def limits(self) -> Limits:
        """Bounds of one V2 body."""
        settings = self.settings
        return Limits(
            inflated_bytes_max=settings.body_bytes_max, header_bytes_max=settings.header_bytes_max,
            json_bytes_max=settings.json_bytes_max, tensors_max=settings.tensors_max, element_bytes_max=settings.element_bytes_max,
        )  # fmt: skip


def build(stores: Stores, settings: InferenceSettings, platform: Platform, *, owns_stores: bool = False) -> Service:
    """The inference service.

    Args:
        owns_stores: close them at the end.
    """
    return compose(Composition(stores, settings, platform), owns_stores=owns_stores)


def compose(parts: Composition, *, owns_stores: bool = False) -> Service:
    """The service made of its parts."""
    stores, settings, platform = parts.stores, parts.settings, parts.platform
    limits = v2.V2Limits(
        codec=parts.limits(), body_bytes_max=settings.body_bytes_max, offload_bytes_min=settings.offload_bytes_min
    )
    checks = {
        "bus": stores.bus.check, "documents": stores.documents.check, "objects": stores.objects.check,
        "keyvalue": stores.keyvalue.check, "worker": parts.worker.check,
    }  # fmt: skip
    infer = v2.Infer(models=parts.models, online=parts.online, platform=platform, limits=limits)
    repository = v2.Repository(
        models=parts.models, deploying=parts.deploying, changes=parts.changes, platform=platform, limits=limits
    )
    app = create_app(
        "inference", platform, record=Refusals(stores.bus, service="inference", clock=platform.clock), checks=checks,
        routers=[
            deployments_router(parts.deploying, parts.changes, platform),
            jobs_router(parts.queueing, parts.changes, platform, body_bytes_max=settings.body_bytes_max, json_bytes_max=settings.json_bytes_max),
            v2.router(infer, repository, platform),
        ],
        renderers=v2.RENDERERS,
        description="Deployments, predictions by the standard protocols, and a durable queue of prediction jobs.",
    )  # fmt: skip

    @asynccontextmanager
    async def run() -> AsyncIterator[None]:
        async with _running(parts):
            yield
        if owns_stores:
            await stores.close()

    door = Direct(
        app, service="inference", platform=platform, errors=app.state.errors, matches=v2.is_infer,
        endpoint=v2.direct_infer(infer),
    )  # fmt: skip
    return Service("inference", door, run, checks)


@asynccontextmanager
async def _running(parts: Composition) -> AsyncIterator[None]:
    """Everything that runs beside the requests; taken down in the reverse order: consumers, then what they use."""
    bus, settings = parts.stores.bus, parts.settings
    outboxes = (parts.deployments.outbox, parts.jobs.outbox)
    for outbox in outboxes:
        await outbox.ensure()
    in_flight: Mapping[Lane, int] = {
        "interactive": settings.in_flight_interactive,
        "standard": settings.in_flight_standard,
        "bulk": settings.in_flight_bulk,
    }
    wait = timedelta(seconds=settings.model_wait_seconds)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(parts.client.close)
        await stack.enter_async_context(parts.completions.publishing())
        for outbox in outboxes:
            await stack.enter_async_context(outbox.sweeping())
        stack.push_async_callback(parts.scheduler.close, grace_seconds=settings.drain_seconds)
        await stack.enter_async_context(parts.worker.running())
        for subscription in (
            follow_refs(parts.deploying, parts.tracer),
            accept_events(parts.queueing, parts.tracer),
            *do_jobs(parts.runner, parts.tracer, in_flight=in_flight, model_wait=wait),
        ):
            consumer = await bus.subscribe(subscription)
            stack.push_async_callback(consumer.stop)
        for task in (
            asyncio.create_task(watch_deployments(bus, parts.worker.wake), name="watch deployments"),
            asyncio.create_task(parts.queue_metrics.run(), name="queue metrics"),
            asyncio.create_task(parts.retention.run(), name="job retention"),
        ):
            stack.push_async_callback(end, task)
        yield


def main() -> None:
    """Run inference in a process of its own."""
    settings = settings_or_exit("inference", InferenceSettings)

    def assemble(platform: Platform) -> Service:
        environment = settings_or_exit("inference", PlatformSettings).environment
        stores = open_stores(settings_or_exit("inference", StoresSettings), environment=environment)
        return build(stores, settings, platform, owns_stores=True)

    run_service("inference", settings, assemble)
