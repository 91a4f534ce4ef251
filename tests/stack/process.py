"""The parent's side of a guardian: run a command in its folder, signal it, know when it ended."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO

from tests.stack.errors import StartFailed

_SCRIPT = Path(__file__).with_name("guardian.py")
_GUARDIAN_LIMIT = timedelta(seconds=20)
_TAIL_LINES = 25


class Guarded:
    """A folder of its own and at most one running process group, both gone when this object's process is.

    Safe to use from several threads. `folder` exists from construction to `close`.
    """

    def __init__(self, name: str) -> None:
        self._changed = threading.Condition()
        self._announced: Path | None = None
        self._pid: int | None = None
        self._exit_code: int | None = None
        self._failure: str | None = None
        self._signals_sent = self._signals_delivered = 0
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SCRIPT), f"modelworks-{name}-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal must reach the parent only
        )
        assert self._guardian.stdin is not None
        assert self._guardian.stdout is not None
        self._requests = self._guardian.stdin
        self._reader = threading.Thread(target=self._listen, args=(self._guardian.stdout,), daemon=True)
        self._reader.start()
        self._wait(lambda: self._announced is not None, _GUARDIAN_LIMIT)
        assert self._announced is not None, "the guardian did not start"
        self.folder: Path = self._announced

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def pid(self) -> int | None:
        """Of the running command, None when nothing runs; it is also the number of its process group."""
        return self._pid

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start `command` in the folder, its output appended to the log; returns once it is started.

        Raises:
            StartFailed: it could not be executed.
        """
        with self._changed:
            self._exit_code = self._failure = None
        self._ask(run=list(command), env=dict(environment or {}), log=str(self.log))
        self._wait(lambda: self._pid is not None or self._ended, _GUARDIAN_LIMIT)
        if self._failure is not None:
            raise StartFailed(f"cannot execute {command[0]}: {self._failure}")

    def signal(self, number: int) -> None:
        """Send a signal to the whole group and return once it is delivered; nothing happens when it already ended."""
        with self._changed:
            self._signals_sent += 1
            awaited = self._signals_sent
        self._ask(signal=int(number))
        self._wait(lambda: self._signals_delivered >= awaited, _GUARDIAN_LIMIT)

    def wait(self, limit: timedelta) -> int | None:
        """The command's exit code (negative: the signal that ended it), None when it still runs at the limit."""
        self._wait(lambda: self._ended, limit)
        return self._exit_code

    def tail(self) -> str:
        """The end of the log, for an error message."""
        if not self.log.exists():
            return "(it wrote no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])

    def close(self) -> None:
        """Kill what still runs and remove the folder; closing again changes nothing."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        try:
            self._guardian.wait(_GUARDIAN_LIMIT.total_seconds())
        except subprocess.TimeoutExpired:
            self._guardian.terminate()
            self._guardian.wait()
        self._reader.join()
        shutil.rmtree(self.folder, ignore_errors=True)  # there only when the guardian itself was killed

    @property
    def _ended(self) -> bool:
        return self._exit_code is not None or self._failure is not None

    def _ask(self, **request: object) -> None:
        # A guardian that was killed took its command along; the reader notes the end.
        with self._changed, contextlib.suppress(BrokenPipeError):
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()

    def _wait(self, condition: Callable[[], bool], limit: timedelta) -> None:
        with self._changed:
            self._changed.wait_for(condition, limit.total_seconds())

    def _listen(self, answers: IO[bytes]) -> None:
        with answers:
            for line in answers:
                answer = json.loads(line)
                with self._changed:
                    if "folder" in answer:
                        self._announced = Path(answer["folder"])
                    elif "started" in answer:
                        self._pid = answer["started"]
                    elif "failed" in answer:
                        self._failure = answer["failed"]
                    elif "signalled" in answer:
                        self._signals_delivered += 1
                    else:
                        self._pid, self._exit_code = None, answer["exited"]
                    self._changed.notify_all()
        with self._changed:
            self._signals_delivered = self._signals_sent
            if self._pid is not None:
                self._pid, self._exit_code = None, -signal.SIGKILL
            self._changed.notify_all()
