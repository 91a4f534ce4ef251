"""One line per outcome: an event name and fields, as JSON, with the trace's ids.

Payloads, tokens and tensors are never logged.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from opentelemetry import trace


def configure_logging(*, level: str = "info", style: str = "auto") -> None:
    """Set up structlog and the standard library's root logger once a process. Logs go to standard error."""
    json_lines = style == "json" or (style == "auto" and not sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace_ids,
    ]
    # Plain tracebacks: the pretty ones print local variables, where secrets and tensors are, and take seconds to.
    plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer: Any = structlog.processors.JSONRenderer() if json_lines else plain
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    foreign = [*shared, structlog.processors.format_exc_info]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=foreign))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # These repeat at `info` what our own access record and bus say once. Authlib writes whole tokens at `debug`.
    for noisy in ("uvicorn.access", "httpx", "httpcore", "aiokafka", "faststream", "urllib3", "authlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Its warnings are answers that our adapter expects (404, 409).
    logging.getLogger("opensearch").setLevel(logging.ERROR)


def _add_trace_ids(_: Any, __: str, fields: dict[str, Any]) -> dict[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        fields["trace_id"] = format(context.trace_id, "032x")
        fields["span_id"] = format(context.span_id, "016x")
    return fields


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger whose lines carry `component=name`."""
    # Initial values, not `bind`: binding at import would freeze the configuration of before `configure_logging`.
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(component=name)
    return logger
