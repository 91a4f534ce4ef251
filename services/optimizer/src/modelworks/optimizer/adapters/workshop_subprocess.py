"""Orders done in a process of their own: `python -m modelworks.optimizer.worker`, watched from here.

The process gets no credentials (its environment is made from nothing), imports
nothing from the folder it works in (`-P`), and ends with us: it holds the other
end of a pipe that closes when this process does, however that happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from modelworks.optimizer.domain import Job
from modelworks.optimizer.measurement import Measurement
from modelworks.optimizer.order import ANSWER, Finished, Order, Progressed, Refused
from modelworks.optimizer.passes import WorkError, is_out_of_memory
from modelworks.optimizer.ports import Tick
from pydantic import ValidationError

_LINE_BYTES_MAX = 8 * 1024 * 1024
_STDERR_BYTES_KEPT = 4096
_WATCH_SECONDS = 0.1
_LOCK = ".lock"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# All that a Python with numeric libraries needs; the suite's own variables hold secrets.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OPENBLAS_CORETYPE")

COMMAND = (sys.executable, "-P", "-m", "modelworks.optimizer.worker")


class SubprocessWorkshop:
    """See `ports.Workshop`."""

    def __init__(self, folder: Path, *, seconds_max: float, command: Sequence[str] = COMMAND) -> None:
        self._folder = folder
        self._seconds_max = seconds_max
        self._command = command

    @asynccontextmanager
    async def folder(self, job: Job) -> AsyncIterator[Path]:
        """See the port. A lock tells other processes, even of another suite with the same job, that it is in use."""
        await self.clear(job)
        path = self._folder / f"{job.id}.{job.fence}.{secrets.token_hex(4)}"
        lock = await asyncio.to_thread(_make, path)
        try:
            yield path
        finally:
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
            _lock_of(path).unlink(missing_ok=True)
            os.close(lock)

    async def clear(self, job: Job) -> None:
        """See the port."""
        await asyncio.to_thread(self._clear, job.id)

    def _clear(self, id: str) -> None:
        for lock in self._folder.glob(f"{id}.*{_LOCK}"):
            file = os.open(lock, os.O_RDWR)
            try:
                # The lock of a killed process is free.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_name(lock.name.removesuffix(_LOCK)), ignore_errors=True)
                lock.unlink(missing_ok=True)
            except BlockingIOError:
                continue
            finally:
                os.close(file)

    async def work(self, order: Order, tick: Tick) -> Measurement:
        """See the port."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES_MAX,
            cwd=order.folder,
            env=_environment(order),
            start_new_session=True,
        )
        watching = asyncio.create_task(_watch(process, order.memory_bytes_max), name="worker memory")
        noise = asyncio.create_task(_tail(process), name="worker stderr")
        try:
            async with asyncio.timeout(self._seconds_max):
                answer = await _converse(process, order, tick)
                await process.wait()
        except TimeoutError:
            raise WorkError(
                "time-limit",
                f"the work took longer than {self._seconds_max:g} s: raise OPTIMIZER_WORKER_SECONDS_MAX, or evaluate less",
            ) from None
        except (ValueError, ValidationError) as error:
            raise WorkError("worker-crashed", f"the worker spoke another language: {str(error)[:200]}") from error
        finally:
            _kill(process)
            await process.wait()
            over = watching.done() and not watching.cancelled()
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            left = await noise
        if isinstance(answer, Finished):
            return answer.measurement
        if over or (answer is None and is_out_of_memory(left.decode("utf-8", "replace"))):
            raise _over_memory(order)
        if answer is not None:
            raise WorkError(answer.code, answer.message)
        raise WorkError("worker-crashed", _last_words(process.returncode or 0, left))


def _make(path: Path) -> int:
    """Make the folder; returns the descriptor that holds its lock."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    path.mkdir(mode=0o700)
    return lock


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + _LOCK)


async def _converse(process: asyncio.subprocess.Process, order: Order, tick: Tick) -> Finished | Refused | None:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(order.model_dump_json().encode() + b"\n")
        await process.stdin.drain()
    async for line in process.stdout:
        answer = ANSWER.validate_json(line)
        if not isinstance(answer, Progressed):
            return answer
        tick(answer.stage, answer.progress)
    return None


async def _watch(process: asyncio.subprocess.Process, bytes_max: int) -> None:
    """Return, having killed the process, when it has more memory than it may; otherwise never."""
    statm = Path(f"/proc/{process.pid}/statm")
    while True:
        try:
            resident = int(statm.read_text().split()[1]) * _PAGE_BYTES  # noqa: ASYNC240 - no disk is behind it
        except (OSError, IndexError):
            # Gone, or a system without /proc: the worker's own limit is all there is.
            await asyncio.Event().wait()
        if resident > bytes_max:
            _kill(process)
            return
        await asyncio.sleep(_WATCH_SECONDS)


async def _tail(process: asyncio.subprocess.Process) -> bytes:
    """The last bytes of what the worker wrote to standard error."""
    assert process.stderr is not None
    kept = b""
    while chunk := await process.stderr.read(65_536):
        kept = (kept + chunk)[-_STDERR_BYTES_KEPT:]
    return kept


def _kill(process: asyncio.subprocess.Process) -> None:
    """End the worker and whatever it started, unless it has ended: its number may be another's by then."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _environment(order: Order) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    if "PYTHONPATH" in kept:
        # An empty or relative entry would mean the worker's own folder, where a stranger's files lie.
        entries = [entry for entry in kept["PYTHONPATH"].split(os.pathsep) if entry]
        kept["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in entries)
    return {**kept, "HOME": order.folder, "TMPDIR": order.folder, "OMP_NUM_THREADS": str(order.effort.threads)}


def _over_memory(order: Order) -> WorkError:
    return WorkError(
        "memory-limit",
        f"the work needs more than {order.memory_bytes_max} bytes of memory: raise OPTIMIZER_WORKER_MEMORY_BYTES_MAX",
    )


def _last_words(code: int, stderr: bytes) -> str:
    lines = [line for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    said = f"; its last words: {lines[-1][:300]}" if lines else ""
    if code == -signal.SIGKILL:
        return f"the worker was killed, probably because the machine ran out of memory{said}"
    if code < 0:
        return f"the worker died of {signal.Signals(-code).name}{said}"
    return f"the worker ended with exit code {code} and without an answer{said}"
