"""Clients and what they may ask for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from modelworks.auth.domain import NO_SECRET, Client, Grants, NewClient, SecretHash, create, delete
from modelworks.events import ClientCreated, ClientDeleted
from modelworks.kit.errors import Conflict, InvalidInput

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GRANTS = Grants({"publisher": frozenset({"write", "read"}), "consumer": frozenset({"predict"})})
HASH = SecretHash.of("secret", salt=b"0123456789abcdef")


def make(previous: Client | None = None, **changes: Any) -> Client:
    asked = NewClient(
        **{"id": "pipeline-1", "roles": ["publisher"], "scopes": None, "name": "a training pipeline", **changes}
    )
    client, _ = create(asked, grants=GRANTS, secret=HASH, previous=previous, actor="admin", now=NOW)
    return client


def test_new_client_is_announced_with_its_roles() -> None:
    asked = NewClient("pipeline-1", ["publisher", "consumer", "publisher"], None, "")

    client, events = create(asked, grants=GRANTS, secret=HASH, previous=None, actor="admin", now=NOW)

    assert client.roles == ("consumer", "publisher")
    assert (client.created_by, client.created_at) == ("admin", NOW)
    assert events == [ClientCreated(client="pipeline-1", roles=["consumer", "publisher"])]


@pytest.mark.parametrize(
    "id", ["a", "A-client", "-a", "a-", "a b", "a/b", "a:b", "ä-client", "a" * 65, "", "a\n", "aa\n"]
)
def test_client_id_of_other_characters_is_refused(id: str) -> None:
    with pytest.raises(InvalidInput, match="client_id"):
        make(id=id)


@pytest.mark.parametrize("id", ["system", "anonymous", "unknown"])
def test_names_for_nobody_in_particular_are_refused(id: str) -> None:
    with pytest.raises(InvalidInput, match="not anonymous, system, unknown"):
        make(id=id)


@pytest.mark.parametrize("id", ["ab", "9.model_works-x", "a" * 64])
def test_well_formed_client_ids_are_accepted(id: str) -> None:
    assert make(id=id).id == id


def test_unknown_role_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidInput, match="role 'root' does not exist: choose from consumer, publisher"):
        make(roles=["publisher", "root"])


def test_client_without_roles_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at least one of consumer, publisher"):
        make(roles=[])


def test_unknown_scope_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidInput, match="scope 'everything' does not exist: choose from predict, read, write"):
        make(scopes=["everything"])


def test_second_client_of_one_id_is_refused() -> None:
    with pytest.raises(Conflict, match="pipeline-1"):
        make(previous=make())


def test_client_may_ask_for_what_its_roles_can_use() -> None:
    assert GRANTS.of(make(roles=["publisher", "consumer"])) == {"read", "write", "predict"}


def test_scopes_narrow_and_never_widen_what_roles_can_use() -> None:
    assert GRANTS.of(make(scopes=["read", "predict"])) == {"read"}


def test_role_that_is_gone_gives_nothing() -> None:
    assert GRANTS.of(replace(make(), roles=("emperor",))) == frozenset()


def test_deleted_client_knows_no_secret_and_deleting_again_changes_nothing() -> None:
    stone, events = delete(make(), now=NOW)

    assert events == [ClientDeleted(client="pipeline-1")]
    assert not stone.secret.matches("secret")
    assert delete(stone, now=NOW + timedelta(days=1)) == (stone, [])


def test_deleted_id_may_be_used_again() -> None:
    stone, _ = delete(make(), now=NOW)

    assert make(previous=stone, roles=["consumer"]).deleted_at is None


def test_hash_matches_its_secret_only() -> None:
    assert HASH.matches("secret")
    assert not HASH.matches("secret ")
    assert not HASH.matches("")


def test_same_secret_has_another_hash_under_another_salt() -> None:
    assert SecretHash.of("secret", salt=b"another salt 16b").digest != HASH.digest


@pytest.mark.parametrize("secret", ["", "\0", "secret", "é"])
def test_nobody_has_no_secret(secret: str) -> None:
    assert not NO_SECRET.matches(secret)


def test_hash_is_not_shown_in_logs() -> None:
    assert HASH.digest.hex() not in repr(make())
    assert "digest" not in repr(make())
