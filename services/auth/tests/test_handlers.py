"""Several replicas over one store, stores that fail, and what a start makes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from modelworks.auth.settings import AuthSettings
from modelworks.events import ClientCreated, KeyRotated, TokenIssued, TokenRefused
from modelworks.kit.errors import InvalidInput, StoreUnavailable
from modelworks.kit.settings import explain
from modelworks.stores.bus.port import Delivery, Message
from modelworks.stores.stores import Stores
from pydantic import ValidationError

if TYPE_CHECKING:
    from services.auth.tests.conftest import Auth, Clock, Heard, Start

MASTER = "another master key, 32 characters"
SECRET = "a secret of a service, long enough"


class Broken:
    """A store in front of the real one: while `down`, it fails as its port says it may."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.down = False
        self.slow_seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not asyncio.iscoroutinefunction(method):
            return method

        async def guarded(*args: Any, **options: Any) -> Any:
            if self.down:
                raise StoreUnavailable("the store does not answer")
            await asyncio.sleep(self.slow_seconds)
            return await method(*args, **options)

        return guarded


def breakable(stores: Stores) -> tuple[Stores, Mapping[str, Broken]]:
    broken = {name: Broken(getattr(stores, name)) for name in ("bus", "objects", "documents", "keyvalue")}
    return replace(stores, **broken), broken


async def kids(auth: Auth) -> list[str]:
    answer = await auth.http.get("/.well-known/jwks.json")
    return [key["kid"] for key in answer.json()["keys"]]


# --- replicas


async def test_replicas_share_one_ring_also_when_they_start_at_once(
    start: Start, heard: Heard, eventually: Callable[..., Any]
) -> None:
    contexts = [start() for _ in range(4)]
    replicas: Sequence[Auth] = await asyncio.gather(*(context.__aenter__() for context in contexts))

    try:
        rings = [await kids(replica) for replica in replicas]
        assert all(ring == rings[0] for ring in rings)
        for replica in replicas:
            assert (await replicas[0].platform.verifier.verify(await replica.token())).id == "admin"
        await eventually(lambda: len(heard.of(TokenIssued)) == 4)
        assert len(heard.of(KeyRotated)) == 1
        assert len(heard.of(ClientCreated)) == 1
    finally:
        for context in contexts:
            await context.__aexit__(None, None, None)


async def test_rotation_by_two_replicas_at_once_rotates_once(
    start: Start, clock: Clock, heard: Heard, eventually: Callable[..., Any]
) -> None:
    async with start() as first, start() as second:
        clock.forward(minutes=11)
        before = await kids(first)
        headers = await first.bearer()

        answers: list[httpx.Response] = await asyncio.gather(
            *(replica.http.post("/api/v1/keys/rotate", headers=headers) for replica in (first, second) * 4)
        )

        assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
        await eventually(lambda: same_ring(first, second))
        assert (await kids(first))[0] == before[1]
        await eventually(lambda: len(heard.of(KeyRotated)) == 2)


async def same_ring(first: Auth, second: Auth) -> bool:
    return await kids(first) == await kids(second)


async def test_rotation_by_age_in_two_replicas_rotates_once(
    start: Start, clock: Clock, heard: Heard, eventually: Callable[..., Any]
) -> None:
    async with start() as first, start() as second:
        before = await kids(first)
        clock.forward(days=31)

        await eventually(lambda: len(heard.of(KeyRotated)) >= 2)
        await eventually(lambda: same_ring(first, second))

        assert (await kids(first))[0] == before[1]
        assert len(heard.of(KeyRotated)) == 2


class Deaf(Broken):
    """A bus on which nothing is heard."""

    async def tail(self, *_: Any, **__: Any) -> AsyncIterator[Delivery]:
        await asyncio.Event().wait()
        yield  # type: ignore[misc]


async def test_replica_that_lags_behind_a_rotation_signs_with_a_key_that_still_verifies(
    start: Start, stores: Stores, clock: Clock
) -> None:
    deaf = replace(stores, bus=Deaf(stores.bus))
    async with start() as first, start(on=deaf, keys_reload_seconds=60) as lagging:
        clock.forward(minutes=12)
        await first.http.post("/api/v1/keys/rotate", headers=await first.bearer())

        token = await lagging.token()

        assert first.part_of(token, 0)["kid"] == (await kids(first))[2]
        assert (await first.platform.verifier.verify(token)).id == "admin"


async def test_tokens_are_issued_without_a_gap_while_keys_rotate(start: Start, clock: Clock) -> None:
    async with start() as first, start() as second:
        clock.forward(minutes=11)
        headers = await first.bearer()

        async def issue(replica: Auth) -> None:
            for _ in range(20):
                await first.platform.verifier.verify(await replica.token())

        await asyncio.gather(
            issue(first), issue(second), second.http.post("/api/v1/keys/rotate", headers=headers), issue(second)
        )


async def test_client_made_by_two_replicas_at_once_is_made_once(start: Start) -> None:
    async with start() as first, start() as second:
        headers = await first.bearer()
        body = {"client_id": "app", "roles": ["consumer"]}

        answers: list[httpx.Response] = await asyncio.gather(
            *(replica.http.post("/api/v1/clients", json=body, headers=headers) for replica in (first, second) * 3)
        )

        made = [answer for answer in answers if answer.status_code == 201]
        assert len(made) == 1
        assert {answer.status_code for answer in answers} <= {201, 409, 412}
        assert (await second.ask(("app", made[0].json()["client_secret"]))).status_code == 200


async def test_client_deleted_in_one_replica_is_refused_by_the_other_at_once(start: Start) -> None:
    async with start() as first, start() as second:
        client = await first.make_client(client_id="app", roles=["consumer"])
        assert (await second.ask(client)).status_code == 200

        await first.http.delete("/api/v1/clients/app", headers=await first.bearer())

        assert (await second.ask(client)).status_code == 401


# --- what a start makes


async def test_clients_of_the_settings_are_made_at_start(start: Start) -> None:
    service = {
        "optimizer": {"secret": SECRET, "roles": ["service"]},
        "probe": {"secret": SECRET, "roles": ["auditor"], "scopes": ["metrics"]},
    }
    async with start(service_clients=service) as auth:
        assert auth.part_of(await auth.token(("optimizer", SECRET)), 1)["roles"] == ["service"]
        assert auth.part_of(await auth.token(("probe", SECRET)), 1)["scope"] == "metrics"


async def test_second_start_with_the_same_settings_writes_nothing(
    start: Start, heard: Heard, eventually: Callable[..., Any]
) -> None:
    service = {"optimizer": {"secret": SECRET}}
    async with start(service_clients=service) as auth:
        first = await kids(auth)
    async with start(service_clients=service) as auth:
        assert await kids(auth) == first
        await auth.token()
        await eventually(lambda: heard.of(TokenIssued))

    assert [envelope.event.client for envelope in heard.of(ClientCreated)] == ["admin", "optimizer"]
    assert len(heard.of(KeyRotated)) == 1


async def test_changed_secret_of_the_settings_replaces_the_old_one(start: Start) -> None:
    async with start(service_clients={"optimizer": {"secret": SECRET}}):
        pass
    async with start(service_clients={"optimizer": {"secret": SECRET[::-1], "roles": ["service", "auditor"]}}) as auth:
        assert (await auth.ask(("optimizer", SECRET))).status_code == 401
        assert auth.part_of(await auth.token(("optimizer", SECRET[::-1])), 1)["roles"] == ["auditor", "service"]


async def test_client_of_the_settings_that_was_deleted_comes_back_at_start(start: Start) -> None:
    async with start() as auth:
        await auth.make_client(client_id="second", roles=["administrator"])
        assert (await auth.http.delete("/api/v1/clients/admin", headers=await auth.bearer())).status_code == 204
        assert (await auth.ask()).status_code == 401
    async with start() as auth:
        assert (await auth.ask()).status_code == 200


async def test_without_a_secret_no_administrator_is_made(start: Start) -> None:
    async with start(admin_client_secret="") as auth:
        assert (await auth.ask(("admin", ""))).status_code == 401
        assert (await auth.ask()).status_code == 401


async def test_role_that_does_not_exist_stops_the_start_with_the_way_out(start: Start) -> None:
    with pytest.raises(InvalidInput, match="role 'root' does not exist: choose from administrator"):
        async with start(service_clients={"optimizer": {"secret": SECRET, "roles": ["root"]}}):
            pass


async def test_another_master_key_stops_the_start_with_the_way_out(start: Start) -> None:
    async with start():
        pass
    with pytest.raises(InvalidInput, match="AUTH_MASTER_KEY is not the one") as refused:
        async with start(master_key=MASTER):
            pass

    assert MASTER not in refused.value.message


async def test_private_keys_are_not_readable_at_rest(start: Start, stores: Stores) -> None:
    async with start() as auth:
        published = await kids(auth)
        document = await stores.documents.get("auth-keys", "ring")

    assert document is not None
    assert document.body["published"] == published
    assert '"d"' not in str(document.body)
    assert "private" not in str(document.body)


async def test_altered_keys_are_refused(start: Start, stores: Stores) -> None:
    async with start():
        pass
    document = await stores.documents.get("auth-keys", "ring")
    assert document is not None
    sealed = str(document.body["sealed"])
    altered = {**document.body, "sealed": sealed[:40] + ("A" if sealed[40] != "A" else "B") + sealed[41:]}
    await stores.documents.save("auth-keys", "ring", altered, expected=document.version)

    with pytest.raises(InvalidInput, match="altered"):
        async with start():
            pass


# --- stores that fail


async def test_no_audit_no_token(start: Start, stores: Stores, heard: Heard, eventually: Callable[..., Any]) -> None:
    on, broken = breakable(stores)
    async with start(on=on) as auth:
        broken["bus"].down = True
        answer = await auth.ask()
        assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
        assert "access_token" not in answer.text
        assert answer.headers["retry-after"] == "1"

        broken["bus"].down = False
        assert (await auth.ask()).status_code == 200
        await eventually(lambda: len(heard.of(TokenIssued)) == 1)


async def test_refusal_stands_without_the_bus(start: Start, stores: Stores) -> None:
    on, broken = breakable(stores)
    async with start(on=on) as auth:
        broken["bus"].down = True

        assert (await auth.ask(("admin", SECRET))).status_code == 401


async def test_lost_key_value_store_refuses_nobody(start: Start, stores: Stores) -> None:
    on, broken = breakable(stores)
    async with start(on=on) as auth:
        broken["keyvalue"].down = True

        assert (await auth.ask()).status_code == 200
        assert (await auth.ask(("admin", SECRET))).status_code == 401


async def test_lost_documents_are_said_and_come_back(start: Start, stores: Stores) -> None:
    on, broken = breakable(stores)
    async with start(on=on) as auth:
        broken["documents"].down = True
        answer = await auth.ask()
        assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
        ready = await auth.http.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["documents"]) == (503, "the store does not answer")
        assert len(await kids(auth)) == 2

        broken["documents"].down = False
        assert (await auth.ask()).status_code == 200


async def test_documents_that_come_after_auth_are_waited_for(
    start: Start, stores: Stores, eventually: Callable[..., Any]
) -> None:
    on, broken = breakable(stores)
    broken["documents"].down = True
    async with start(on=on, service_clients={"optimizer": {"secret": SECRET}}) as auth:
        keys = await auth.http.get("/.well-known/jwks.json")
        assert (keys.status_code, keys.json()["code"]) == (503, "unavailable")
        assert "no signing key is loaded" in (await auth.http.get("/readyz")).json()["checks"]["keys"]
        assert (await auth.ask()).status_code == 503

        broken["documents"].down = False

        async def answered() -> bool:
            return (await auth.ask(("optimizer", SECRET))).status_code == 200

        await eventually(answered)


async def test_rotation_that_was_saved_but_not_announced_is_announced_later(
    start: Start, stores: Stores, clock: Clock, heard: Heard, eventually: Callable[..., Any]
) -> None:
    on, broken = breakable(stores)
    async with start(on=on) as auth:
        clock.forward(minutes=11)
        headers = await auth.bearer()
        broken["bus"].down = True
        answer = await auth.http.post("/api/v1/keys/rotate", headers=headers)
        assert answer.status_code == 200

        broken["bus"].down = False
        clock.forward(seconds=10)
    async with start():
        await eventually(lambda: len(heard.of(KeyRotated)) == 2)

    assert heard.of(KeyRotated)[1].event.key_id == answer.json()["current"]


async def test_more_requests_than_may_wait_are_turned_away(start: Start, stores: Stores) -> None:
    on, broken = breakable(stores)
    async with start(on=on, waiting_max=8) as auth:
        broken["documents"].slow_seconds = 0.2
        answers: list[httpx.Response] = await asyncio.gather(*(auth.ask() for _ in range(40)))
        broken["documents"].slow_seconds = 0.0

        turned_away = [answer for answer in answers if answer.status_code == 503]
        assert len(turned_away) == 32
        assert turned_away[0].headers["retry-after"] == "1"
        assert (await auth.ask()).status_code == 200


async def test_waiting_callers_share_a_publish(start: Start, stores: Stores) -> None:
    published: list[int] = []

    class Counting(Broken):
        async def publish(self, messages: Sequence[Message]) -> None:
            published.append(len(messages))
            await asyncio.sleep(0.02)
            await self._store.publish(messages)

    async with start(on=replace(stores, bus=Counting(stores.bus))) as auth:
        published.clear()
        await asyncio.gather(*(auth.ask() for _ in range(100)))

    assert sum(published) == 100
    assert len(published) < 50


async def test_caller_that_went_away_holds_nobody_up(start: Start, stores: Stores) -> None:
    publishing, open_gate = asyncio.Event(), asyncio.Event()
    open_gate.set()

    class Gated(Broken):
        async def publish(self, messages: Sequence[Message]) -> None:
            publishing.set()
            await open_gate.wait()
            await self._store.publish(messages)

    async with start(on=replace(stores, bus=Gated(stores.bus)), admin_client_secret="") as auth:
        publishing.clear()
        open_gate.clear()
        gone = [asyncio.create_task(auth.ask()) for _ in range(5)]
        await publishing.wait()
        for task in gone:
            task.cancel()
        open_gate.set()
        await asyncio.gather(*gone, return_exceptions=True)

        assert (await auth.ask()).status_code == 401


# --- settings


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "AUTH_MASTER_KEY is not set"),
        ({"master_key": "too short"}, "AUTH_MASTER_KEY: Value should have at least 32 items"),
        ({"master_key": MASTER, "admin_client_secret": "too short"}, "AUTH_ADMIN_CLIENT_SECRET: Value error, has 9"),
        ({"master_key": MASTER, "service_clients": {"optimizer": {"secret": "too short"}}}, "optimizer.secret"),
        ({"master_key": MASTER, "service_clients": {"optimizer": {}}}, "AUTH_SERVICE_CLIENTS.optimizer.secret"),
        ({"master_key": MASTER, "token_lifetime_seconds": 86400}, "less than or equal to 3600"),
        ({"master_key": MASTER, "audiences": ()}, "AUTH_AUDIENCES"),
        ({"master_key": MASTER, "trusted_proxies": ("everybody",)}, "AUTH_TRUSTED_PROXIES"),
        ({"master_key": MASTER, "jwks_cache_seconds": 10}, "AUTH_JWKS_CACHE_SECONDS"),
    ],
)
def test_wrong_settings_are_named_without_their_values(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        AuthSettings(**values)

    line = explain(refused.value, prefix="AUTH_")
    assert text in line
    assert "\n" not in line
    assert "too short" not in line


def test_settings_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_MASTER_KEY", MASTER)
    monkeypatch.setenv("AUTH_SERVICE_CLIENTS", json.dumps({"optimizer": {"secret": SECRET}}))
    monkeypatch.setenv("AUTH_AUDIENCES", '["api"]')

    settings = AuthSettings()

    assert settings.service_clients["optimizer"].secret.get_secret_value() == SECRET
    assert settings.audiences == ("api",)
    assert SECRET not in str(settings.public())
    assert MASTER not in str(settings.public())


# --- load


async def test_flood_of_wrong_secrets_does_not_hold_up_who_has_the_right_one(
    start: Start, heard: Heard, eventually: Callable[..., Any]
) -> None:
    async with start() as auth:
        await auth.token()
        flood = [asyncio.create_task(auth.ask((f"invented-{number}", SECRET))) for number in range(300)]
        began = time.perf_counter()
        answer = await auth.ask()
        seconds = time.perf_counter() - began
        statuses = {(await task).status_code for task in flood}

    assert answer.status_code == 200
    assert statuses <= {401, 429}
    assert seconds < 5
    await eventually(lambda: heard.of(TokenRefused))
