"""The worker process: one order on standard input, answers as JSON lines on standard output.

A model is a stranger's program, and the libraries that read it are large; both
stay here, under a memory limit, without credentials. Standard input stays open
for as long as the service wants the work: when it ends, the worker ends.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TextIO

from modelworks.optimizer.measurement import Measurement
from modelworks.optimizer.order import Answer, Finished, Order, Progressed, Refused
from modelworks.optimizer.passes import PASSES, WorkError, is_out_of_memory

_PROGRESS_SECONDS_MIN = 0.2


def work(order: Order, answer: TextIO) -> None:
    """Do an order and write the answers."""
    try:
        tell(answer, Finished(measurement=_measure(order, answer)))
    except WorkError as error:
        tell(answer, Refused(code=error.code, message=error.message))
    except Exception as error:
        if not isinstance(error, MemoryError) and not is_out_of_memory(str(error)):
            raise
        tell(answer, out_of_memory(order.memory_bytes_max))


def _measure(order: Order, answer: TextIO) -> Measurement:
    # Imported after the limits are set: reading a model begins here.
    import onnx
    import onnxruntime
    from modelworks.optimizer.evaluation.evaluate import process_target
    from modelworks.optimizer.machine import read_machine

    needed = PASSES[order.pass_name].needs
    machine, started = read_machine(), time.perf_counter()
    told_at, told_stage = 0.0, ""

    def report(stage: str, progress: float) -> None:
        nonlocal told_at, told_stage
        now = time.perf_counter()
        if stage != told_stage or now - told_at >= _PROGRESS_SECONDS_MIN:
            told_at, told_stage = now, stage
            share = (number + min(1.0, progress)) / len(order.targets)
            tell(answer, Progressed(stage=stage, progress=round(share, 3)))

    targets = []
    for number, target in enumerate(order.targets):  # noqa: B007 - `report` reads it
        targets.append(process_target(order, target, machine, report))
    return Measurement(
        targets=tuple(targets),
        machine=machine,
        versions={
            "python": sys.version.split()[0], "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__,
            **{name: sys.modules[name].__version__ for name in needed if name in sys.modules},
        },
        seconds=round(time.perf_counter() - started, 3),
        memory_bytes_peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    )  # fmt: skip


def out_of_memory(bytes_max: int) -> Refused:
    """The refusal of a job that wants more memory than it may have."""
    return Refused(
        code="memory-limit",
        message=f"the work needs more than {bytes_max} bytes of memory: raise OPTIMIZER_WORKER_MEMORY_BYTES_MAX",
    )


def tell(answer: TextIO, message: Answer) -> None:
    """Write one line."""
    answer.write(message.model_dump_json() + "\n")
    answer.flush()


def _limit(bytes_max: int) -> None:
    """Let allocation fail at the limit; the service watches the resident size beside this."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        # Private writable memory; unlike RLIMIT_AS it does not count mapped files and reserved addresses.
        resource.setrlimit(resource.RLIMIT_DATA, (bytes_max, bytes_max))


def _leave_with(parent: TextIO) -> None:
    """End this process when the service closes our standard input, whatever the main thread is doing."""

    def wait() -> None:
        parent.read()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="leave-with-parent", daemon=True).start()


def main() -> None:
    """Read an order, do it, answer."""
    # Libraries print to standard output; the answers must not be among that.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    order = Order.model_validate_json(sys.stdin.readline())
    _leave_with(sys.stdin)
    _limit(order.memory_bytes_max)
    tempfile.tempdir = str(Path(order.folder))
    logging.getLogger().setLevel(logging.ERROR)
    work(order, answer)


if __name__ == "__main__":
    main()
