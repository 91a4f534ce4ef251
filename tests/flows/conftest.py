"""Suites for the flows: embedded in one process, real in six."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from modelworks.client.connection import AdminFile, read_admin_file
from modelworks.client.demo.suite import SuiteProcess

from tests.flows.processes import ServiceProcesses
from tests.stack.isolation import isolated


@dataclass
class Running:
    """A suite that runs, whatever it runs on."""

    column: str
    url: str
    admin: AdminFile
    trace_file: Path
    environment: dict[str, str]
    """The STORES_* variables of the real column; empty on the embedded one."""


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[SuiteProcess]:
    suite = SuiteProcess(tmp_path / "data", environment={"MODELWORKS_TRACE_FILE": str(tmp_path / "trace.jsonl")})
    suite.start()
    yield suite
    suite.stop()


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.real)])
def suite(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    """The same suite on each column."""
    trace_file = tmp_path / "trace.jsonl"
    if request.param == "embedded":
        process: SuiteProcess = request.getfixturevalue("embedded")
        yield Running("embedded", process.url, read_admin_file(process.data), trace_file, {})
        return
    stack: Any = request.getfixturevalue("stack")
    environment = isolated(stack.environment())
    processes = ServiceProcesses(tmp_path, environment, trace_file=trace_file)
    try:
        processes.start()
        yield Running("real", processes.url, processes.admin, trace_file, environment)
    finally:
        statuses = processes.stop()
    assert set(statuses.values()) == {0}, {name: processes.log(name) for name, code in statuses.items() if code}
