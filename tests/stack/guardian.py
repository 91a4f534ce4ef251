"""Owns one server's process group and folder, and takes both down when its parent is gone.

The parent holds the other end of standard input. Whatever ends the parent (return, exception, SIGTERM, SIGKILL, a
crash) closes that pipe, so cleaning up needs no handler in the parent and no luck. This file runs as a script under
`python -I -S`: standard library only, one thread, a few megabytes.

Requests are JSON objects, one a line: `{"run": [argv], "env": {...}, "log": path}` and `{"signal": number}`.
Answers likewise: `{"folder": path}` once, then `{"started": pid}`, `{"failed": why}`, `{"signalled": number}` and
`{"exited": code}`.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# How often a changed parent is looked for. The pipe tells at once; only a fork of the parent that inherited
# the pipe's end can keep it open after the parent's death.
_ORPHAN_CHECK_S = 1.0


def _die_with_me() -> Callable[[], None] | None:
    """What a child runs before exec so that even SIGKILL on this guardian ends it; None where there is no such call.

    Safe here and not in the parent: the kernel ties the signal to the *thread* that forked, and this process has one.
    """
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Guardian:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._parent = os.getppid()
        self._before_exec = _die_with_me()
        self._buffer = b""
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def serve(self) -> None:
        """Carry out requests until the parent is gone or this process is told to end."""
        self._answer(folder=self._folder)
        while os.getppid() == self._parent:
            readable, _, _ = select.select([0, self._wake], [], [], _ORPHAN_CHECK_S)
            if self._wake in readable and set(os.read(self._wake, 512)) - {signal.SIGCHLD}:
                return
            self._reap()
            if 0 in readable and not self._read_requests():
                return

    def clean_up(self) -> None:
        """Leave no process of the group and no folder."""
        if self._child is not None:
            self._signal(signal.SIGKILL)
            self._child.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read_requests(self) -> bool:
        data = os.read(0, 65536)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if "run" in request:
                self._run(request)
            else:
                self._signal(request["signal"])
                self._answer(signalled=request["signal"])
        return bool(data)

    def _run(self, request: dict[str, Any]) -> None:
        with open(request["log"], "ab") as log:
            try:
                self._child = subprocess.Popen(
                    request["run"],
                    cwd=self._folder,
                    env={**os.environ, **request["env"]},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    process_group=0,
                    preexec_fn=self._before_exec,
                )
            except OSError as error:
                self._answer(failed=str(error))
            else:
                self._answer(started=self._child.pid)

    def _signal(self, number: int) -> None:
        if self._child is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, number)
        if number == signal.SIGSTOP and hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
            # A busy process is frozen a moment after the call; the answer must not come before that.
            os.waitid(os.P_PID, self._child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _reap(self) -> None:
        if self._child is None or (code := self._child.poll()) is None:
            return
        self._signal(signal.SIGKILL)  # what the leader left behind in its group
        self._child = None
        self._answer(exited=code)

    def _answer(self, **message: object) -> None:
        os.write(1, json.dumps(message).encode() + b"\n")


def main() -> None:
    guardian = Guardian(tempfile.mkdtemp(prefix=sys.argv[1]))
    try:
        guardian.serve()
    except BrokenPipeError:
        pass  # the parent is gone, which is what this process waits for
    finally:
        guardian.clean_up()


if __name__ == "__main__":
    main()
