"""`python -m tests.bench [--column embedded|real|all] [--out FILE]`."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from modelworks.client import AsyncModelworks, ClientCredentials
from modelworks.client.connection import read_admin_file
from modelworks.client.demo.suite import SuiteProcess
from rich.console import Console
from rich.table import Table

from tests.bench import bus, objects, predict, walk
from tests.bench.harness import Result, document, machine

console = Console(highlight=False, width=max(150, Console().width))


def _show(results: list[Result]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("figure", "ours", "baseline", "ratio", "spread", "goal"):
        table.add_column(column, overflow="fold")
    for r in results:
        notes = "; ".join(f"{name} {value}" for name, value in r.notes.items())
        table.add_row(
            r.name + (f"\n  {notes}" if notes else ""), f"{r.ours:,.4g} {r.unit}", f"{r.baseline:,.4g} ({r.baseline_name})", f"{r.ratio:.2f}",
            f"{r.ratio_low:.2f} to {r.ratio_high:.2f}", r.goal,
        )  # fmt: skip
    console.print(table)


def _bare_python_mb() -> float:
    code = "import onnxruntime; print(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1])"
    return (
        int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        * 1024
        / 1e6
    )


async def _on_embedded(folder: Path) -> list[Result]:
    suite = SuiteProcess(folder / "suite", environment={"EDGE_RATE_PER_SECOND": "100000", "EDGE_RATE_BURST": "100000"})
    await asyncio.to_thread(suite.start)
    admin = read_admin_file(suite.data)
    token = ClientCredentials(token_url=admin.token_url, client_id=admin.client_id, client_secret=admin.client_secret)
    results: list[Result] = []
    try:
        async with AsyncModelworks(suite.url, token) as client:
            console.print("embedded: predict")
            results += await predict.overhead(client, await token(), suite.url, folder)
            results += walk.at_rest(suite, _bare_python_mb())
            console.print("embedded: walk")
            results.append(await walk.commit_to_served(client, folder))
            console.print("embedded: transfers")
            results += await objects.embedded(suite, client, folder)
    finally:
        await asyncio.to_thread(suite.stop)
    console.print("embedded: bus")
    results += await bus.on_sqlite(folder)
    return results


async def _on_real(folder: Path) -> list[Result]:
    from tests.stack.stack import Stack

    stack = Stack()
    console.print("starting the real servers ...")
    await asyncio.to_thread(stack.start)
    results: list[Result] = []
    try:
        environment = stack.environment()
        console.print("real: bus")
        results += await bus.on_kafka(environment["STORES_KAFKA_BOOTSTRAP"])
        suite = SuiteProcess(folder / "real", column="real", environment=environment)
        await asyncio.to_thread(suite.start)
        admin = read_admin_file(suite.data)
        token = ClientCredentials(
            token_url=admin.token_url, client_id=admin.client_id, client_secret=admin.client_secret
        )
        try:
            async with AsyncModelworks(suite.url, token) as client:
                console.print("real: transfers")
                results += await objects.on_s3(
                    suite, client, folder, url=environment["STORES_S3_ENDPOINT"],
                    access_key=environment["STORES_S3_ACCESS_KEY"], secret_key=environment["STORES_S3_SECRET_KEY"],
                    bucket=environment["STORES_S3_BUCKET"],
                )  # fmt: skip
                console.print("real: walk")
                results.append(await walk.commit_to_served(client, folder))
        finally:
            await asyncio.to_thread(suite.stop)
    finally:
        await asyncio.to_thread(stack.stop)
    return results


def main() -> None:
    """Run the cells and print them."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--column", choices=("embedded", "real", "all"), default="all")
    parser.add_argument("--out", type=Path, default=Path(f"bench-{time.strftime('%Y%m%d-%H%M%S')}.json"))
    arguments = parser.parse_args()
    console.print("  ".join(f"{name}: {value}" for name, value in machine().items()))
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="modelworks-bench-") as name:
        folder = Path(name)
        if arguments.column in ("embedded", "all"):
            results += asyncio.run(_on_embedded(folder))
        if arguments.column in ("real", "all"):
            results += asyncio.run(_on_real(folder))
    _show(results)
    arguments.out.write_text(json.dumps(document(results), indent=2) + "\n")
    console.print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
