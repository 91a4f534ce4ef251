"""Log lines as a process writes them: one JSON object or one line of text each, without what must not be logged."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
    import logging
    from modelworks.kit.logging import configure_logging, get_logger
    from modelworks.kit.telemetry import Telemetry

    early = get_logger("early")  # modules make their loggers before the process is configured
    configure_logging(level="{level}", style="{style}")

    def crash():
        password = "hunter2"
        raise RuntimeError("the disk is gone")

    early.info("variant.built", model="a/b", duration_ms=7)
    early.debug("detail")
    logging.getLogger("httpx").info("GET https://somewhere?token=hunter2")
    logging.getLogger("authlib.oauth2").debug("Issue token hunter2")
    logging.getLogger("uvicorn.error").info("Started")
    with Telemetry().tracer("test").start_as_current_span("work"):
        early.info("traced")
    try:
        crash()
    except RuntimeError as error:
        early.error("ours", exc_info=error)
        logging.getLogger("foreign").error("theirs", exc_info=True)
"""


def lines_of(level: str, style: str) -> list[str]:
    script = textwrap.dedent(SCRIPT.replace("{level}", level).replace("{style}", style))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_lines_carry_event_fields_level_time_and_component() -> None:
    records = [json.loads(line) for line in lines_of("info", "json")]

    first = records[0]
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "variant.built", "level": "info", "component": "early", "model": "a/b", "duration_ms": 7,
    }  # fmt: skip
    assert [record["event"] for record in records] == ["variant.built", "Started", "traced", "ours", "theirs"]


def test_line_within_a_span_carries_the_ids_of_its_trace() -> None:
    records = {record["event"]: record for record in map(json.loads, lines_of("info", "json"))}

    assert len(records["traced"]["trace_id"]) == 32
    assert len(records["traced"]["span_id"]) == 16
    assert "trace_id" not in records["variant.built"]


@pytest.mark.parametrize("event", ["ours", "theirs"])
def test_traceback_is_a_field_of_its_one_line(event: str) -> None:
    records = {record["event"]: record for record in map(json.loads, lines_of("info", "json"))}

    assert "RuntimeError: the disk is gone" in records[event]["exception"]
    assert "exc_info" not in records[event]


@pytest.mark.parametrize("style", ["json", "text"])
def test_local_variables_and_tokens_are_not_logged_even_at_debug(style: str) -> None:
    log = "\n".join(lines_of("debug", style))

    assert "the disk is gone" in log
    assert "detail" in log
    assert "hunter2" not in log.replace('password = "hunter2"', "")


def test_without_a_terminal_lines_are_json() -> None:
    assert all(json.loads(line) for line in lines_of("info", "auto"))


def test_level_bounds_what_is_logged() -> None:
    assert [json.loads(line)["event"] for line in lines_of("error", "json")] == ["ours", "theirs"]
