"""Over HTTP: tokens, refusals in OAuth's words, discovery, clients and keys for administrators only."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from modelworks.events import (
    AccessDenied,
    ClientCreated,
    ClientDeleted,
    KeyRotated,
    TokenIssued,
    TokenRefused,
)
from modelworks.kit.errors import Unauthenticated
from modelworks.kit.policy import SCOPES

if TYPE_CHECKING:
    from services.auth.tests.conftest import Auth, Clock, Heard, Start

WRONG = "wrong-secret-of-the-same-length----"

# --- tokens


async def test_token_is_verified_by_the_suites_own_verifier(auth: Auth) -> None:
    principal = await auth.platform.verifier.verify(await auth.token())

    assert principal.id == "admin"
    assert principal.roles == {"administrator"}
    assert principal.scopes == set(SCOPES)


async def test_token_has_header_and_claims_of_rfc_9068(auth: Auth, clock: Clock) -> None:
    answer = await auth.ask()

    token = answer.json()["access_token"]
    now = int(clock.seconds())
    header, claims = auth.part_of(token, 0), auth.part_of(token, 1)
    published = (await auth.http.get("/.well-known/jwks.json")).json()["keys"]
    assert header == {"alg": "ES256", "typ": "at+jwt", "kid": published[0]["kid"]}
    assert len(claims.pop("jti")) == 32
    assert claims == {
        "iss": auth.ISSUER, "sub": "admin", "client_id": "admin", "aud": "api", "iat": now, "exp": now + 600,
        "scope": " ".join(sorted(SCOPES)), "roles": ["administrator"],
    }  # fmt: skip


async def test_answer_says_type_lifetime_and_scope_and_is_not_cached(auth: Auth) -> None:
    answer = await auth.ask(scope="audit")

    body = answer.json()
    assert (body["token_type"], body["expires_in"], body["scope"]) == ("Bearer", 600, "audit")
    assert answer.headers["cache-control"] == "no-store"


async def test_two_tokens_differ(auth: Auth) -> None:
    first, second = auth.part_of(await auth.token(), 1), auth.part_of(await auth.token(), 1)

    assert first["jti"] != second["jti"]


async def test_secret_in_the_body_is_as_good(auth: Auth) -> None:
    client_id, client_secret = auth.ADMIN

    answer = await auth.ask(None, client_id=client_id, client_secret=client_secret)

    assert answer.status_code == 200


async def test_lifetime_comes_from_settings(start: Start) -> None:
    async with start(token_lifetime_seconds=60) as auth:
        answer = await auth.ask()

    claims = auth.part_of(answer.json()["access_token"], 1)
    assert answer.json()["expires_in"] == claims["exp"] - claims["iat"] == 60


async def test_token_expires(auth: Auth, clock: Clock) -> None:
    token = await auth.token()
    await auth.platform.verifier.verify(token)

    clock.forward(seconds=606)

    with pytest.raises(Unauthenticated, match="expired"):
        await auth.platform.verifier.verify(token)


async def test_scope_narrows_the_token(auth: Auth) -> None:
    token = await auth.token(scope="predict audit")

    assert auth.part_of(token, 1)["scope"] == "audit predict"


@pytest.mark.parametrize("scope", ["everything", "audit everything", "ADMIN", "*"])
async def test_unknown_scope_is_invalid(auth: Auth, scope: str) -> None:
    answer = await auth.ask(scope=scope)

    assert answer.status_code == 400
    assert answer.json()["error"] == "invalid_scope"
    assert "choose from admin audit" in answer.json()["error_description"]


async def test_client_gets_no_scope_beyond_its_roles(auth: Auth) -> None:
    client = await auth.make_client(client_id="app", roles=["consumer"])

    assert auth.part_of(await auth.token(client), 1)["scope"] == "deploy events predict"
    refused = await auth.ask(client, scope="predict admin")
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_scope")


async def test_client_gets_no_scope_beyond_its_own(auth: Auth) -> None:
    client = await auth.make_client(client_id="app", roles=["administrator"], scopes=["audit"])

    assert auth.part_of(await auth.token(client), 1)["scope"] == "audit"
    assert (await auth.ask(client, scope="admin")).json()["error"] == "invalid_scope"


@pytest.mark.parametrize(
    ("role", "scopes"),
    [
        ("administrator", sorted(SCOPES)),
        ("publisher", ["optimize", "repository:read", "repository:write"]),
        ("operator", ["deploy", "events", "metrics", "optimize", "predict", "repository:read", "repository:write"]),
        ("consumer", ["deploy", "events", "predict"]),
        ("auditor", ["audit", "metrics"]),
        ("service", ["deploy", "metrics", "predict", "repository:read", "repository:write"]),
    ],
)
async def test_each_role_may_ask_for_the_scopes_it_can_use(auth: Auth, role: str, scopes: list[str]) -> None:
    client = await auth.make_client(client_id=f"a-{role}", roles=[role])

    assert auth.part_of(await auth.token(client), 1)["scope"].split() == scopes


@pytest.mark.parametrize("resource", ["api", "kafka", "objects"])
async def test_token_is_for_the_resource_that_was_asked_for(auth: Auth, resource: str) -> None:
    assert auth.part_of(await auth.token(resource=resource), 1)["aud"] == resource


async def test_token_for_another_audience_is_no_use_here(auth: Auth) -> None:
    with pytest.raises(Unauthenticated, match="audience"):
        await auth.platform.verifier.verify(await auth.token(resource="kafka"))


async def test_unknown_resource_is_an_invalid_target(auth: Auth) -> None:
    answer = await auth.ask(resource='https://elsewhere.test/\u00e9"')

    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_target")
    assert "choose from api kafka objects" in answer.json()["error_description"]


# --- refusals


@pytest.mark.parametrize(
    "grant", ["password", "refresh_token", "authorization_code", "Client_Credentials", 'x"\\\u00e9']
)
async def test_other_grants_are_unsupported(auth: Auth, grant: str) -> None:
    answer = await auth.ask(grant_type=grant)

    assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_grant_type")
    assert answer.json()["error_description"].isascii()


@pytest.mark.parametrize(
    "credentials", [("admin", WRONG), ("nobody-here", WRONG), ("NOT/an id", WRONG), ("unknown", WRONG)], ids=str
)
@pytest.mark.parametrize("by", ["basic", "post"])
async def test_unknown_client_and_wrong_secret_get_the_same_answer(
    auth: Auth, credentials: tuple[str, str], by: str
) -> None:
    if by == "basic":
        answer = await auth.ask(credentials)
    else:
        answer = await auth.ask(None, client_id=credentials[0], client_secret=credentials[1])

    assert answer.status_code == 401
    assert answer.json() == {
        "error": "invalid_client", "error_description": "the client id or the secret is wrong",
    }  # fmt: skip
    assert answer.headers["www-authenticate"].startswith("Basic ")
    assert answer.headers["cache-control"] == "no-store"


async def test_deleted_client_is_refused_as_one_that_never_was(auth: Auth) -> None:
    client = await auth.make_client(client_id="app", roles=["consumer"])
    await auth.http.delete("/api/v1/clients/app", headers=await auth.bearer())

    deleted, never = await auth.ask(client), await auth.ask(("app-2", client[1]))

    assert deleted.status_code == never.status_code == 401
    assert deleted.content == never.content


async def test_unknown_client_and_wrong_secret_take_the_same_time(start: Start) -> None:
    limits = dict.fromkeys(("failures_per_minute_max", "address_failures_per_minute_max", "client_failures_per_minute_max"), 1000000)  # fmt: skip
    async with start(**limits, refusals_per_minute_max=1) as auth:
        seconds: dict[str, list[float]] = {"admin": [], "nobody-here": []}
        for _ in range(150):
            for client_id, times in seconds.items():
                began = time.perf_counter()
                await auth.ask((client_id, WRONG))
                times.append(time.perf_counter() - began)

    known, unknown = (statistics.median(times[20:]) for times in seconds.values())
    # Within the noise of a shared machine; an early return for unknown clients would show as half the time.
    assert known == pytest.approx(unknown, rel=0.25)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_other_methods_are_refused_in_oauths_words(auth: Auth, method: str) -> None:
    answer = await auth.http.request(method, "/oauth/token")

    assert (answer.status_code, answer.json()["error"]) == (405, "invalid_request")
    assert answer.headers["allow"] == "POST"


async def test_json_body_is_refused_in_oauths_words(auth: Auth) -> None:
    answer = await auth.http.post("/oauth/token", json={"grant_type": "client_credentials"}, auth=auth.ADMIN)

    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert "application/x-www-form-urlencoded" in answer.json()["error_description"]


async def test_repeated_parameter_is_refused_in_oauths_words(auth: Auth) -> None:
    body = "grant_type=client_credentials&scope=audit&scope=admin"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await auth.http.post("/oauth/token", content=body, headers=form, auth=auth.ADMIN)

    assert answer.json() == {"error": "invalid_request", "error_description": "scope came more than once"}


async def test_large_body_is_refused_in_oauths_words(auth: Auth) -> None:
    answer = await auth.ask(pad="x" * 20_000)

    assert (answer.status_code, answer.json()["error"]) == (413, "invalid_request")
    assert "16384 bytes" in answer.json()["error_description"]


async def test_secret_and_token_are_neither_logged_nor_announced(
    auth: Auth, heard: Heard, eventually: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    client = await auth.make_client(client_id="app", roles=["consumer"])
    token = await auth.token(client)
    await auth.ask(("app", WRONG))
    await auth.ask(client, scope="admin")
    await eventually(lambda: len(heard.of(TokenRefused)) == 2)

    announced = "".join(str(envelope) for envelope in heard.envelopes)
    logged = "".join(capfd.readouterr())
    for secret in (client[1], WRONG, token, auth.ADMIN[1], "the master key of these tests"):
        assert secret not in announced
        assert secret not in logged


# --- what the audit hears


async def test_issued_token_is_announced_before_it_is_answered(
    auth: Auth, heard: Heard, eventually: Callable[..., Any], clock: Clock
) -> None:
    claims = auth.part_of(await auth.token(scope="audit", resource="kafka"), 1)

    await eventually(lambda: heard.of(TokenIssued))
    [envelope] = heard.of(TokenIssued)
    event = envelope.event
    assert (event.client, event.token_id, event.scope, event.audience) == ("admin", claims["jti"], "audit", "kafka")
    assert event.expires_at.timestamp() == claims["exp"]
    assert (envelope.actor, envelope.source, envelope.time) == ("admin", "/services/auth", clock.now)


async def test_refused_request_is_announced_with_the_claimed_id(
    auth: Auth, heard: Heard, eventually: Callable[..., Any]
) -> None:
    await auth.ask(("mallory", WRONG))
    await auth.ask(scope="everything")
    await auth.ask(None)

    await eventually(lambda: len(heard.of(TokenRefused)) == 3)
    refused = {(envelope.event.client, envelope.event.error, envelope.actor) for envelope in heard.of(TokenRefused)}
    assert refused == {
        ("mallory", "invalid_client", "anonymous"), ("admin", "invalid_scope", "anonymous"),
        ("unknown", "invalid_client", "anonymous"),
    }  # fmt: skip


async def test_flood_of_refusals_does_not_fill_the_bus(
    start: Start, heard: Heard, eventually: Callable[..., Any]
) -> None:
    async with start(refusals_per_minute_max=3, address_failures_per_minute_max=1000) as auth:
        for number in range(60):
            await auth.ask((f"invented-{number}", WRONG))
            await auth.ask(("mallory", WRONG), scope="x")
        await auth.token()
        await eventually(lambda: heard.of(TokenIssued))

    assert len(heard.of(TokenRefused)) == 30
    assert sum(envelope.event.client == "mallory" for envelope in heard.of(TokenRefused)) == 3


# --- too many attempts


async def test_too_many_failures_lock_the_pair_of_client_and_address_out(start: Start) -> None:
    async with start(failures_per_minute_max=3) as auth:
        for _ in range(3):
            assert (await auth.ask(("admin", WRONG))).status_code == 401

        locked = await auth.ask()
        elsewhere = await auth.client_from("198.51.100.7").post(
            "/oauth/token", data={"grant_type": "client_credentials"}, auth=auth.ADMIN
        )

    assert locked.status_code == 429
    assert locked.json()["error"] == "temporarily_unavailable"
    assert locked.headers["retry-after"] == "60"
    assert elsewhere.status_code == 200


async def test_too_many_failures_from_one_address_lock_it_out_whatever_the_client(start: Start) -> None:
    async with start(address_failures_per_minute_max=5) as auth:
        for number in range(5):
            await auth.ask((f"invented-{number}", WRONG))

        assert (await auth.ask()).status_code == 429


async def test_client_that_was_in_from_a_crowded_address_still_gets_in(start: Start) -> None:
    async with start(address_failures_per_minute_max=5) as auth:
        client = await auth.make_client(client_id="app", roles=["consumer"])
        for number in range(5):
            await auth.ask((f"invented-{number}", WRONG))

        assert (await auth.ask()).status_code == 200
        assert (await auth.ask(client)).status_code == 429


async def test_strangers_cannot_lock_a_client_out_of_its_own_address(start: Start) -> None:
    async with start(client_failures_per_minute_max=4) as auth:
        await auth.token()
        for number in range(4):
            stranger = auth.client_from(f"198.51.100.{number}")
            await stranger.post("/oauth/token", data={"grant_type": "client_credentials"}, auth=("admin", WRONG))

        assert (await auth.ask()).status_code == 200
        new = auth.client_from("203.0.113.9")
        refused = await new.post("/oauth/token", data={"grant_type": "client_credentials"}, auth=auth.ADMIN)
        assert refused.status_code == 429


async def test_forwarded_address_counts_only_from_a_trusted_proxy(start: Start) -> None:
    async def fail(auth: Auth, forwarded: str) -> int:
        headers = {"X-Forwarded-For": forwarded}
        form = {"grant_type": "client_credentials"}
        return (await auth.http.post("/oauth/token", data=form, auth=("admin", WRONG), headers=headers)).status_code

    async with start(failures_per_minute_max=1) as auth:
        assert [await fail(auth, f"203.0.113.{n}") for n in (1, 2)] == [401, 429]
    async with start(failures_per_minute_max=1, trusted_proxies=("192.0.2.0/24", "10.0.0.0/8")) as auth:
        assert [await fail(auth, f"203.0.113.{n}, 10.1.2.3") for n in (3, 4, 4)] == [401, 401, 429]


# --- discovery


async def test_metadata_is_valid_by_authlibs_own_class(auth: Auth) -> None:
    answer = await auth.http.get("/.well-known/oauth-authorization-server")

    document = answer.json()
    AuthorizationServerMetadata(document).validate()
    assert document["issuer"] == auth.ISSUER
    assert document["token_endpoint"] == f"{auth.ISSUER}/oauth/token"
    assert document["grant_types_supported"] == ["client_credentials"]
    assert "authorization_endpoint" not in document
    assert "max-age" in answer.headers["cache-control"]


async def test_openid_configuration_says_the_same(auth: Auth) -> None:
    openid = await auth.http.get("/.well-known/openid-configuration")

    assert openid.json() == (await auth.http.get("/.well-known/oauth-authorization-server")).json()


async def test_jwks_has_the_signing_key_and_its_successor_and_nothing_private(auth: Auth) -> None:
    answer = await auth.http.get("/.well-known/jwks.json")

    keys = answer.json()["keys"]
    assert len(keys) == 2
    for key in keys:
        assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
        assert (key["kty"], key["crv"], key["use"], key["alg"]) == ("EC", "P-256", "sig", "ES256")
    assert answer.headers["cache-control"] == "public, max-age=600"


# --- clients


async def test_administrator_makes_a_client_whose_secret_is_shown_once(
    auth: Auth, heard: Heard, eventually: Callable[..., Any]
) -> None:
    body = {"client_id": "pipeline", "roles": ["publisher"], "name": "nightly training"}
    made = await auth.http.post("/api/v1/clients", json=body, headers=await auth.bearer())

    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    shown = made.json()
    secret = shown.pop("client_secret")
    assert secret.startswith("mws_")
    assert len(secret) >= 40
    again = await auth.http.get(made.headers["location"], headers=await auth.bearer())
    assert again.json() == shown
    assert (shown["client_id"], shown["roles"], shown["created_by"]) == ("pipeline", ["publisher"], "admin")
    await eventually(lambda: any(e.event.client == "pipeline" for e in heard.of(ClientCreated)))
    [created] = [e for e in heard.of(ClientCreated) if e.event.client == "pipeline"]
    assert (created.event.roles, created.actor) == (["publisher"], "admin")


async def test_client_without_an_id_gets_one(auth: Auth) -> None:
    client = await auth.make_client(roles=["consumer"])

    assert client[0].startswith("client-")
    assert (await auth.ask(client)).status_code == 200


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"client_id": "x1", "roles": ["root"]}, "choose from administrator, auditor, consumer, operator, publisher"),
        ({"client_id": "x1", "roles": []}, "at least one of administrator"),
        ({"client_id": "x1", "roles": ["consumer"], "scopes": ["all"]}, "choose from admin, audit, deploy"),
        ({"client_id": "X 1", "roles": ["consumer"]}, "client_id 'X 1'"),
        ({"client_id": "system", "roles": ["consumer"]}, "not anonymous"),
        ({"client_id": "x1"}, "roles"),
        ({"client_id": "x1", "roles": "administrator"}, "roles"),
        ({"client_id": "x1", "roles": ["consumer"], "secret": "mine"}, "secret"),
        ({"client_id": "x1", "roles": ["consumer"], "name": "n" * 201}, "201 characters"),
        ({"client_id": "x1", "roles": ["consumer"] * 33}, "roles"),
    ],
)
async def test_client_that_cannot_be_is_refused_with_the_way_out(auth: Auth, body: dict[str, Any], text: str) -> None:
    answer = await auth.http.post("/api/v1/clients", json=body, headers=await auth.bearer())

    assert answer.status_code == 400
    assert text in answer.json()["detail"]


async def test_second_client_of_one_id_is_a_conflict(auth: Auth) -> None:
    first = await auth.make_client(client_id="app", roles=["consumer"])

    body = {"client_id": "app", "roles": ["administrator"]}
    second = await auth.http.post("/api/v1/clients", json=body, headers=await auth.bearer())

    assert second.status_code == 409
    assert auth.part_of(await auth.token(first), 1)["roles"] == ["consumer"]


async def test_clients_are_listed_in_pages_without_secrets_or_the_deleted(auth: Auth) -> None:
    for name in ("app-1", "app-2", "app-3"):
        await auth.make_client(client_id=name, roles=["consumer"])
    headers = await auth.bearer()
    await auth.http.delete("/api/v1/clients/app-2", headers=headers)
    await auth.stores.documents.refresh("auth-clients")

    first = (await auth.http.get("/api/v1/clients?limit=2", headers=headers)).json()
    rest = (await auth.http.get(f"/api/v1/clients?limit=2&cursor={first['cursor']}", headers=headers)).json()

    assert [item["client_id"] for item in first["items"] + rest["items"]] == ["admin", "app-1", "app-3"]
    assert (first["total"], rest["cursor"]) == (3, None)
    assert "secret" not in str(first)


async def test_deleted_client_gets_no_more_tokens_and_deleting_again_changes_nothing(
    auth: Auth, heard: Heard, eventually: Callable[..., Any]
) -> None:
    client = await auth.make_client(client_id="app", roles=["consumer"])
    headers = await auth.bearer()

    statuses = [(await auth.http.delete("/api/v1/clients/app", headers=headers)).status_code for _ in range(2)]

    assert statuses == [204, 204]
    assert (await auth.ask(client)).status_code == 401
    assert (await auth.http.get("/api/v1/clients/app", headers=headers)).status_code == 404
    await eventually(lambda: heard.of(ClientDeleted))
    await auth.token()
    await eventually(lambda: len(heard.of(TokenIssued)) >= 3)
    assert len(heard.of(ClientDeleted)) == 1


async def test_deleting_a_client_that_never_was_is_not_found(auth: Auth) -> None:
    for name in ("nobody", "No Body", "a%2Fb"):
        answer = await auth.http.delete(f"/api/v1/clients/{name}", headers=await auth.bearer())
        assert answer.status_code == 404


async def test_id_of_a_deleted_client_can_be_made_anew_with_an_event_of_its_own(
    auth: Auth, heard: Heard, eventually: Callable[..., Any]
) -> None:
    old = await auth.make_client(client_id="app", roles=["consumer"])
    await auth.http.delete("/api/v1/clients/app", headers=await auth.bearer())

    new = await auth.make_client(client_id="app", roles=["auditor"])

    assert (await auth.ask(old)).status_code == 401
    assert auth.part_of(await auth.token(new), 1)["roles"] == ["auditor"]
    await eventually(lambda: sum(e.event.client == "app" for e in heard.of(ClientCreated)) == 2)
    assert len({envelope.id for envelope in heard.of(ClientCreated)}) == 3


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/clients"), ("GET", "/api/v1/clients"), ("GET", "/api/v1/clients/admin"),
        ("DELETE", "/api/v1/clients/admin"), ("POST", "/api/v1/keys/rotate"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "role", ["", "publisher", "operator", "consumer", "auditor", "service", "administrator-narrowed"]
)
async def test_administration_is_for_administrators_and_each_refusal_is_recorded(
    auth: Auth, heard: Heard, eventually: Callable[..., Any], role: str, method: str, path: str
) -> None:
    headers: dict[str, str] = {}
    if role == "administrator-narrowed":
        headers = await auth.bearer(scope="audit metrics")
    elif role:
        headers = await auth.bearer(await auth.make_client(client_id="caller", roles=[role]))

    body = {"client_id": "mine", "roles": ["administrator"]} if path == "/api/v1/clients" else {}
    answer = await auth.http.request(method, path, json=body if method == "POST" else None, headers=headers)

    assert answer.status_code == (403 if role else 401)
    assert answer.headers["content-type"] == "application/problem+json"
    await eventually(lambda: heard.of(AccessDenied))
    [denied] = heard.of(AccessDenied)
    assert denied.event.principal == ({"": "anonymous", "administrator-narrowed": "admin"}.get(role, "caller"))
    assert denied.event.service == "auth"
    assert (await auth.ask()).status_code == 200  # nothing happened to the administrator
    assert (await auth.http.get("/api/v1/clients/mine", headers=await auth.bearer())).status_code == 404


# --- keys


async def test_rotation_lets_the_published_key_sign_and_old_tokens_live_on(
    auth: Auth, clock: Clock, heard: Heard, eventually: Callable[..., Any]
) -> None:
    clock.forward(minutes=11)
    old = await auth.token()
    await auth.platform.verifier.verify(old)
    before = [key["kid"] for key in (await auth.http.get("/.well-known/jwks.json")).json()["keys"]]

    answer = await auth.http.post("/api/v1/keys/rotate", headers=await auth.bearer())

    assert answer.status_code == 200
    assert (answer.json()["current"], answer.json()["previous"]) == (before[1], [before[0]])
    new = await auth.token()
    assert auth.part_of(new, 0)["kid"] == before[1]
    # No pause is needed: the verifier read the key before it signed.
    assert (await auth.platform.verifier.verify(new)).id == "admin"
    assert (await auth.platform.verifier.verify(old)).id == "admin"
    await eventually(lambda: len(heard.of(KeyRotated)) == 2)
    rotated = heard.of(KeyRotated)[1]
    assert (rotated.event.key_id, rotated.event.retired, rotated.actor) == (before[1], [], "admin")


async def test_second_rotation_at_once_waits_for_verifiers(auth: Auth) -> None:
    headers = await auth.bearer()
    await auth.http.post("/api/v1/keys/rotate", headers=headers)

    answer = await auth.http.post("/api/v1/keys/rotate", headers=headers)

    assert answer.status_code == 409
    assert "emergency=true" in answer.json()["detail"]


async def test_emergency_withdraws_the_leaked_key_and_its_tokens_are_refused_when_keys_are_read_again(
    auth: Auth, clock: Clock
) -> None:
    leaked = await auth.token()
    headers = {"Authorization": f"Bearer {leaked}"}
    await auth.platform.verifier.verify(leaked)

    answer = await auth.http.post("/api/v1/keys/rotate", json={"emergency": True}, headers=headers)

    assert answer.status_code == 200
    assert auth.part_of(leaked, 0)["kid"] not in str(answer.json())
    clock.forward(seconds=601)
    with pytest.raises(Unauthenticated):
        await auth.platform.verifier.verify(leaked)
    assert (await auth.platform.verifier.verify(await auth.token())).id == "admin"


async def test_key_rotates_by_age_and_retires_when_its_tokens_are_dead(
    auth: Auth, clock: Clock, heard: Heard, eventually: Callable[..., Any]
) -> None:
    first = auth.part_of(await auth.token(), 0)["kid"]
    clock.forward(days=30)
    await eventually(lambda: len(heard.of(KeyRotated)) == 2)
    assert heard.of(KeyRotated)[1].event.key_id != first
    kids = {key["kid"] for key in (await auth.http.get("/.well-known/jwks.json")).json()["keys"]}
    assert (first in kids, len(kids)) == (True, 3)

    clock.forward(seconds=1211)
    await eventually(lambda: len(heard.of(KeyRotated)) == 3)

    assert heard.of(KeyRotated)[2].event.retired == [first]
    assert heard.of(KeyRotated)[2].actor == "system"
    kids = {key["kid"] for key in (await auth.http.get("/.well-known/jwks.json")).json()["keys"]}
    assert (first in kids, len(kids)) == (False, 2)


@pytest.mark.parametrize("body", [{"emergency": "soon"}, {"force": True}, []])
async def test_malformed_rotation_is_refused(auth: Auth, body: Any) -> None:
    answer = await auth.http.post("/api/v1/keys/rotate", json=body, headers=await auth.bearer())

    assert answer.status_code == 400


# --- operations


async def test_metrics_count_issued_and_refused(auth: Auth) -> None:
    await auth.token()
    await auth.ask(("admin", WRONG))

    text = (await auth.http.get("/metrics", headers=await auth.bearer())).text

    assert 'modelworks_auth_tokens_issued_total{audience="api"} 2.0' in text
    assert 'modelworks_auth_tokens_refused_total{error="invalid_client"} 1.0' in text
    assert "modelworks_auth_token_seconds_count 3.0" in text


async def test_readiness_asks_documents_bus_and_keys(auth: Auth) -> None:
    answer = await auth.http.get("/readyz")

    assert answer.json()["checks"] == {"documents": "ok", "bus": "ok", "keys": "ok"}


async def test_many_requests_at_once_are_all_answered(auth: Auth) -> None:
    answers: list[httpx.Response] = await asyncio.gather(*(auth.ask() for _ in range(200)))

    assert {answer.status_code for answer in answers} == {200}
    ids = {auth.part_of(answer.json()["access_token"], 1)["jti"] for answer in answers}
    assert len(ids) == 200
