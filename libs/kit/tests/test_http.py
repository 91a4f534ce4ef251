"""The shell around every service: what a caller sees when things go wrong, and what the audit and telemetry hear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Annotated, Any, Protocol

import httpx
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Query
from fastapi.responses import JSONResponse, StreamingResponse
from modelworks.events import AccessDenied
from modelworks.kit.errors import (
    InvalidInput,
    ModelworksError,
    RateLimited,
    StoreUnavailable,
    Unavailable,
)
from modelworks.kit.http import Authenticated, create_app, describe, ignore_refusal
from modelworks.kit.platform import Platform
from modelworks.kit.policy import SCOPES, Policy, Resource
from modelworks.kit.telemetry import Telemetry
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from pydantic import BaseModel
from starlette.responses import Response


class Signer(Protocol):
    """The root conftest's issuer."""

    def headers(self, subject: str = ..., *roles: str, **more: Any) -> dict[str, str]: ...


class Body(BaseModel):
    name: str
    size_bytes: int


def routes(platform: Platform, gate: asyncio.Event) -> APIRouter:
    router = APIRouter()

    @router.get("/things/{name}")
    async def thing(name: str, principal: Authenticated) -> dict[str, str]:
        platform.policy.require(principal, "client:manage", Resource("Client", name))
        return {"name": name, "for": principal.id}

    @router.post("/things")
    async def make(body: Body, principal: Authenticated, dry: Annotated[bool, Query()] = False) -> Body:
        return body

    @router.get("/limits")
    async def limits() -> None:
        raise RateLimited("too many: wait 3 s", retry_after_seconds=3)

    @router.get("/input")
    async def malformed() -> None:
        raise InvalidInput("name 'x y' has a space: use '-'", field="name")

    @router.get("/store")
    async def store() -> None:
        raise StoreUnavailable("documents did not answer")

    @router.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "short and stout", headers={"X-Tea": "green"})

    @router.get("/crash")
    @router.get("/v2/crash")
    @router.get("/v2x/crash")
    async def crash() -> None:
        raise RuntimeError("hunter2 is the password")

    @router.get("/v2/models/{name}")
    async def model(name: str, size: int = 0) -> None:
        raise InvalidInput(f"no tensor in {name}")

    @router.get("/own/{name}")
    async def own(name: str) -> None:
        principal = await platform.authorize({}, "audit:read")
        raise AssertionError(principal)

    @router.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            await gate.wait()
            yield b"second"

        return StreamingResponse(parts())

    @router.get("/half")
    async def half() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            raise RuntimeError("the disk is gone")

        return StreamingResponse(parts())

    return router


class Shell:
    """An app with such routes, and all that it told."""

    def __init__(self, platform: Platform) -> None:
        self.spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        telemetry = Telemetry(provider=provider)
        self.platform = Platform(verifier=platform.verifier, policy=Policy(), telemetry=telemetry)
        self.recorded: list[tuple[AccessDenied, str]] = []
        self.record_fails = False
        self.gate = asyncio.Event()
        self.missing: str | None = None
        self.app: FastAPI = create_app(
            "probe", self.platform, routers=[routes(self.platform, self.gate)], record=self._record,
            checks={"disk": self._disk, "slow": self._slow}, renderers={"/v2": self._v2, "/v2/models/special": self._special},
        )  # fmt: skip
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://probe")

    async def _record(self, event: AccessDenied, actor: str) -> None:
        if self.record_fails:
            raise StoreUnavailable("the bus did not answer")
        self.recorded.append((event, actor))

    async def _disk(self) -> None:
        if self.missing == "disk":
            raise Unavailable("the disk is full: free some space")

    async def _slow(self) -> None:
        if self.missing == "slow":
            await asyncio.sleep(3600)

    def _v2(self, error: ModelworksError) -> Response:
        return JSONResponse({"error": error.message}, status_code=error.status)

    def _special(self, error: ModelworksError) -> Response:
        return JSONResponse({"special": error.message}, status_code=error.status)


@pytest.fixture
async def shell(platform: Platform) -> AsyncIterator[Shell]:
    made = Shell(platform)
    yield made
    await made.http.aclose()


# --- errors


async def test_error_is_a_problem_with_code_and_data(shell: Shell) -> None:
    answer = await shell.http.get("/input")

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "about:blank", "title": "invalid input", "status": 400, "code": "invalid-input",
        "detail": "name 'x y' has a space: use '-'", "data": {"field": "name"},
    }  # fmt: skip


async def test_headers_of_an_error_are_sent(shell: Shell) -> None:
    answer = await shell.http.get("/limits")

    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"name": "x"}, "body.size_bytes"), ({"name": "x", "size_bytes": "many"}, "body.size_bytes"), ([], "body"),
        ({"name": None, "size_bytes": 1}, "body.name"),
    ],
    ids=str,
)  # fmt: skip
async def test_body_that_breaks_its_schema_is_invalid_input_that_names_the_place(
    shell: Shell, issuer: Signer, body: Any, where: str
) -> None:
    answer = await shell.http.post("/things", json=body, headers=issuer.headers())

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-input")
    assert answer.json()["data"] == {"field": where}
    assert answer.json()["detail"].startswith(f"{where}: ")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000], ids=["empty", "cut off", "no text", "deep"])
async def test_body_that_is_no_json_is_invalid_input(shell: Shell, issuer: Signer, content: bytes) -> None:
    headers = {**issuer.headers(), "Content-Type": "application/json"}
    answer = await shell.http.post("/things", content=content, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-input")


async def test_query_that_breaks_its_schema_is_invalid_input(shell: Shell, issuer: Signer) -> None:
    body = {"name": "x", "size_bytes": 1}
    answer = await shell.http.post("/things?dry=perhaps", json=body, headers=issuer.headers())

    assert answer.json()["data"] == {"field": "query.dry"}


async def test_unknown_path_is_a_problem(shell: Shell) -> None:
    answer = await shell.http.get("/nowhere")

    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert answer.json()["detail"] == "no such path: GET /nowhere"


async def test_other_method_is_a_problem_that_names_those_allowed(shell: Shell) -> None:
    answer = await shell.http.delete("/limits")

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert answer.headers["content-type"] == "application/problem+json"


async def test_frameworks_own_errors_keep_status_and_headers(shell: Shell) -> None:
    answer = await shell.http.get("/teapot")

    assert (answer.status_code, answer.headers["x-tea"]) == (418, "green")
    assert answer.json()["code"] == "http-error"


async def test_crash_is_a_500_that_tells_nothing_of_the_inside(shell: Shell, capfd: pytest.CaptureFixture[str]) -> None:
    answer = await shell.http.get("/crash", headers={"X-Request-Id": "req-1"})

    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    for secret in ("hunter2", "Traceback", "RuntimeError", "test_http.py"):
        assert secret not in answer.text
    assert answer.headers["x-request-id"] == "req-1"
    assert "request.crashed" in "".join(capfd.readouterr())


async def test_crash_in_the_middle_of_a_stream_cuts_it_off(shell: Shell) -> None:
    with pytest.raises(RuntimeError, match="disk is gone"):
        await shell.http.get("/half")


async def test_store_that_is_away_is_a_503(shell: Shell) -> None:
    answer = await shell.http.get("/store")

    assert (answer.status_code, answer.json()["code"]) == (503, "store-unavailable")


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/v2/models/a", {"error": "no tensor in a"}),
        ("/v2/models/special", {"special": "no tensor in special"}),
        ("/v2/models/specialist", {"error": "no tensor in specialist"}),
    ],
)
async def test_errors_of_a_protocol_have_its_own_form_longest_prefix_first(
    shell: Shell, path: str, form: dict[str, str]
) -> None:
    assert (await shell.http.get(path)).json() == form


async def test_every_kind_of_error_has_the_protocols_form(shell: Shell) -> None:
    for path in ("/v2/nowhere", "/v2/crash", "/v2/models/a?size=big"):
        assert set((await shell.http.get(path)).json()) == {"error"}
    assert set((await shell.http.post("/v2/models/a")).json()) == {"error"}


async def test_path_that_only_begins_like_a_protocol_is_not_its(shell: Shell) -> None:
    assert (await shell.http.get("/v2x/crash")).json()["code"] == "internal"


# --- refusals


async def test_request_without_a_token_is_refused_and_recorded_once(shell: Shell) -> None:
    answer = await shell.http.get("/things/a")

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="modelworks"'
    [(event, actor)] = shell.recorded
    assert (actor, event.principal, event.service) == ("anonymous", "anonymous", "probe")
    assert (event.action, event.resource, event.reason) == ("GET /things/a", "/things/a", "token-missing")


@pytest.mark.parametrize(
    "authorization", ["Bearer nonsense", "bearer a.b.c", "Bearer " + "a" * 100_000], ids=["text", "dots", "100 kB"]
)
async def test_request_with_a_wrong_token_is_refused_and_recorded_once(shell: Shell, authorization: str) -> None:
    answer = await shell.http.get("/things/a", headers={"Authorization": authorization})

    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    [(event, _)] = shell.recorded
    assert event.reason == "token-invalid"


@pytest.mark.parametrize("authorization", ["Basic YTpi", "Bearer", "Bearer  ", ""])
async def test_other_authorization_counts_as_no_token(shell: Shell, authorization: str) -> None:
    await shell.http.get("/things/a", headers={"Authorization": authorization})

    assert [event.reason for event, _ in shell.recorded] == ["token-missing"]


async def test_request_without_permission_is_refused_and_recorded_once_with_the_policy(
    shell: Shell, issuer: Signer
) -> None:
    answer = await shell.http.get("/things/a", headers=issuer.headers("alice", "auditor"))

    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert answer.json()["data"] == {"action": "client:manage", "resource": "Client:a"}
    [(event, actor)] = shell.recorded
    assert (actor, event.principal) == ("alice", "alice")
    assert (event.action, event.resource, event.reason) == ("client:manage", "Client:a", "policy-denied")
    assert event.policy == shell.platform.policy.version


async def test_request_without_the_scope_is_refused_and_recorded(shell: Shell, issuer: Signer) -> None:
    headers = issuer.headers("alice", "administrator", scopes=("audit",))
    answer = await shell.http.get("/things/a", headers=headers)

    assert answer.status_code == 403
    assert [event.reason for event, _ in shell.recorded] == ["scope-missing"]


async def test_refusal_of_a_long_path_fits_its_event(shell: Shell, issuer: Signer) -> None:
    for headers in ({}, issuer.headers("alice", "auditor")):
        answer = await shell.http.get("/things/" + "a" * 5000, headers=headers)
        assert answer.status_code in (401, 403)

    assert [len(event.resource) for event, _ in shell.recorded] == [1000, 1000]


async def test_refusal_stands_when_it_cannot_be_recorded(
    shell: Shell, issuer: Signer, capfd: pytest.CaptureFixture[str]
) -> None:
    shell.record_fails = True

    answer = await shell.http.get("/things/a", headers=issuer.headers("alice", "auditor"))

    assert answer.status_code == 403
    log = "".join(capfd.readouterr())
    assert "refusal.not-recorded" in log
    assert "alice" in log


async def test_permitted_request_is_answered_and_not_recorded(shell: Shell, issuer: Signer) -> None:
    answer = await shell.http.get("/things/a", headers=issuer.headers("alice"))

    assert answer.json() == {"name": "a", "for": "alice"}
    assert shell.recorded == []


# --- operations


async def test_health_is_public_and_says_who_it_is(shell: Shell) -> None:
    assert (await shell.http.get("/healthz")).json() == {"status": "ok", "service": "probe"}


async def test_ready_service_says_what_was_checked(shell: Shell) -> None:
    answer = await shell.http.get("/readyz")

    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "service": "probe", "checks": {"disk": "ok", "slow": "ok"}}


async def test_service_that_is_not_ready_says_why(shell: Shell) -> None:
    shell.missing = "disk"

    answer = await shell.http.get("/readyz")

    assert answer.status_code == 503
    assert answer.json()["checks"] == {"disk": "the disk is full: free some space", "slow": "ok"}


async def test_check_that_hangs_fails_after_two_seconds(shell: Shell) -> None:
    shell.missing = "slow"

    answer = await shell.http.get("/readyz")

    assert answer.json()["checks"] == {"disk": "ok", "slow": "no answer within 2 s"}


@pytest.mark.parametrize("role", ["", "publisher", "consumer"])
async def test_metrics_are_not_for_everybody(shell: Shell, issuer: Signer, role: str) -> None:
    answer = await shell.http.get("/metrics", headers=issuer.headers("alice", role) if role else {})

    assert answer.status_code == (403 if role else 401)


async def test_metrics_count_requests_by_status(shell: Shell, issuer: Signer) -> None:
    await shell.http.get("/input")
    await shell.http.get("/crash")

    answer = await shell.http.get("/metrics", headers=issuer.headers("scraper", "service"))

    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'modelworks_http_requests_total{method="GET",service="probe",status="400"} 1.0' in answer.text
    assert 'modelworks_http_requests_total{method="GET",service="probe",status="500"} 1.0' in answer.text


async def test_invented_methods_do_not_grow_the_metrics(shell: Shell, issuer: Signer) -> None:
    for number in range(20):
        await shell.http.request(f"INVENTED{number}", "/input")

    text = (await shell.http.get("/metrics", headers=issuer.headers())).text
    assert 'method="OTHER",service="probe",status="405"} 20.0' in text
    assert "INVENTED" not in text


async def test_two_services_share_one_registry_of_metrics(shell: Shell) -> None:
    second = create_app("second", shell.platform, routers=[], record=shell._record)
    transport = httpx.ASGITransport(second)

    async with httpx.AsyncClient(transport=transport, base_url="http://second") as http:
        assert (await http.get("/nowhere")).status_code == 404


# --- request id and trace


async def test_request_id_is_echoed(shell: Shell) -> None:
    answer = await shell.http.get("/input", headers={"X-Request-Id": "req-42.a_b:c"})

    assert answer.headers["x-request-id"] == "req-42.a_b:c"


@pytest.mark.parametrize("offered", ["", "a" * 101, "a b", "a\x1b[31m", "{}", "é"])
async def test_request_id_unfit_for_logs_is_replaced(shell: Shell, offered: str) -> None:
    headers = [(b"x-request-id", offered.encode())]
    answer = await shell.http.get("/input", headers=headers)

    assert answer.headers["x-request-id"] != offered
    assert len(answer.headers["x-request-id"]) == 32


async def test_trace_of_the_caller_goes_on(shell: Shell) -> None:
    await shell.http.get("/input", headers={"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"})

    [span] = shell.spans.get_finished_spans()
    assert span.context is not None
    assert format(span.context.trace_id, "032x") == "a" * 32
    assert span.parent is not None
    assert format(span.parent.span_id, "016x") == "b" * 16
    assert span.name == "GET /input"
    assert dict(span.attributes or {})["http.response.status_code"] == 400


@pytest.mark.parametrize("parent", ["nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff" * 40])
async def test_malformed_trace_parent_begins_a_new_trace(shell: Shell, parent: str) -> None:
    await shell.http.get("/input", headers={"traceparent": parent})

    [span] = shell.spans.get_finished_spans()
    assert span.parent is None


async def test_span_of_a_crash_is_an_error(shell: Shell) -> None:
    await shell.http.get("/crash")

    [span] = shell.spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR


async def test_names_of_spans_do_not_grow_with_the_paths(shell: Shell) -> None:
    for number in range(5):
        await shell.http.get(f"/v2/models/a/versions/{number}/infer")

    assert {span.name for span in shell.spans.get_finished_spans()} == {"GET /v2/models/a"}


async def test_health_probes_leave_no_spans(shell: Shell) -> None:
    await shell.http.get("/healthz")
    await shell.http.get("/readyz")

    assert shell.spans.get_finished_spans() == ()


# --- streams

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def test_stream_is_not_buffered(shell: Shell, eventually: Callable[..., Any]) -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": "/stream",
        "raw_path": b"/stream", "query_string": b"", "headers": [], "client": None, "server": None, "scheme": "http",
        "root_path": "",
    }  # fmt: skip
    answering = asyncio.create_task(shell.app(scope, receive, send))
    await eventually(lambda: [message.get("body") for message in sent][1:] == [b"first"])

    shell.gate.set()
    await answering

    assert b"".join(message.get("body", b"") for message in sent) == b"firstsecond"


def test_openapi_document_describes_the_services_own_routes(shell: Shell) -> None:
    document = describe(shell.app)

    assert "/things" in document["paths"]
    assert "/healthz" not in document["paths"]
    assert document["info"]["title"] == "Modelworks probe"


def test_openapi_document_says_how_errors_look_and_which_token_is_needed(platform: Platform) -> None:
    router = APIRouter(prefix="/api/v1")

    @router.post("/things")
    async def make(body: Body, principal: Authenticated) -> Body:
        return body

    document = describe(create_app("probe", platform, routers=[router], record=ignore_refusal))

    operation = document["paths"]["/api/v1/things"]["post"]
    assert set(operation["responses"]) == {"200", "default"}
    assert "application/problem+json" in operation["responses"]["default"]["content"]
    assert operation["security"] == [{"token": []}]
    flow = document["components"]["securitySchemes"]["token"]["flows"]["clientCredentials"]
    assert (flow["tokenUrl"], set(flow["scopes"])) == ("/oauth/token", set(SCOPES))
    assert "HTTPValidationError" not in str(document)


async def test_no_interactive_documentation_is_served(shell: Shell) -> None:
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert (await shell.http.get(path)).status_code == 404
