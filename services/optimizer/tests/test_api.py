"""The HTTP surface: jobs asked for, waited for, listed and cancelled; and who may not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

NAME, OTHER = "vision/magic", "secret/model"
URL = "/api/v1/optimizations"

Client = httpx.AsyncClient


@pytest.fixture
def client(compose: Any, issuer: Any) -> Any:
    """`async with client(workshop=...) as http:` the service running, asked as an administrator."""

    @asynccontextmanager
    async def opened(**changed: Any) -> AsyncIterator[Client]:
        async with compose(**changed) as service:
            transport = httpx.ASGITransport(app=service.app)
            async with Client(transport=transport, base_url="http://test", headers=issuer.headers("root")) as http:
                yield http

    return opened


@pytest.fixture
def repository(registry: Any) -> str:
    registry.push(NAME, {"model.onnx": b"model"})
    return NAME


def hanging() -> Any:
    async def hang(order: Any, tick: Any) -> Any:
        await asyncio.Event().wait()

    return hang


async def finished(http: Client, id: str) -> dict[str, Any]:
    answer = await http.get(f"{URL}/{id}", headers={"Prefer": "wait=30"})
    assert answer.status_code == 200
    return answer.json()  # type: ignore[no-any-return]


async def test_wish_becomes_a_job_that_ends_with_variant_verdict_and_report(
    client: Any, fake_workshop: Any, measured: Any, repository: str, registry: Any
) -> None:
    async with client(workshop=fake_workshop(measured())) as http:
        answer = await http.post(URL, json={"model": repository})
        job = await finished(http, answer.json()["id"])

    assert answer.status_code == 202
    assert answer.headers["location"] == f"{URL}/{job['id']}"
    assert answer.json()["status"] == "queued"
    assert answer.json()["verdict"] is None
    [commit] = registry.commits(NAME, "optimized/int8")
    assert job | {"report": None, "created_at": "", "updated_at": ""} == {
        "id": job["id"], "repository": NAME, "revision": registry.ref(NAME, "branch", "main"), "ref": "main",
        "recipe": "int8", "status": "succeeded", "progress": 1.0, "stage": None, "verdict": "promote", "error": None,
        "variant": {"branch": "optimized/int8", "revision": commit["revision"]}, "report": None, "created_at": "",
        "updated_at": "",
    }  # fmt: skip
    assert job["report"]["findings"]


async def test_same_wish_again_is_the_same_job_unless_another_run_is_asked_for(
    client: Any, fake_workshop: Any, measured: Any, repository: str, registry: Any
) -> None:
    workshop = fake_workshop(measured())
    async with client(workshop=workshop) as http:
        first = await http.post(URL, json={"model": repository})
        await finished(http, first.json()["id"])
        same = await http.post(URL, json={"model": repository})
        workshop.answer = measured(latency=0.7)
        again = await http.post(URL, json={"model": repository, "again": True})
        await finished(http, first.json()["id"])

    assert (same.status_code, again.status_code) == (200, 202)
    assert first.json()["id"] == same.json()["id"] == again.json()["id"]
    assert len(workshop.orders) == 2
    assert len(registry.commits(NAME, "optimized/int8")) == 2


async def test_failed_job_is_run_anew_when_asked_for_again(
    client: Any, fake_workshop: Any, measured: Any, repository: str
) -> None:
    workshop = fake_workshop(KeyError("fault"))
    async with client(workshop=workshop) as http:
        id = (await http.post(URL, json={"model": repository})).json()["id"]
        failed = await finished(http, id)
        workshop.answer = measured()
        retried = await http.post(URL, json={"model": repository})
        done = await finished(http, id)

    assert failed["error"]["code"] == "internal"
    assert retried.status_code == 202
    assert (done["status"], done["error"]) == ("succeeded", None)


async def test_inline_recipe_names_the_branch_and_sets_the_rules(
    client: Any, fake_workshop: Any, measured: Any, repository: str
) -> None:
    recipe = {"name": "tiny", "pass": "int8", "rules": {"max_latency_ratio": None}}
    async with client(workshop=fake_workshop(measured(latency=3.0))) as http:
        answer = await http.post(URL, json={"model": repository, "recipe": recipe})
        job = await finished(http, answer.json()["id"])

    assert job["variant"]["branch"] == "optimized/tiny"
    assert job["verdict"] == "promote"


async def test_cancelled_job_ends_while_it_runs(
    client: Any, fake_workshop: Any, repository: str, registry: Any, eventually: Any
) -> None:
    workshop = fake_workshop(hanging())
    async with client(workshop=workshop) as http:
        id = (await http.post(URL, json={"model": repository})).json()["id"]
        await eventually(lambda: workshop.orders)
        cancelled = await http.delete(f"{URL}/{id}")
        again = await http.delete(f"{URL}/{id}")

        async def idle() -> bool:
            return "modelworks_optimizer_running 0.0" in (await http.get("/metrics")).text

        await eventually(idle)
        job = (await http.get(f"{URL}/{id}")).json()

    assert (cancelled.status_code, again.status_code) == (200, 200)
    assert job["status"] == "cancelled"
    assert registry.commits(NAME, "optimized/int8") == []


async def test_ended_job_cannot_be_cancelled(client: Any, fake_workshop: Any, measured: Any, repository: str) -> None:
    async with client(workshop=fake_workshop(measured())) as http:
        id = (await http.post(URL, json={"model": repository})).json()["id"]
        await finished(http, id)
        answer = await http.delete(f"{URL}/{id}")

    assert answer.status_code == 409
    assert "has succeeded already" in answer.json()["detail"]


async def test_waiting_ends_with_the_time_asked_for(client: Any, fake_workshop: Any, repository: str) -> None:
    async with client(workshop=fake_workshop(hanging())) as http:
        id = (await http.post(URL, json={"model": repository})).json()["id"]
        began = time.monotonic()
        answer = await http.get(f"{URL}/{id}", headers={"Prefer": "respond-async, wait=1"})

    assert 0.9 < time.monotonic() - began < 5
    assert answer.headers["preference-applied"] == "wait=1"
    assert answer.json()["status"] in ("queued", "running")


async def test_more_waiters_than_allowed_are_answered_at_once(client: Any, fake_workshop: Any, repository: str) -> None:
    async with client(workshop=fake_workshop(hanging()), waiters_max=1) as http:
        id = (await http.post(URL, json={"model": repository})).json()["id"]
        first = asyncio.create_task(http.get(f"{URL}/{id}", headers={"Prefer": "wait=20"}))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        second = await http.get(f"{URL}/{id}", headers={"Prefer": "wait=20"})
        elapsed = time.monotonic() - began
        first.cancel()

    assert second.status_code == 200
    assert elapsed < 5


async def test_list_is_newest_first_in_pages_and_by_filter(
    client: Any, fake_workshop: Any, measured: Any, registry: Any
) -> None:
    for name in ("a/one", "a/two", "a/three"):
        registry.push(name, {"model.onnx": b"model"})
    async with client(workshop=fake_workshop(measured())) as http:
        for name in ("a/one", "a/two", "a/three"):
            await finished(http, (await http.post(URL, json={"model": name})).json()["id"])
        page = (await http.get(URL, params={"limit": 2})).json()
        rest = (await http.get(URL, params={"limit": 2, "cursor": page["cursor"]})).json()
        one = (await http.get(URL, params={"model": "a/one", "status": "succeeded"})).json()
        none = (await http.get(URL, params={"status": "failed"})).json()

    assert [job["repository"] for job in page["items"] + rest["items"]] == ["a/three", "a/two", "a/one"]
    assert (page["total"], rest["cursor"]) == (3, None)
    assert [job["repository"] for job in one["items"]] == ["a/one"]
    assert none["items"] == []


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "no/such"}, 404, "repository 'no/such' does not exist"),
        ({"model": NAME, "ref": "nowhere"}, 404, "ref 'nowhere' does not exist"),
        ({"model": "nonsense"}, 400, "body.model"),
        ({"model": NAME, "recipe": "int3"}, 400, "recipe 'int3' is unknown"),
        (
            {"model": NAME, "recipe": {"name": "x", "pass": "int8", "rules": {"min_agreement": 2}}},
            400,
            "rules.min_agreement",
        ),
        ({"model": NAME, "goal": "small"}, 400, "body.goal"),
        ({}, 400, "body.model"),
    ],
)
async def test_impossible_wish_is_refused_and_makes_no_job(
    client: Any, repository: str, body: Any, status: int, said: str
) -> None:
    async with client() as http:
        answer = await http.post(URL, json=body)
        jobs = (await http.get(URL)).json()

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]
    assert jobs["total"] == 0


async def test_unknown_job_is_not_found(client: Any) -> None:
    async with client() as http:
        answers = [await http.get(f"{URL}/opt-none"), await http.delete(f"{URL}/opt-none")]

    assert [answer.status_code for answer in answers] == [404, 404]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "status=done", "model=x", "cursor=garbage"])
async def test_impossible_question_is_refused(client: Any, query: str) -> None:
    async with client() as http:
        assert (await http.get(f"{URL}?{query}")).status_code == 400


class TestAccess:
    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
    async def test_without_a_token_nothing_is_answered(self, client: Any, method: str) -> None:
        async with client() as http:
            path = f"{URL}/opt-1" if method == "DELETE" else URL
            answer = await http.request(method, path, headers={"Authorization": ""}, json={"model": NAME})

        assert answer.status_code == 401

    @pytest.mark.parametrize("role", ["consumer", "auditor", "service"])
    async def test_role_without_the_right_is_refused(
        self, client: Any, issuer: Any, repository: str, role: str
    ) -> None:
        async with client() as http:
            headers = issuer.headers("carol", role)
            answers = [
                await http.post(URL, json={"model": repository}, headers=headers), await http.get(URL, headers=headers),
                await http.get(f"{URL}/opt-1", headers=headers), await http.delete(f"{URL}/opt-1", headers=headers),
            ]  # fmt: skip

        assert [answer.status_code for answer in answers] == [403] * 4

    async def test_token_without_the_scope_is_refused(self, client: Any, issuer: Any, repository: str) -> None:
        async with client() as http:
            answer = await http.post(
                URL, json={"model": repository}, headers=issuer.headers("alice", "publisher", scopes=("predict",))
            )

        assert answer.status_code == 403
        assert "scope optimize" in answer.json()["detail"]

    async def test_private_repository_is_unknown_to_others_and_so_are_its_jobs(
        self, client: Any, issuer: Any, registry: Any, fake_workshop: Any, measured: Any
    ) -> None:
        registry.create(OTHER, owner="alice", private=True)
        registry.push(OTHER, {"model.onnx": b"model"})
        alice, bob = issuer.headers("alice", "publisher"), issuer.headers("bob", "publisher")
        async with client(workshop=fake_workshop(measured())) as http:
            mine = await http.post(URL, json={"model": OTHER}, headers=alice)
            id = mine.json()["id"]
            theirs = [
                await http.post(URL, json={"model": OTHER}, headers=bob), await http.get(f"{URL}/{id}", headers=bob),
                await http.delete(f"{URL}/{id}", headers=bob),
            ]  # fmt: skip
            never = await http.post(URL, json={"model": "secret/none"}, headers=bob)
            listed = [(await http.get(URL, headers=headers)).json()["items"] for headers in (alice, bob)]

        assert mine.status_code == 202
        assert [answer.status_code for answer in theirs] == [404] * 3
        assert theirs[0].json()["detail"].replace(OTHER, "secret/none") == never.json()["detail"]
        assert [len(items) for items in listed] == [1, 0]

    async def test_refusal_is_told_to_the_audit(
        self, client: Any, issuer: Any, stores: Any, repository: str, eventually: Any
    ) -> None:
        from modelworks.stores.outbox import envelope_of

        seen: list[Any] = []

        async def look() -> None:
            async for delivery in stores.bus.tail(["auth.access-denied.v1"]):
                seen.append(envelope_of(delivery.message).event)  # noqa: PERF401 - the tail never ends

        async with client() as http:
            tail = asyncio.create_task(look())
            await asyncio.sleep(0.05)
            await http.post(URL, json={"model": repository}, headers=issuer.headers("carol", "consumer"))
            await eventually(lambda: seen)
            tail.cancel()

        assert (seen[0].principal, seen[0].action) == ("carol", "optimization:run")


async def test_readiness_says_what_is_missing(client: Any, compose: Any, registry: Any) -> None:
    async with client() as http:
        ready = await http.get("/readyz")
        health = await http.get("/healthz")

    assert ready.json()["checks"] == {"documents": "ok", "bus": "ok", "consumers": "ok"}
    assert health.status_code == 200
