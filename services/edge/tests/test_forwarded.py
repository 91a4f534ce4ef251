"""Who called, as a service in another process is told."""

from __future__ import annotations

from typing import Any

import httpx
from modelworks.edge.app import build
from modelworks.edge.settings import EdgeSettings
from modelworks.kit.platform import Platform
from modelworks.stores.stores import Stores
from starlette.requests import Request
from starlette.responses import JSONResponse

from conftest import Issuer
from services.edge.tests.serving import serving


async def _tell(scope: Any, receive: Any, send: Any) -> None:
    request = Request(scope, receive)
    await JSONResponse({"from": request.headers.getlist("x-forwarded-for")})(scope, receive, send)


async def test_the_callers_address_is_appended_to_what_it_claims(
    stores: Stores, platform: Platform, issuer: Issuer
) -> None:
    """Auth counts failed logins by address: with the door's own address, one attacker would lock out everybody."""
    async with serving(_tell) as registry:
        edge = build(stores, EdgeSettings(registry_url=registry), platform)
        async with edge.run(), serving(edge.app) as url, httpx.AsyncClient(base_url=url) as http:
            plain = await http.get("/api/v1/repositories", headers=issuer.headers())
            claimed = {**issuer.headers(), "X-Forwarded-For": "203.0.113.7"}
            claiming = await http.get("/api/v1/repositories", headers=claimed)

    assert plain.json()["from"] == ["127.0.0.1"]
    assert claiming.json()["from"][0] == "203.0.113.7"
    assert len(claiming.json()["from"]) == 2
