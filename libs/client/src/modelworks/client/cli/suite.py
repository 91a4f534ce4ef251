"""Commands that run a suite on this machine: up and demo."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from modelworks.client.cli.console import fail
from modelworks.client.connection import DEFAULT_DATA
from modelworks.kit.errors import ModelworksError


def up(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
    stack: Annotated[
        str,
        typer.Option(
            help="'embedded': all in --data. 'real': Kafka, OpenSearch, S3 and Redis from STORES_* variables."
        ),
    ] = "embedded",
) -> None:
    """Run the whole suite in this process until SIGTERM or Ctrl-C; work under way is finished first.

    The first start makes an administrator's client and writes it to DIR/admin.json.
    """
    if stack not in ("embedded", "real"):
        raise typer.BadParameter(f"--stack {stack!r}: write embedded or real")
    from modelworks.client.up import run_suite

    data = context.obj.data or DEFAULT_DATA

    def ready(url: str) -> None:
        line = json.dumps({"url": url, "data": str(data)}) if context.obj.json else f"modelworks is ready at {url}"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        run_suite(data=data, host=host, port=port, column=stack, on_ready=ready)
    except ModelworksError as error:
        fail(error.message)


def demo(
    context: typer.Context,
    bert: Annotated[bool, typer.Option(help="The BERT demo: needs the torch extra.")] = False,
    files: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder with files to try; default: this one.")
    ] = None,
) -> None:
    """Do the main job, end to end, on a suite of its own: publish, optimize, deploy, predict, audit."""
    from modelworks.client.demo import run_demo

    raise typer.Exit(run_demo(data=context.obj.data, files=files or Path(), bert=bert))


def add_to(app: typer.Typer, epilog: str) -> None:
    """Register the commands."""
    app.command(epilog=epilog)(up)
    app.command(epilog=epilog)(demo)
