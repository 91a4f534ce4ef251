"""The worker process: what it may and may not do, and how each of its deaths reads."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from modelworks.optimizer import domain
from modelworks.optimizer.adapters.workshop_subprocess import COMMAND, SubprocessWorkshop
from modelworks.optimizer.domain import Job
from modelworks.optimizer.order import Effort, Order
from modelworks.optimizer.passes import WorkError
from modelworks.optimizer.recipe import Rules


def order(folder: Path, model: bytes = b"", **changed: Any) -> Order:
    (folder / "source").mkdir(exist_ok=True)
    (folder / "source" / "model.onnx").write_bytes(model)
    given: dict[str, Any] = {
        "folder": str(folder), "targets": ("model.onnx",), "pass_name": "int8", "options": {}, "rules": Rules(),
        "effort": Effort(rounds=5, seconds_max=0.2, samples_max=16), "memory_bytes_max": 1 << 30,
    }  # fmt: skip
    return Order(**given | changed)


def workshop(folder: Path, script: str | None = None, *, seconds_max: float = 30) -> SubprocessWorkshop:
    """With `script`, a worker that runs that instead of the real one."""
    command = COMMAND if script is None else (sys.executable, "-c", script)
    return SubprocessWorkshop(folder, seconds_max=seconds_max, command=command)


def gone(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        # A zombie whose parent has not looked yet is dead enough.
        with suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        return False
    return True


async def test_real_worker_builds_measures_and_tells_its_progress(tmp_path: Path, models: ModuleType) -> None:
    told: list[tuple[str, float]] = []

    found = await workshop(tmp_path).work(order(tmp_path, models.classifier()), lambda *step: told.append(step))

    assert found.targets[0].size.ratio > 2
    assert (tmp_path / "variant" / "model.onnx").is_file()
    assert {"onnx", "onnxruntime", "python"} == set(found.versions)
    stages = [stage for stage, _ in told]
    assert stages[0] == "quantize"
    assert stages[-1] == "evaluate"
    assert all(0 <= share <= 1 for _, share in told)


async def test_two_targets_are_both_built(tmp_path: Path, models: ModuleType) -> None:
    both = order(tmp_path, models.classifier(), targets=("model.onnx", "second.onnx"))
    (tmp_path / "source" / "second.onnx").write_bytes(models.classifier(width=32))

    found = await workshop(tmp_path).work(both, lambda *_: None)

    assert [target.path for target in found.targets] == ["model.onnx", "second.onnx"]
    assert (tmp_path / "variant" / "second.onnx").is_file()


async def test_strange_model_is_refused_with_the_workers_own_reason(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"model\.onnx is not a valid ONNX model") as caught:
        await workshop(tmp_path).work(order(tmp_path, b"nonsense"), lambda *_: None)

    assert caught.value.code == "not-onnx"


async def test_worker_that_hangs_is_ended_in_time(tmp_path: Path) -> None:
    began = time.monotonic()

    with pytest.raises(WorkError, match=r"took longer than 0\.5 s: raise OPTIMIZER_WORKER_SECONDS_MAX") as caught:
        await workshop(tmp_path, "import time; time.sleep(60)", seconds_max=0.5).work(order(tmp_path), lambda *_: None)

    assert caught.value.code == "time-limit"
    assert time.monotonic() - began < 5


async def test_worker_that_hoards_memory_is_ended(tmp_path: Path) -> None:
    """The limit is watched from outside, whatever the worker did to its own."""
    script = "x = []\nwhile True: x.append(bytearray(8 << 20))"

    with pytest.raises(WorkError, match="more than 200000000 bytes of memory") as caught:
        await workshop(tmp_path, script).work(order(tmp_path, memory_bytes_max=200_000_000), lambda *_: None)

    assert caught.value.code == "memory-limit"


@pytest.mark.parametrize("mebibytes", [130, 180, 220])
async def test_model_too_large_for_the_limit_says_so(tmp_path: Path, models: ModuleType, mebibytes: int) -> None:
    """The real worker's own limit: allocation fails inside the libraries, each of which says it in its own way."""
    with pytest.raises(WorkError) as caught:
        await workshop(tmp_path).work(
            order(tmp_path, models.classifier(width=40_000), memory_bytes_max=mebibytes << 20), lambda *_: None
        )

    assert caught.value.code == "memory-limit"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import os; os.abort()", "died of SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed, probably because the machine ran out of memory"),
        ("raise RuntimeError('the floor is lava')", "exit code 1 and without an answer; its last words: RuntimeError: the floor is lava"),
        ("print('hello')", "spoke another language"),
        ("print('x' * (9 << 20))", "spoke another language"),
        ("pass", "exit code 0 and without an answer"),
    ],
)  # fmt: skip
async def test_death_of_the_worker_is_told_in_words(tmp_path: Path, script: str, said: str) -> None:
    with pytest.raises(WorkError, match=said) as caught:
        await workshop(tmp_path, script).work(order(tmp_path), lambda *_: None)

    assert caught.value.code == "worker-crashed"


async def test_cancelled_work_leaves_no_process(tmp_path: Path, eventually: Any) -> None:
    pid_file = tmp_path / "pid"
    script = f"import os, time, pathlib; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(60)"
    work = asyncio.create_task(workshop(tmp_path, script).work(order(tmp_path), lambda *_: None))
    await eventually(lambda: pid_file.exists() and pid_file.read_text())

    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work

    await eventually(lambda: gone(int(pid_file.read_text())))


async def test_worker_gets_none_of_the_services_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIMIZER_CLIENT_SECRET", "hush")
    monkeypatch.setenv("STORES_S3_SECRET_KEY", "hush")
    seen = tmp_path / "environment"
    script = f"import os, pathlib; pathlib.Path({str(seen)!r}).write_text(repr(dict(os.environ)))"

    with pytest.raises(WorkError):
        await workshop(tmp_path, script).work(order(tmp_path), lambda *_: None)

    assert "hush" not in seen.read_text()
    assert "OPTIMIZER" not in seen.read_text()


@pytest.mark.parametrize("more", ["", ":", ":source:."])
async def test_code_in_the_repository_is_never_imported(
    tmp_path: Path, models: ModuleType, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    """INVARIANT: a revision that holds `onnx.py` runs nothing, whatever the search path of the service.

    Starting the worker without `-P`, or with an empty or relative entry in its PYTHONPATH, would break it.
    """
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", "") + more)
    trap = f"import pathlib; pathlib.Path({str(tmp_path / 'sprung')!r}).touch()"
    one = order(tmp_path, models.classifier())
    for folder in (tmp_path, tmp_path / "source"):
        for name in ("onnx", "numpy", "onnxruntime", "json"):
            (folder / f"{name}.py").write_text(trap)

    await workshop(tmp_path).work(one, lambda *_: None)

    assert not (tmp_path / "sprung").exists()


async def test_worker_ends_when_its_service_is_killed(tmp_path: Path, models: ModuleType, eventually: Any) -> None:
    """INVARIANT: no orphans; the pipe on standard input closes with the service, however it dies."""
    endless = Effort(rounds=1000, seconds_max=600, samples_max=16)
    (tmp_path / "order.json").write_text(
        order(tmp_path, models.classifier(width=4096), effort=endless).model_dump_json()
    )
    parent_script = (
        "import asyncio, pathlib, sys\n"
        "from modelworks.optimizer.adapters.workshop_subprocess import SubprocessWorkshop\n"
        "from modelworks.optimizer.order import Order\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "order = Order.model_validate_json((folder / 'order.json').read_text())\n"
        "def tick(stage, share): (folder / 'told').write_text(stage)\n"
        "asyncio.run(SubprocessWorkshop(folder, seconds_max=600).work(order, tick))\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", parent_script)
    told = tmp_path / "told"
    await eventually(lambda: told.exists() and told.read_text() == "evaluate", within=30)
    [worker] = [int(text) for text in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]

    parent.kill()
    await parent.wait()

    await eventually(lambda: gone(worker))


def job(id: str = "opt-1", fence: int = 1) -> Job:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    accepted, _ = domain.accept(
        id=id,
        repository="a/b",
        revision="1" * 40,
        ref="main",
        recipe={"name": "int8", "pass": "int8"},
        actor="x",
        now=now,
    )
    return accepted.model_copy(update={"fence": fence})


async def test_folder_of_a_run_is_empty_private_and_gone_at_its_end(tmp_path: Path) -> None:
    async with workshop(tmp_path / "new").folder(job()) as folder:
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o077 == 0

    assert list((tmp_path / "new").iterdir()) == []


async def test_folders_of_killed_runs_are_removed_by_the_next_and_others_are_not(tmp_path: Path) -> None:
    for name in ("opt-1.1.aa", "opt-10.1.aa"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.lock").touch()

    async with workshop(tmp_path).folder(job(fence=2)) as folder:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            [folder.name, f"{folder.name}.lock", "opt-10.1.aa", "opt-10.1.aa.lock"]
        )


async def test_folder_in_use_by_another_suite_with_the_same_job_is_left_alone(tmp_path: Path) -> None:
    async with workshop(tmp_path).folder(job()) as one, workshop(tmp_path).folder(job()) as other:
        assert one != other
        assert one.is_dir()


def test_service_imports_none_of_the_heavy_libraries() -> None:
    """INVARIANT: models are read in workers only; the embedded suite's memory depends on it."""
    import subprocess

    script = (
        "import sys, modelworks.optimizer.app\n"
        "from modelworks.optimizer.recipe import parse_recipe; parse_recipe('int8')\n"
        "print([name for name in ('onnx', 'onnxruntime', 'numpy', 'torch') if name in sys.modules])"
    )

    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert said.strip() == "[]"
