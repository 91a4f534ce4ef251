"""HTTP of auth: the token endpoint and discovery for everybody, clients and keys for administrators."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from modelworks.auth.domain import Client, Grants
from modelworks.auth.handlers import IssueTokens, Keys, ManageClients
from modelworks.auth.keyring import KeyRing
from modelworks.auth.token_request import OAuthRefusal, RawRequest, ascii_text
from modelworks.kit.errors import ModelworksError, TooLarge
from modelworks.kit.http import Authenticated
from modelworks.kit.platform import Platform
from modelworks.kit.policy import Resource
from pydantic import BaseModel, ConfigDict, Field

TOKEN_PATH = "/oauth/token"  # noqa: S105 - a path
JWKS_PATH = "/.well-known/jwks.json"
_TOKEN_OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "required": ["grant_type"],
                    "properties": {
                        "grant_type": {"const": "client_credentials"},
                        "scope": {
                            "type": "string",
                            "description": "Space-separated; absent: all that the client may have.",
                        },
                        "resource": {"type": "string", "description": "Audience; absent: `api`."},
                        "client_id": {"type": "string", "description": "Unless sent by HTTP Basic, which is better."},
                        "client_secret": {"type": "string"},
                    },
                }
            }
        },
    },
    "responses": {
        "default": {
            "description": "Refused or failed (RFC 6749 section 5.2)",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["error"],
                        "properties": {"error": {"type": "string"}, "error_description": {"type": "string"}},
                    }
                }
            },
        }
    },
}
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


class ClientBody(BaseModel):
    """A client to be made."""

    model_config = ConfigDict(extra="forbid")

    client_id: str | None = Field(None, max_length=200, description="Absent: one is made up.")
    roles: list[str] = Field(max_length=32)
    scopes: list[str] | None = Field(None, max_length=64, description="Absent: all that its roles can make use of.")
    name: str = Field("", max_length=1000, description="For people.")


class RotateBody(BaseModel):
    """How to rotate."""

    model_config = ConfigDict(extra="forbid")

    emergency: bool = Field(
        False, description="A private key leaked: sign with the next key at once and withdraw all earlier ones."
    )


def oauth_error(error: ModelworksError) -> Response:
    """An error in the form of RFC 6749 section 5.2."""
    if isinstance(error, OAuthRefusal):
        code = error.error
    elif error.status in (429, 503):
        code = "temporarily_unavailable"
    else:
        code = "server_error" if error.status >= 500 else "invalid_request"
    body = {"error": code, "error_description": ascii_text(error.message)}
    retry = {"Retry-After": "1"} if error.status == 503 else {}
    return JSONResponse(body, status_code=error.status, headers=_NO_STORE | retry)


def token_router(tokens: IssueTokens, *, body_bytes_max: int, trusted_proxies: Sequence[str]) -> APIRouter:
    """The token endpoint."""
    router = APIRouter(tags=["tokens"])
    networks = tuple(ip_network(network) for network in trusted_proxies)

    @router.post(TOKEN_PATH, openapi_extra=_TOKEN_OPENAPI)
    async def token(request: Request) -> JSONResponse:
        """A token by client credentials (RFC 6749 section 4.4), for one audience (`resource`, RFC 8707)."""
        raw = RawRequest(
            authorization=request.headers.getlist("authorization"),
            content_type=request.headers.get("content-type", ""),
            query=request.url.query,
            body=await _read(request, body_bytes_max),
            address=_address(request, networks),
        )
        return JSONResponse(await tokens.answer(raw), headers=_NO_STORE)

    return router


def discovery_router(keys: Keys, grants: Grants, *, issuer: str, jwks_cache_seconds: int) -> APIRouter:
    """What anybody may know of this issuer."""
    router = APIRouter(tags=["discovery"])
    document = metadata(issuer, sorted(grants.scopes))
    cached = {"Cache-Control": f"public, max-age={jwks_cache_seconds}"}

    @router.get("/.well-known/oauth-authorization-server")
    async def authorization_server() -> JSONResponse:
        """Authorization server metadata (RFC 8414)."""
        return JSONResponse(document, headers=cached)

    @router.get("/.well-known/openid-configuration")
    async def openid_configuration() -> JSONResponse:
        """The same document, where OpenID clients look for it. There is no login of people: no authorization endpoint."""
        return JSONResponse(document, headers=cached)

    @router.get(JWKS_PATH)
    async def jwks() -> JSONResponse:
        """The keys that verify tokens (RFC 7517)."""
        published = [key.public() for key in keys.ring.published]
        return JSONResponse({"keys": published}, headers=cached, media_type="application/jwk-set+json")

    return router


def metadata(issuer: str, scopes: Sequence[str]) -> dict[str, Any]:
    """Authorization server metadata by RFC 8414 section 2: what is offered and nothing more."""
    base = issuer.rstrip("/")
    return {
        "issuer": issuer,
        "token_endpoint": base + TOKEN_PATH,
        "jwks_uri": base + JWKS_PATH,
        "scopes_supported": list(scopes),
        # There is no authorization endpoint, hence no response type; RFC 8414 wants a value, OAuth has this one for it.
        "response_types_supported": ["none"],
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    }


def admin_router(clients: ManageClients, keys: Keys, platform: Platform) -> APIRouter:
    """Clients and keys; scope `admin`."""
    router = APIRouter(prefix="/api/v1", tags=["administration"])
    require = platform.policy.require

    @router.post("/clients", status_code=201)
    async def create_client(body: ClientBody, principal: Authenticated) -> JSONResponse:
        """Make a client. The answer holds its secret, this once."""
        require(principal, "client:manage", Resource("Client", body.client_id or "new"))
        client, secret = await clients.create(
            client_id=body.client_id, roles=body.roles, scopes=body.scopes, name=body.name, actor=principal.id
        )
        shown = {**_client_json(client, clients.grants), "client_secret": secret}
        headers = {**_NO_STORE, "Location": f"/api/v1/clients/{client.id}"}
        return JSONResponse(shown, status_code=201, headers=headers)

    @router.get("/clients")
    async def list_clients(
        principal: Authenticated,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        cursor: Annotated[str | None, Query(max_length=2000)] = None,
    ) -> dict[str, Any]:
        """Clients by id, without their secrets."""
        require(principal, "client:manage", Resource("Client", "all"))
        page = await clients.page(limit=limit, cursor=cursor)
        items = [_client_json(client, clients.grants) for client in page.clients]
        return {"items": items, "total": page.total, "cursor": page.cursor}

    @router.get("/clients/{client_id}")
    async def get_client(client_id: Annotated[str, Path(max_length=200)], principal: Authenticated) -> dict[str, Any]:
        """One client."""
        require(principal, "client:manage", Resource("Client", client_id))
        return _client_json(await clients.get(client_id), clients.grants)

    @router.delete("/clients/{client_id}", status_code=204)
    async def delete_client(client_id: Annotated[str, Path(max_length=200)], principal: Authenticated) -> Response:
        """Delete a client; its tokens stay valid until they expire."""
        require(principal, "client:manage", Resource("Client", client_id))
        await clients.delete(client_id, actor=principal.id)
        return Response(status_code=204)

    @router.post("/keys/rotate")
    async def rotate_keys(principal: Authenticated, body: RotateBody | None = None) -> dict[str, Any]:
        """Let the next key sign."""
        require(principal, "key:rotate")
        return _ring_json(await keys.rotate(emergency=bool(body and body.emergency), actor=principal.id))

    return router


def _client_json(client: Client, grants: Grants) -> dict[str, Any]:
    return {
        "client_id": client.id,
        "name": client.name,
        "roles": list(client.roles),
        "scopes": sorted(grants.of(client)),
        "created_at": client.created_at.isoformat().replace("+00:00", "Z"),
        "created_by": client.created_by,
    }


def _ring_json(ring: KeyRing) -> dict[str, Any]:
    return {
        "current": ring.current.id,
        "next": ring.successor.id,
        "previous": [key.id for key in ring.previous],
    }


async def _read(request: Request, bytes_max: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > bytes_max:
            raise TooLarge(f"the body of a token request has at most {bytes_max} bytes")
    return bytes(body)


def _address(request: Request, networks: Sequence[Any]) -> str:
    """Who sent it: the nearest address that is not one of our proxies."""
    hops = ",".join(request.headers.getlist("x-forwarded-for")).split(",") if networks else []
    address = request.client.host if request.client else "unknown"
    for hop in reversed([hop.strip() for hop in hops if hop.strip()]):
        try:
            if not any(ip_address(address) in network for network in networks):
                break
            ip_address(hop)
        except ValueError:
            break
        address = hop
    return address
