"""Composition root of the edge: the only file that names concrete adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from modelworks.edge.api import RENDERERS, router
from modelworks.edge.door import Door
from modelworks.edge.handlers import Events
from modelworks.edge.ports import Upstream
from modelworks.edge.settings import EdgeSettings
from modelworks.kit.http import Check, ErrorAnswers, create_app
from modelworks.kit.platform import Platform
from modelworks.kit.service import Service, run_service, settings_or_exit
from modelworks.kit.settings import PlatformSettings
from modelworks.stores.refusals import Refusals
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import Stores, open_stores

NAMES = ("auth", "registry", "optimizer", "inference", "audit")
"""The services behind the door."""


def build(
    stores: Stores,
    settings: EdgeSettings,
    platform: Platform,
    *,
    local: Mapping[str, Service] | None = None,
    owns_stores: bool = False,
) -> Service:
    """The edge before services in this process (`local`) and in others (settings).

    Args:
        owns_stores: close them at the end.
    """
    upstreams: dict[str, Upstream] = {}
    checks: dict[str, Check] = {"bus": stores.bus.check}
    remote = []
    for name in NAMES:
        url = getattr(settings, f"{name}_url")
        if local and name in local:
            upstreams[name] = local[name].app
            checks |= {f"{name}.{check}": run for check, run in local[name].checks.items()}
        elif url:
            from modelworks.edge.adapters.upstream_http import HttpUpstream

            upstream = HttpUpstream(
                name, url, connections_max=settings.connections_max, timeout_seconds=settings.timeout_seconds
            )
            remote.append(upstream)
            upstreams[name] = upstream
            checks[name] = upstream.check
    record = Refusals(stores.bus, service="edge", clock=platform.clock)
    events = Events(stores.bus, platform)
    own = create_app(
        "edge", platform, routers=[router(events, settings, platform)], record=record, checks=checks,
        description="The only public door: events in, results out, dead letters; everything else is routed to its service.",
    )  # fmt: skip
    errors = ErrorAnswers("edge", record, RENDERERS)
    door = Door(own, upstreams, settings=settings, platform=platform, errors=errors)

    @asynccontextmanager
    async def run() -> AsyncIterator[None]:
        yield
        for upstream in remote:
            await upstream.close()
        if owns_stores:
            await stores.close()

    return Service("edge", door, run, checks)


def main() -> None:
    """Run the edge in a process of its own."""
    settings = settings_or_exit("edge", EdgeSettings)

    def compose(platform: Platform) -> Service:
        stores = open_stores(
            settings_or_exit("edge", StoresSettings), environment=settings_or_exit("edge", PlatformSettings).environment
        )
        return build(stores, settings, platform, owns_stores=True)

    run_service("edge", settings, compose)
