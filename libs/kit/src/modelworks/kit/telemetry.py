"""Traces and metrics: one tracer provider and one metrics registry a process, passed down, never global state.

A trace starts at the HTTP door, rides on events in the W3C `traceparent`
header, and goes on in whoever handles them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry

_propagator = TraceContextTextMapPropagator()


@dataclass(frozen=True)
class Telemetry:
    """The process's tracer provider and metrics registry."""

    provider: TracerProvider = field(default_factory=TracerProvider)
    metrics: CollectorRegistry = field(default_factory=CollectorRegistry)

    def tracer(self, service: str) -> Tracer:
        """A tracer named after the service, so that one process can speak for several."""
        return self.provider.get_tracer(f"modelworks.{service}")

    def shutdown(self) -> None:
        """Export what is left."""
        self.provider.shutdown()


def make_telemetry(*, process: str, otlp_endpoint: str = "", trace_file: str = "") -> Telemetry:
    """Telemetry that exports to a collector, a file of JSON lines, both, or nowhere."""
    # Where nobody listens, spans are not recorded; their ids still reach logs and events.
    sampler = ALWAYS_ON if otlp_endpoint or trace_file else ALWAYS_OFF
    provider = TracerProvider(sampler=sampler, resource=Resource.create({"service.name": process}))
    if otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=otlp_endpoint.rstrip("/") + "/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
    if trace_file:
        provider.add_span_processor(SimpleSpanProcessor(_JsonLines(Path(trace_file))))
    return Telemetry(provider=provider)


def inject() -> dict[str, str]:
    """The current trace as message or HTTP headers; empty outside a trace."""
    headers: dict[str, str] = {}
    _propagator.inject(headers)
    return headers


def extract(headers: Mapping[str, str]) -> Context:
    """The trace that a message or request came with."""
    return _propagator.extract(dict(headers))


@contextmanager
def span(
    tracer: Tracer,
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: Mapping[str, str] | None = None,
    links: Sequence[trace.Link] = (),
    **attributes: str | int | float | bool,
) -> Iterator[Span]:
    """A span that records the error it is left by. `parent` are headers of a message or request."""
    context = extract(parent) if parent is not None else None
    with tracer.start_as_current_span(name, context=context, kind=kind, links=links, attributes=attributes) as current:
        yield current


class _JsonLines(SpanExporter):
    """Appends one line a span; safe for several processes, since a short O_APPEND write is atomic."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            for finished in spans:
                file.write(json.dumps(_describe(finished), default=str) + "\n")
        return SpanExportResult.SUCCESS


def _describe(finished: ReadableSpan) -> dict[str, Any]:
    context = finished.get_span_context()
    assert context is not None
    return {
        "name": finished.name,
        "service": finished.instrumentation_scope.name if finished.instrumentation_scope else "",
        "trace_id": format(context.trace_id, "032x"),
        "span_id": format(context.span_id, "016x"),
        "parent_id": format(finished.parent.span_id, "016x") if finished.parent else None,
        "links": [format(link.context.trace_id, "032x") for link in finished.links],
        "kind": finished.kind.name.lower(),
        "start_ns": finished.start_time,
        "end_ns": finished.end_time,
        "status": finished.status.status_code.name.lower(),
        "attributes": dict(finished.attributes or {}),
    }
