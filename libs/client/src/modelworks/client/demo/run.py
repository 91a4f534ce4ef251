"""`modelworks demo`: a suite of its own, the walk with progress shown, a table at the end."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from modelworks.client.connection import read_admin_file
from modelworks.client.demo.magika import find_magika, sample_files
from modelworks.client.demo.steps import WalkFailed
from modelworks.client.demo.suite import SuiteProcess
from modelworks.client.demo.walk import Walk
from modelworks.kit.errors import ModelworksError
from modelworks.kit.tasks import end
from rich.console import Console
from rich.table import Table

_LOOK_SECONDS = 0.5
_FILES_MAX = 120
_SENTENCES_MAX = 500
_EFFORT = {"OPTIMIZER_EVALUATION_SECONDS_MAX": "1.5"}
"""Less measuring than a suite does by default: a demonstration should not keep people waiting."""

_Take = Callable[[str, Callable[[], Awaitable[str]]], Awaitable[None]]
"""Takes a named step."""


def run_demo(*, data: Path | None, files: Path, bert: bool) -> int:
    """Run it; returns the exit status. `data` None: a temporary folder, removed at the end."""
    console = Console(highlight=False)
    try:
        if data is not None:
            return asyncio.run(_demo(console, data, files, bert))
        with tempfile.TemporaryDirectory(prefix="modelworks-demo-") as folder:
            return asyncio.run(_demo(console, Path(folder), files, bert))
    except KeyboardInterrupt:
        console.print("demo: interrupted")
        return 1


async def _demo(console: Console, data: Path, files: Path, bert: bool) -> int:
    suite = SuiteProcess(data, environment=_EFFORT)
    rows: list[tuple[str, str, float]] = []
    step = "start"
    walk: Any = None

    async def take(name: str, work: Callable[[], Awaitable[str]]) -> None:
        nonlocal step
        step = name
        started = time.monotonic()
        with console.status(name):
            outcome = await work()
        seconds = time.monotonic() - started
        rows.append((name, outcome, seconds))
        console.print(f"[green]ok[/] {name}: {_plain(outcome)} [dim]({seconds:.1f} s)[/]", soft_wrap=True)

    async def start() -> str:
        await asyncio.to_thread(suite.start)
        return f"ready at {suite.url} after {suite.ready_seconds:.1f} s, data in {data}"

    watching: asyncio.Task[None] | None = None
    try:
        await take("start", start)
        watching = asyncio.create_task(_keep_running(console, suite), name="keep the suite running")
        if bert:
            walk = await asyncio.to_thread(_bert, suite, data, files)
            await _bert_steps(walk, take, console)
        else:
            walk = _walk(suite, data, files)
            await _steps(walk, take, console)
    except (ModelworksError, WalkFailed, TimeoutError, httpx.HTTPError) as error:
        console.print(f"[bold red]failed[/] {step}: {_plain(str(error) or type(error).__name__)}")
        console.print(_plain(_hint(suite)))
        console.print("demo: failed")
        return 1
    finally:
        if watching is not None:
            await end(watching)
        if walk is not None:
            await walk.close()
        await asyncio.to_thread(suite.stop)
    _table(console, rows)
    console.print("demo: ok")
    return 0


async def _keep_running(console: Console, suite: SuiteProcess) -> None:
    """Kill the suite in the middle if you like: it is started again on the same data, and the work goes on."""
    port = int(suite.url.rpartition(":")[2])
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if suite.alive():
            continue
        console.print(f"   [yellow]the suite was ended[/]; starting it again on {suite.data}", soft_wrap=True)
        try:
            await asyncio.to_thread(suite.start, port=port)
        except ModelworksError as error:
            # Somebody was quicker, or it cannot start: the walk waits for either and says what it missed.
            console.print(f"   {_plain(error.message.splitlines()[-1])}", soft_wrap=True)
            return


def _walk(suite: SuiteProcess, data: Path, files: Path) -> Walk:
    work = data / "work"
    work.mkdir(exist_ok=True)
    samples = sample_files(files, files_max=_FILES_MAX)
    return Walk(suite.url, read_admin_file(data), find_magika(), samples, Path(tempfile.mkdtemp(dir=work)))


def _bert(suite: SuiteProcess, data: Path, files: Path) -> Any:
    from modelworks.client.demo.bert import BertWalk
    from modelworks.client.demo.corpus import read_corpus
    from modelworks.client.demo.minilm import find_minilm

    work = data / "work"
    work.mkdir(exist_ok=True)
    encoder, sentences = find_minilm(), read_corpus(files, sentences_max=_SENTENCES_MAX)
    return BertWalk(suite.url, read_admin_file(data), encoder, sentences, Path(tempfile.mkdtemp(dir=work)))


async def _bert_steps(walk: Any, take: _Take, console: Console) -> None:
    from modelworks.audit.verify import verify_search_answer

    for name, work in walk.steps(verify_search_answer, _progress(console)):
        await take(name, work)
        for exhibit in walk.exhibits:
            console.print(exhibit)
        walk.exhibits.clear()


def _progress(console: Console) -> Callable[[str], None]:
    """Shows each stage of an optimization once in a row."""
    last = ""

    def progress(stage: str) -> None:
        nonlocal last
        if stage != last:
            last = stage
            console.print(f"   [dim]optimizer: {_plain(stage)}[/]")

    return progress


async def _steps(walk: Walk, take: _Take, console: Console) -> None:
    from modelworks.audit.verify import verify_search_answer

    progress = _progress(console)
    await take("log in", walk.log_in)
    await take("publish", walk.publish)
    await take("optimize", lambda: walk.optimize(progress))
    for finding in walk.found["job"]["report"].get("findings", []):
        console.print(f"   {_plain(finding)}", soft_wrap=True)
    await take("deploy", walk.deploy)
    await take("predict", walk.predict)
    await take("answer an event", walk.answer_event)
    await take("refuse", walk.refuse)
    await take("audit", lambda: walk.audit(verify_search_answer))


def _table(console: Console, rows: list[tuple[str, str, float]]) -> None:
    table = Table(title="The main job, end to end", title_justify="left", box=None, header_style="bold", pad_edge=False)
    table.add_column("step")
    table.add_column("outcome", overflow="fold")
    table.add_column("seconds", justify="right")
    for name, outcome, seconds in rows:
        table.add_row(name, _plain(outcome), f"{seconds:.1f}")
    console.print()
    console.print(table)


def _hint(suite: SuiteProcess) -> str:
    if suite.alive():
        return f"the suite's log is {suite.log}"
    try:
        tail = "\n".join(suite.log.read_text("utf-8", "replace").splitlines()[-8:])
    except OSError:
        tail = "(none)"
    return f"the suite has ended; its log ends:\n{tail}"


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
