"""Prometheus metrics of inference. What scales workers is the seconds of queued work, not the number of messages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from weakref import WeakKeyDictionary

from modelworks.inference.engine.batch import Batch, Ran
from modelworks.inference.engine.messages import LANES, Lane
from modelworks.inference.engine.models import Models
from modelworks.inference.engine.scheduler import Observer, Scheduler
from modelworks.kit.clock import Clock
from modelworks.kit.errors import ModelworksError
from modelworks.kit.logging import get_logger
from modelworks.stores.bus.port import Bus
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

log = get_logger("metrics")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60)
_EWMA_WEIGHT = 0.2


class InferenceMetrics:
    """The metrics of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        name = "modelworks_inference_"
        self.depth = Gauge(f"{name}queue_depth", "Requests and jobs not finished", ["lane"], registry=registry)
        self.oldest = Gauge(
            f"{name}queue_oldest_age_seconds", "Age of the oldest job not finished", ["lane"], registry=registry
        )
        self.work = Gauge(
            f"{name}queue_work_seconds", "Expected service time of all that waits", ["lane"], registry=registry
        )
        self.slots = Gauge(f"{name}slots", "Batches that may run at once", registry=registry)
        self.busy = Gauge(f"{name}busy_slots", "Batches that run", registry=registry)
        self.models = Gauge(f"{name}loaded_models", "Models in memory", registry=registry)
        self.memory = Gauge(f"{name}loaded_models_bytes", "What loading them took", registry=registry)
        self.rows = Histogram(
            f"{name}batch_rows", "Rows of a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), registry=registry
        )
        self.compute = Histogram(
            f"{name}compute_seconds", "Time a batch computes", buckets=_SECONDS, registry=registry
        )  # fmt: skip
        self.latency = Histogram(
            f"{name}request_seconds", "From the scheduler's door to the outcome", ["mouth"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.requests = Counter(
            f"{name}requests", "Requests that left the scheduler", ["mouth", "outcome"], registry=registry
        )


_METRICS: WeakKeyDictionary[CollectorRegistry, InferenceMetrics] = WeakKeyDictionary()


def inference_metrics(registry: CollectorRegistry) -> InferenceMetrics:
    """The metrics of a registry; made once, since a name can be registered only once."""
    if registry not in _METRICS:
        _METRICS[registry] = InferenceMetrics(registry)
    return _METRICS[registry]


class SchedulerMetrics(Observer):
    """Counts what the scheduler does."""

    def __init__(self, metrics: InferenceMetrics) -> None:
        self._metrics = metrics
        # Looked up once: a label lookup takes as long as the observation.
        self._latency = {mouth: metrics.latency.labels(mouth) for mouth in ("online", "queued")}
        self._well = {mouth: metrics.requests.labels(mouth, "succeeded") for mouth in ("online", "queued")}
        self.seconds_a_job: dict[Lane, float] = dict.fromkeys(LANES, 0.0)
        """Learned service time of a queued job, for those that wait on the bus."""

    def batch_started(self, batch: Batch) -> None:
        """See Observer."""
        self._metrics.busy.inc()

    def batch_ended(self, batch: Batch, ran: Ran) -> None:
        """See Observer."""
        self._metrics.busy.dec()
        self._metrics.rows.observe(batch.rows)
        self._metrics.compute.observe(ran.infer_seconds)
        share = ran.infer_seconds / len(batch.members)
        for member in batch.members:
            if member.work.mouth == "queued":
                lane = member.work.lane
                known = self.seconds_a_job[lane]
                self.seconds_a_job[lane] = share if not known else known + _EWMA_WEIGHT * (share - known)

    def request_ended(self, mouth: str, outcome: str, seconds: float) -> None:
        """See Observer."""
        self._latency[mouth].observe(seconds)
        if outcome == "succeeded":
            self._well[mouth].inc()
        else:
            self._metrics.requests.labels(mouth, outcome).inc()


class QueueMetrics:
    """Looks at the queues now and then."""

    def __init__(
        self,
        metrics: InferenceMetrics,
        observed: SchedulerMetrics,
        *,
        bus: Bus,
        groups: Mapping[Lane, str],
        scheduler: Scheduler,
        models: Models,
        clock: Clock,
        every_seconds: float,
    ) -> None:
        """`groups`: the consumer group of each lane."""
        self._metrics = metrics
        self._observed = observed
        self._bus = bus
        self._groups = groups
        self._scheduler = scheduler
        self._models = models
        self._clock = clock
        self._every_seconds = every_seconds

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                await self.look()
            except ModelworksError as error:
                log.warning("metrics.lag-unknown", error=str(error))
            await asyncio.sleep(self._every_seconds)

    async def look(self) -> None:
        """Set the gauges."""
        self._metrics.slots.set(self._scheduler.slots)
        self._metrics.models.set(len(self._models.all()))
        self._metrics.memory.set(self._models.memory_bytes())
        for lane in LANES:
            lags = await self._bus.lag(self._groups[lane])
            queued = sum(lag.messages for lag in lags)
            waiting = self._scheduler.waiting[lane]
            # A job in the scheduler is not acknowledged, so the lag counts it already.
            unseen = max(0, queued - waiting.queued)
            self._metrics.depth.labels(lane).set(queued + waiting.requests - waiting.queued)
            self._metrics.work.labels(lane).set(waiting.work_seconds + unseen * self._observed.seconds_a_job[lane])
            self._metrics.oldest.labels(lane).set(_age(self._clock(), [lag.oldest for lag in lags]))


def _age(now: datetime, moments: list[datetime | None]) -> float:
    known = [moment for moment in moments if moment is not None]
    return max(0.0, (now - min(known)).total_seconds()) if known else 0.0
