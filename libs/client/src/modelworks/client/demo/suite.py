"""A suite in a process of its own, for the demo and the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from modelworks.kit.errors import ModelworksError


class SuiteProcess:
    """`modelworks up` as a child process."""

    def __init__(self, data: Path, *, column: str = "embedded", environment: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.url = ""
        self.ready_seconds = 0.0
        self._column = column
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running suite."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Path:
        """What the suite wrote to standard error, over all its starts."""
        return self.data / "suite.log"

    def start(self, *, port: int = 0, within_seconds: float = 60) -> str:
        """Start and wait until it is ready; returns its address.

        Raises:
            ModelworksError: it did not become ready; the message ends with the tail of its log.
        """
        self.data.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "modelworks.client", "up", "--data", str(self.data), "--port", str(port), "--json",
                   "--stack", self._column]  # fmt: skip
        started = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command, stdout=subprocess.PIPE, stderr=log, env=self._environment, start_new_session=True
            )
        assert self._process.stdout is not None
        line: list[bytes] = []
        # The first line of standard output says that the suite is ready.
        reader = threading.Thread(target=lambda: line.append(self._process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
        reader.start()
        reader.join(within_seconds)
        if not line or not line[0]:
            ended = self._process.poll() is not None
            self.stop()
            tail = "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-8:])
            what = f"ended with {self._process.returncode}" if ended else f"was not ready within {within_seconds:.0f} s"
            raise ModelworksError(f"the suite {what}; its log ends:\n{tail}")
        self.ready_seconds = time.monotonic() - started
        self.url = str(json.loads(line[0])["url"])
        return self.url

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> int:
        """Ask it to end (SIGTERM) and wait; returns its exit status."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        return self._process.returncode
