"""Commands about what goes on: jobs, dead letters, audit, clients, tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from modelworks.client.api import AsyncModelworks
from modelworks.client.auditing import state_file, verify_hits, verify_log
from modelworks.client.cli.console import fail, guarded, note, properties, run, show, table
from modelworks.kit.errors import ModelworksError, NotFound

jobs = typer.Typer(help="Queued predictions and optimizations.", invoke_without_command=True)
events = typer.Typer(help="Dead letters: messages that their consumers gave up on.", no_args_is_help=True)
audit = typer.Typer(help="Who did what, with proofs.", no_args_is_help=True)
clients = typer.Typer(help="OAuth clients: who may use the suite.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID")]
Limit = Annotated[int, typer.Option(min=1, max=1000)]


@jobs.callback()
def list_jobs(context: typer.Context) -> None:
    """List jobs, newest first; 'modelworks jobs show ID' for one."""
    if context.invoked_subcommand:
        return

    async def work(client: AsyncModelworks) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        for kind, page in (("prediction", await client.jobs()), ("optimization", await client.optimizations())):
            found += [{"kind": kind, **item} for item in page.items]
        return sorted(found, key=lambda job: str(job.get("created_at")), reverse=True)

    items = run(context, work)
    rows = [
        (j["id"], j["kind"], j.get("model") or j.get("repository"), j["status"], j.get("created_at")) for j in items
    ]
    show(context, items, lambda: table(("id", "kind", "model", "status", "created"), rows, empty="no jobs"))


@jobs.command("show")
def show_job(context: typer.Context, id: Id) -> None:
    """One job."""

    async def work(client: AsyncModelworks) -> Mapping[str, Any]:
        try:
            return await client.job(id)
        except NotFound:
            return await client.optimization(id)

    job = run(context, work)
    show(context, job, lambda: properties(job))


@jobs.command("cancel")
def cancel_job(context: typer.Context, id: Id) -> None:
    """Cancel a waiting or running job."""

    async def work(client: AsyncModelworks) -> None:
        try:
            await client.cancel_job(id)
        except NotFound:
            await client.cancel_optimization(id)

    run(context, work)
    show(context, {"id": id, "cancelled": True}, lambda: note(f"job {id} is cancelled"))


@events.command("list")
def list_events(context: typer.Context, topic: str = "", limit: Limit = 100) -> None:
    """Dead letters, newest first."""
    page = run(context, lambda client: client.dead_letters(limit=limit, topic=topic))
    rows = [(i["id"], i["topic"], i["key"], i["group"], i["attempts"], i["failed_at"], i["error"]) for i in page.items]
    columns = ("id", "topic", "key", "group", "attempts", "failed", "error")
    show(context, page.items, lambda: table(columns, rows, empty="no dead letters"))


@events.command("show")
def show_event(context: typer.Context, id: Id) -> None:
    """One dead letter, with its headers and body."""
    letter = run(context, lambda client: client.dead_letter(id))
    show(context, letter, lambda: properties(letter))


@events.command("replay")
def replay_events(
    context: typer.Context,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID ...")] = None,
    all: Annotated[bool, typer.Option("--all", help="Every dead letter that was not replayed yet.")] = False,
) -> None:
    """Hand dead letters to their consumers again."""
    if bool(ids) == all:
        raise typer.BadParameter("name the ids to replay, or give --all")

    async def work(client: AsyncModelworks) -> list[str]:
        wanted = ids or [item["id"] for item in (await client.dead_letters(limit=1000)).items if not item["replayed"]]
        for id in wanted:
            await client.replay(id)
        return wanted

    done = run(context, work)
    show(context, {"replayed": done}, lambda: note(f"{len(done)} replayed"))


@audit.command("search")
def search_audit(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="Words: an actor, a model, a reason, part of an event's name.")] = "",
    actor: str = "",
    outcome: Annotated[str, typer.Option(help="success, failure or denied.")] = "",
    limit: Limit = 20,
) -> None:
    """Who did what, newest first; each hit's proof is checked before it is shown."""

    async def work(client: AsyncModelworks) -> tuple[Mapping[str, Any], int]:
        page = await client.audit(query, limit=limit, actor=actor, outcome=outcome)
        document = {"items": list(page.items), "total": page.total, "cursor": page.cursor, **page.extra}
        return document, verify_hits(document, await client.text("/api/v1/audit/key"))

    document, verified = run(context, work)
    rows = [(i["index"], i["time"][:19], i["actor"], i["type"], i["outcome"], i["resource"]) for i in document["items"]]

    def render() -> None:
        table(("leaf", "when", "who", "what", "outcome", "on"), rows, empty="no entries")
        note(f"{verified} of {len(rows)} proofs verified; {document['total']} entries in all")

    show(context, {**document, "verified": verified}, render)


@audit.command("verify")
def verify_audit(
    context: typer.Context,
    key: Annotated[str, typer.Option(help="The log's public key, if you know it: do not take the suite's word.")] = "",
    state: Annotated[
        Path | None,
        typer.Option(help="File that remembers the log's key and last head; default: in your state folder."),
    ] = None,
) -> None:
    """Read the whole log and check every entry against its signed head.

    The key and the head are remembered: the next time the log must have the same key and be a continuation.
    """

    async def work(client: AsyncModelworks) -> Mapping[str, Any]:
        return await verify_log(client, key=key, state=state or state_file(client.http.url))

    result = run(context, work)

    def render() -> None:
        note(f"{result['size']} entries verified, root {result['root']}")
        if result["grown_from"] is not None:
            note(f"a continuation of the {result['grown_from']} entries that were verified before")

    show(context, result, render)


@clients.command("list")
def list_clients(context: typer.Context) -> None:
    """All clients."""
    answer = run(context, lambda client: client.http.json("GET", "/api/v1/clients"))
    rows = [(i["client_id"], " ".join(i["roles"]), i.get("name")) for i in answer["items"]]
    show(context, answer["items"], lambda: table(("client", "roles", "name"), rows, empty="no clients"))


@clients.command("create")
def create_client(
    context: typer.Context,
    client_id: Annotated[str, typer.Argument(help="Its id, for example 'ci' or 'alice'.")],
    role: Annotated[
        list[str], typer.Option(help="administrator, publisher, operator, consumer, auditor; may be repeated.")
    ],
) -> None:
    """Create a client; its secret is shown once."""
    body = {"client_id": client_id, "roles": role}
    created = run(context, lambda client: client.http.json("POST", "/api/v1/clients", json=body))
    show(context, created, lambda: properties(created))


@clients.command("delete")
def delete_client(context: typer.Context, client_id: str) -> None:
    """Delete a client; its tokens end when they expire."""
    run(context, lambda client: client.http.json("DELETE", f"/api/v1/clients/{client_id}"))
    show(context, {"client_id": client_id, "deleted": True}, lambda: note(f"client {client_id} is deleted"))


def token(
    context: typer.Context,
    scope: Annotated[list[str] | None, typer.Option(help="A scope to ask for; may be repeated. Default: all.")] = None,
    client_id: Annotated[str | None, typer.Option(help="Another client than the administrator's.")] = None,
) -> None:
    """Print an access token."""
    try:
        connection = context.obj.connection(scopes=tuple(scope or ()), client_id=client_id)
    except ModelworksError as error:
        fail(error.message)

    async def work() -> str:
        return str(await connection.token())

    given = guarded(work)
    typer.echo(json.dumps({"access_token": given}) if context.obj.json else given)


def add_to(app: typer.Typer, epilog: str) -> None:
    """Register the commands."""
    app.command(epilog=epilog)(token)
    for name, group in (("jobs", jobs), ("events", events), ("audit", audit), ("clients", clients)):
        app.add_typer(group, name=name, epilog=epilog)
