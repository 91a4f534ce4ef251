"""How the command speaks: tables for people, one JSON document for scripts, progress on standard error."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import typer
from modelworks.client.api import AsyncModelworks
from modelworks.client.connection import Connection, connect
from modelworks.kit.errors import ModelworksError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

T = TypeVar("T")

screen = Console(highlight=False)
notes = Console(stderr=True, highlight=False)


@dataclass
class Globals:
    """The options that every command understands."""

    url: str | None = None
    token: str | None = None
    data: Path | None = None
    json: bool = False

    def connection(self, *, scopes: tuple[str, ...] = (), client_id: str | None = None) -> Connection:
        """The suite they name."""
        return connect(url=self.url, token=self.token, data=self.data, scopes=scopes, client_id=client_id)


def run(context: typer.Context, work: Callable[[AsyncModelworks], Coroutine[Any, Any, T]]) -> T:
    """Run a piece of work against the suite; an error of the suite ends the command with one line and exit 1."""

    async def connected() -> T:
        async with context.obj.connection().client() as client:
            return await work(client)

    return guarded(connected)


def guarded(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run; errors become one line on standard error and exit 1."""
    try:
        return asyncio.run(work())
    except ModelworksError as error:
        fail(error.message)
    except KeyboardInterrupt:
        fail("interrupted")


def fail(message: str) -> NoReturn:
    """One clear line, exit 1."""
    notes.print(f"[bold red]modelworks:[/] {_plain(message)}", soft_wrap=True)
    raise typer.Exit(1)


def note(message: str) -> None:
    """Prose beside the result."""
    notes.print(_plain(message), soft_wrap=True)


def show(context: typer.Context, document: Any, render: Callable[[], None]) -> None:
    """The result: the JSON document, or what `render` prints."""
    if context.obj.json:
        sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")
    else:
        render()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table, or the sentence for none."""
    rows = list(rows)
    if not rows:
        note(empty)
        return
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(_plain("" if cell is None else str(cell)) for cell in row))
    screen.print(shown)


def properties(items: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold")
    shown.add_column(overflow="fold")
    for name, value in items.items():
        if value not in (None, "", [], {}):
            shown.add_row(name, _plain(str(value)))
    screen.print(shown)


@contextmanager
def transfer(label: str, size_bytes: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; silent when that is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task(label, total=size_bytes)
        yield lambda moved: bar.advance(task, moved)


def size(bytes_: float) -> str:
    """A size for people, binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if bytes_ < 1024 or unit == "GiB":
            return f"{bytes_:.0f} {unit}" if unit == "B" else f"{bytes_:.1f} {unit}"
        bytes_ /= 1024
    raise AssertionError


def _plain(text: str) -> str:
    """Text that rich must not read as markup: names may hold brackets."""
    return text.replace("[", "\\[")
