"""The command line's root: options that every command understands, and the list of commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from modelworks.client.cli import models, operations, suite
from modelworks.client.cli.console import Globals

COMMON = "Common options, anywhere on the line: --url URL, --token TOKEN, --data DIR, --json."

app = typer.Typer(
    name="modelworks",
    help="""Public works for foundation models.

    Start a suite on this machine:   modelworks up

    Publish, optimize, serve:        modelworks push FOLDER me/model; modelworks optimize me/model --wait;
                                     modelworks deploy me/model@recommended --wait

    Use it, and see who did what:    modelworks predict me/model --input x=x.npy; modelworks audit search me/model
    """,
    epilog="The suite is found by --url and --token, MODELWORKS_URL and MODELWORKS_TOKEN, or --data DIR of 'modelworks up'.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def common(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="Address of the suite's door.", metavar="URL")] = None,
    token: Annotated[str | None, typer.Option(help="Access token.", metavar="TOKEN")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of an embedded suite.", metavar="DIR")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    context.obj = Globals(url=url, token=token, data=data, json=json)


models.add_to(app, COMMON)
operations.add_to(app, COMMON)
suite.add_to(app, COMMON)

_WITH_VALUE = ("--url", "--token", "--data")


def hoist(arguments: list[str]) -> list[str]:
    """Move the common options to the front, so that they may stand anywhere on the line."""
    front: list[str] = []
    rest: list[str] = []
    queue = iter(arguments)
    for argument in queue:
        if argument == "--":
            rest.extend([argument, *queue])
        elif argument in _WITH_VALUE:
            front.extend([argument, *[value for value in [next(queue, None)] if value is not None]])
        elif argument == "--json" or argument.startswith(tuple(f"{name}=" for name in _WITH_VALUE)):
            front.append(argument)
        else:
            rest.append(argument)
    return front + rest


def main() -> None:
    """Entry point of the `modelworks` script."""
    app(args=hoist(sys.argv[1:]), prog_name="modelworks")
