"""Commands about models: push, pull, log, search, optimize, deploy, predict."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from modelworks.client.api import AsyncModelworks
from modelworks.client.cli.console import fail, note, properties, run, show, table, transfer
from modelworks.client.folders import files_of, read_recipe, sha256_of
from modelworks.client.tensors import decode_answer, encode_request, load_inputs
from modelworks.kit.errors import InvalidInput, NotFound

Name = Annotated[str, typer.Argument(metavar="NAMESPACE/NAME", help="The model's repository.")]
NameAtRef = Annotated[
    str, typer.Argument(metavar="NAMESPACE/NAME[@REF]", help="The model; REF is a branch, tag or commit, default main.")
]
_WAIT_SECONDS = 60


def split(name: str, *, default: str = "main") -> tuple[str, str]:
    """`namespace/name@ref` in its two parts."""
    model, at, ref = name.partition("@")
    if at and not ref:
        raise typer.BadParameter(f"{name!r} ends in '@': write a branch, tag or commit behind it, or leave it out")
    if model.count("/") != 1:
        raise typer.BadParameter(f"{model!r} is not a model's name: write namespace/name")
    return model, ref or default


def push(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="What to publish.")],
    name: Name,
    branch: Annotated[str, typer.Option(help="Branch to commit on.")] = "main",
    message: Annotated[str, typer.Option("--message", "-m", help="What changed.")] = "",
    mirror: Annotated[bool, typer.Option(help="Also delete what the folder does not have.")] = False,
    private: Annotated[bool, typer.Option(help="Create the repository private, if it is new.")] = False,
) -> None:
    """Publish a folder as a commit and print its id. The repository is made when it is new."""
    model, _ = split(name)

    async def work(client: AsyncModelworks) -> Mapping[str, Any]:
        files = files_of(folder)
        try:
            repository = await client.repository(model)
        except NotFound:
            repository = await client.create_repository(model, private=private)
        refs = {ref.name: ref.revision for ref in await client.refs(model) if ref.kind == "branch"}
        puts = {}
        with transfer(f"push {model}", sum(path.stat().st_size for path in files.values())) as moved:
            for path, file in files.items():
                puts[path] = await client.upload(model, file, progress=moved)
        deletes: list[str] = []
        if mirror and branch in refs:
            tree = (await client.revision(model, branch)).tree
            deletes = [entry.path for entry in tree if entry.path not in files]
        start = repository.get("head") if branch not in refs else None
        commit = await client.commit(
            model, message=message or f"Push {folder.name}", puts=puts, deletes=deletes, branch=branch,
            expected=refs.get(branch), start=start,
        )  # fmt: skip
        return {"repository": model, "branch": branch, "revision": commit.revision, "files": len(files)}

    done = run(context, work)
    show(context, done, lambda: typer.echo(done["revision"]))


def pull(
    context: typer.Context,
    name: NameAtRef,
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Where to put the files.")],
) -> None:
    """Fetch a revision's files, each verified by its sha256; files that are there already are not fetched again."""
    model, ref = split(name)

    async def work(client: AsyncModelworks) -> Mapping[str, Any]:
        revision = await client.revision(model, ref)
        root = folder.resolve()
        wanted = []
        for entry in revision.tree:
            target = (root / entry.path).resolve()
            if not target.is_relative_to(root):
                raise InvalidInput(f"path {entry.path!r} leads out of {folder}: nothing was fetched")
            if not (target.is_file() and await asyncio.to_thread(sha256_of, target) == entry.sha256):
                wanted.append((entry, target))
        with transfer(f"pull {model}", sum(entry.size_bytes for entry, _ in wanted)) as moved:
            for entry, target in wanted:
                target.parent.mkdir(parents=True, exist_ok=True)
                await client.download(model, entry.path, revision.revision, target, sha256=entry.sha256, progress=moved)
        return {"repository": model, "revision": revision.revision, "files": len(revision.tree), "fetched": len(wanted)}

    done = run(context, work)
    show(
        context, done, lambda: note(f"{done['fetched']} of {done['files']} files fetched, revision {done['revision']}")
    )


def log(context: typer.Context, name: NameAtRef, limit: Annotated[int, typer.Option(min=1, max=1000)] = 20) -> None:
    """Commits, newest first."""
    model, ref = split(name)
    commits = run(context, lambda client: client.log(model, ref, limit=limit))
    document = [{"revision": c.revision, "message": c.message, "author": c.author, "created_at": c.created_at,
                 "parents": list(c.parents), "lineage": c.lineage} for c in commits]  # fmt: skip
    rows = [(c.revision[:12], c.created_at[:19], c.author, c.message) for c in commits]
    show(context, document, lambda: table(("revision", "when", "who", "message"), rows, empty="no commits"))


def search(context: typer.Context, text: Annotated[str, typer.Argument(help="Words of the card.")] = "") -> None:
    """Find models."""
    page = run(context, lambda client: client.search(text))
    rows = [(i["name"], i.get("task"), i.get("license"), (i.get("head") or "")[:12]) for i in page.items]
    show(context, {"items": page.items, "total": page.total},
         lambda: table(("name", "task", "licence", "head"), rows, empty="nothing found"))  # fmt: skip


def optimize(
    context: typer.Context,
    name: NameAtRef,
    recipe: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Recipe file (YAML or JSON).")
    ] = None,
    goal: Annotated[str, typer.Option(help="Name of a built-in recipe.")] = "int8",
    wait: Annotated[bool, typer.Option(help="Wait for the verdict.")] = False,
) -> None:
    """Build a smaller or faster variant and say whether it is worth using."""
    model, ref = split(name)

    async def work(client: AsyncModelworks) -> Mapping[str, Any]:
        job = await client.optimize(model, ref=ref, recipe=read_recipe(recipe) if recipe else goal)
        while wait and job["status"] in ("queued", "running"):
            note(f"{job['id']}: {job['status']} {job.get('stage') or ''} {round(100 * (job.get('progress') or 0))} %")
            job = await client.optimization(job["id"], wait_seconds=5)
        return job

    job = run(context, work)
    shown = {key: job.get(key) for key in ("id", "repository", "revision", "status", "verdict", "variant", "error")}
    show(context, job, lambda: properties(shown))
    if job["status"] == "failed":
        fail(f"optimization {job['id']} failed: {(job.get('error') or {}).get('message')}")


def deploy(
    context: typer.Context, name: NameAtRef, wait: Annotated[bool, typer.Option(help="Wait until it serves.")] = False
) -> None:
    """Serve a model under its name on every protocol; it follows REF when that moves."""
    model, ref = split(name)

    async def work(client: AsyncModelworks) -> Mapping[str, Any]:
        deployment = await client.deploy(model, ref=ref)
        while wait and deployment["status"] == "loading":
            deployment = await client.deployment(model, wait_seconds=_WAIT_SECONDS)
        return deployment

    deployment = run(context, work)
    keys = ("model", "ref", "revision", "status", "error")
    show(context, deployment, lambda: properties({key: deployment.get(key) for key in keys}))
    if deployment["status"] == "failed":
        fail(f"{model} could not be loaded: {deployment.get('error')}")


def predict(
    context: typer.Context,
    name: NameAtRef,
    input: Annotated[list[str], typer.Option("--input", metavar="NAME=FILE.npy", help="An input tensor.")],
    queue: Annotated[bool, typer.Option(help="Through the durable queue instead of directly.")] = False,
) -> None:
    """Predict with a deployed model."""
    model, at, _ = name.partition("@")
    ref = split(name)[1] if at else None

    async def work(client: AsyncModelworks) -> Mapping[str, Any]:
        tensors = load_inputs(input)
        if queue:
            more = {"ref": ref} if ref else {}
            job = await client.enqueue(model, [tensor.as_json() for tensor in tensors], **more)
            while job["status"] in ("queued", "running"):
                job = await client.job(job["id"], wait_seconds=_WAIT_SECONDS)
            if job["status"] != "succeeded":
                raise InvalidInput(f"job {job['id']} {job['status']}: {(job.get('error') or {}).get('message', '')}")
            return await client.job_result(job["id"])
        if ref is not None:
            deployed = await client.deployment(model)
            if ref not in (deployed["ref"], deployed["revision"]):
                raise InvalidInput(f"{model} serves {deployed['ref']}, not {ref}: deploy it first, or use --queue")
        body, header_bytes = encode_request(tensors)
        return decode_answer(*await client.predict_binary(model, body, header_bytes))

    answer = run(context, work)
    rows = [(o["name"], o["datatype"], o["shape"], _short(o["data"])) for o in answer["outputs"]]
    show(context, answer, lambda: table(("output", "type", "shape", "data"), rows, empty="no outputs"))


def _short(data: object) -> str:
    text = str(data)
    return text if len(text) <= 300 else text[:300] + " ..."


def add_to(app: typer.Typer, epilog: str) -> None:
    """Register the commands."""
    for command in (push, pull, log, search, optimize, deploy, predict):
        app.command(epilog=epilog)(command)
