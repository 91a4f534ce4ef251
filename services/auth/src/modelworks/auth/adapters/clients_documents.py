"""Clients in the document store, their events in the same write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from modelworks.auth.domain import Client, SecretHash
from modelworks.auth.ports import ClientPage, StoredClient
from modelworks.events import Event
from modelworks.stores import Documents, Field, FieldType, Filter, Query, Schema
from modelworks.stores.outbox import Outbox, stored

SCHEMA = Schema(
    "auth-clients",
    (Field("deleted", FieldType.BOOLEAN), Field("roles", FieldType.KEYWORD), Field("created_at", FieldType.TIME)),
)


class DocumentClients:
    """See `ports.Clients`."""

    def __init__(self, outbox: Outbox, documents: Documents) -> None:
        self._outbox = outbox
        self._documents = documents

    async def get(self, id: str) -> StoredClient | None:
        found = await self._outbox.get(id)
        return None if found is None else StoredClient(_client(found.id, found.state), found.version)

    async def save(self, client: Client, events: Sequence[Event], *, expected: str | None, actor: str) -> None:
        await self._outbox.save(client.id, _state(client), events, expected=expected, actor=actor)

    async def page(self, *, limit: int, cursor: str | None) -> ClientPage:
        query = Query(filters=(Filter("deleted", "eq", False),), limit=limit, cursor=cursor)
        page = await self._documents.search(SCHEMA.collection, query)
        found = [stored(hit.document) for hit in page.hits]
        return ClientPage([_client(each.id, each.state) for each in found], page.total, page.cursor)


def _state(client: Client) -> dict[str, Any]:
    return {
        "name": client.name,
        "roles": list(client.roles),
        "scopes": None if client.scopes is None else list(client.scopes),
        "secret": {"salt": client.secret.salt.hex(), "digest": client.secret.digest.hex()},
        "created_at": _text(client.created_at),
        "created_by": client.created_by,
        "deleted": client.deleted_at is not None,
        "deleted_at": None if client.deleted_at is None else _text(client.deleted_at),
    }


def _client(id: str, state: Mapping[str, Any]) -> Client:
    scopes, deleted_at, secret = state["scopes"], state["deleted_at"], state["secret"]
    return Client(
        id=id,
        roles=tuple(state["roles"]),
        scopes=None if scopes is None else tuple(scopes),
        secret=SecretHash(bytes.fromhex(secret["salt"]), bytes.fromhex(secret["digest"])),
        name=state["name"],
        created_at=datetime.fromisoformat(state["created_at"]),
        created_by=state["created_by"],
        deleted_at=None if deleted_at is None else datetime.fromisoformat(deleted_at),
    )


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
