"""Composition root of auth: the only file that names concrete adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from urllib.parse import urlsplit

from modelworks.auth.adapters import clients_documents, keyring_documents
from modelworks.auth.adapters.attempts_keyvalue import KeyValueAttempts
from modelworks.auth.adapters.clients_documents import DocumentClients
from modelworks.auth.adapters.engine_authlib import AuthlibEngine
from modelworks.auth.adapters.journal_bus import BusJournal
from modelworks.auth.adapters.keyring_documents import SealedKeyRings, generate_key
from modelworks.auth.api import admin_router, discovery_router, oauth_error, token_router
from modelworks.auth.domain import Grants, NewClient
from modelworks.auth.handlers import IssueTokens, Keys, ManageClients
from modelworks.auth.keyring import Schedule
from modelworks.auth.metrics import TokenMetrics
from modelworks.auth.settings import AuthSettings
from modelworks.auth.stream import follow_rotations
from modelworks.kit.errors import ModelworksError, StoreUnavailable
from modelworks.kit.http import create_app
from modelworks.kit.logging import get_logger
from modelworks.kit.platform import Platform
from modelworks.kit.policy import ROLES, SCOPES, Policy
from modelworks.kit.principal import Principal
from modelworks.kit.service import Service, run_service, settings_or_exit
from modelworks.kit.settings import PlatformSettings
from modelworks.kit.tasks import end
from modelworks.stores import Bus
from modelworks.stores.outbox import Outbox
from modelworks.stores.refusals import Refusals
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import Stores, open_stores

SOURCE = "/services/auth"
_VERIFIER_LEEWAY = timedelta(seconds=5)

log = get_logger("auth")


def build(stores: Stores, settings: AuthSettings, platform: Platform, *, owns_stores: bool = False) -> Service:
    """Auth, issuing for the issuer that the platform verifies.

    Args:
        owns_stores: close them at the end.
    """
    _warn_of_plain_http(platform.verifier.issuer)
    clock = platform.clock
    client_outbox, key_outbox = (
        Outbox(documents=stores.documents, bus=stores.bus, schema=schema, source=SOURCE, clock=clock)
        for schema in (clients_documents.SCHEMA, keyring_documents.SCHEMA)
    )
    grants = grants_of(platform.policy)
    clients = DocumentClients(client_outbox, stores.documents)
    rings = SealedKeyRings(key_outbox, master_key=settings.master_key.get_secret_value())
    keys = Keys(rings, schedule_of(settings), clock, generate=generate_key)
    manage = ManageClients(clients, grants, clock)
    executor = ThreadPoolExecutor(settings.signing_threads, thread_name_prefix="auth-sign")
    lifetime = timedelta(seconds=settings.token_lifetime_seconds)
    tokens = IssueTokens(
        clients=clients,
        keys=keys,
        attempts=KeyValueAttempts(stores.keyvalue, settings),
        journal=BusJournal(stores.bus, source=SOURCE, clock=clock, waiting_max=settings.waiting_max),
        engine=AuthlibEngine(
            issuer=platform.verifier.issuer, lifetime=lifetime, audiences=settings.audiences, grants=grants, clock=clock
        ),
        executor=executor,
        metrics=TokenMetrics(platform.telemetry.metrics),
        waiting_max=settings.waiting_max,
        refusals_per_minute_max=settings.refusals_per_minute_max,
    )
    routers = [
        token_router(tokens, body_bytes_max=settings.body_bytes_max, trusted_proxies=settings.trusted_proxies),
        discovery_router(keys, grants, issuer=platform.verifier.issuer, jwks_cache_seconds=settings.jwks_cache_seconds),
        admin_router(manage, keys, platform),
    ]
    checks = {"documents": stores.documents.check, "bus": stores.bus.check, "keys": keys.check}
    app = create_app(
        "auth", platform, routers=routers, checks=checks, renderers={"/oauth": oauth_error},
        record=Refusals(stores.bus, service="auth", clock=clock),
        description="Access tokens by client credentials, the keys that verify them, and the clients.",
    )  # fmt: skip
    upkeep = _Upkeep(settings, keys, manage, (client_outbox, key_outbox), stores.bus)

    @asynccontextmanager
    async def run() -> AsyncIterator[None]:
        try:
            async with upkeep.running():
                yield
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
            if owns_stores:
                await stores.close()

    return Service("auth", app, run, checks)


class _Upkeep:
    """Makes what must be there, now or as soon as the documents are, and then tends the keys."""

    def __init__(
        self, settings: AuthSettings, keys: Keys, clients: ManageClients, outboxes: tuple[Outbox, ...], bus: Bus
    ) -> None:
        self._bus = bus
        self._settings = settings
        self._keys = keys
        self._clients = clients
        self._outboxes = outboxes

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Raises what no waiting can help against: another master key, a client that cannot be."""
        async with AsyncExitStack() as stack:
            prepared = True
            try:
                await self._prepare(stack)
            except StoreUnavailable as error:
                prepared = False
                log.warning("start.postponed", error=error.message)
            following = follow_rotations(self._bus, self._keys, pause_seconds=self._settings.keys_reload_seconds)
            tasks = [
                asyncio.create_task(self._tend_forever(stack, prepared), name="auth upkeep"),
                asyncio.create_task(following, name="auth rotations"),
            ]
            try:
                yield
            finally:
                await end(*tasks)

    async def _prepare(self, stack: AsyncExitStack) -> None:
        for outbox in self._outboxes:
            await outbox.ensure()
        await self._keys.tend()
        await self._make_clients()
        for outbox in self._outboxes:
            await stack.enter_async_context(outbox.sweeping())

    async def _make_clients(self) -> None:
        secret = self._settings.admin_client_secret.get_secret_value()
        if secret:
            administrator = NewClient(self._settings.admin_client_id, ["administrator"], None, "made at start")
            await self._clients.ensure(administrator, secret)
        for client_id, wanted in self._settings.service_clients.items():
            asked = NewClient(client_id, wanted.roles, wanted.scopes, "made at start")
            await self._clients.ensure(asked, wanted.secret.get_secret_value())

    async def _tend_forever(self, stack: AsyncExitStack, prepared: bool) -> None:
        while True:
            await asyncio.sleep(self._settings.keys_reload_seconds)
            try:
                if prepared:
                    await self._keys.tend()
                else:
                    await self._prepare(stack)
                    prepared = True
            except ModelworksError as error:
                log.warning("upkeep.failed", error=error.message)


def grants_of(policy: Policy) -> Grants:
    """What each role can make use of, asked of the policy itself: a scope with no action it permits is no use."""

    def useful(role: str) -> frozenset[str]:
        principal = Principal("anybody", roles=frozenset({role}))
        return frozenset(
            scope
            for scope, actions in SCOPES.items()
            if any(policy.check(principal, action).allowed for action in actions)
        )

    return Grants({role: useful(role) for role in ROLES})


def schedule_of(settings: AuthSettings) -> Schedule:
    """Verifiers may lag by their cache, replicas by their reload; both count before a key signs and after it stopped."""
    lag = timedelta(seconds=settings.jwks_cache_seconds + settings.keys_reload_seconds)
    return Schedule(
        rotate_every=timedelta(hours=settings.key_rotation_hours),
        lead=lag,
        keep=lag + timedelta(seconds=settings.token_lifetime_seconds) + _VERIFIER_LEEWAY,
    )


def _warn_of_plain_http(issuer: str) -> None:
    parts = urlsplit(issuer)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        log.warning("issuer.plain-http", issuer=issuer, advice="tokens and secrets cross the network in the clear")


def main() -> None:
    """Run auth in a process of its own."""
    settings = settings_or_exit("auth", AuthSettings)

    def compose(platform: Platform) -> Service:
        stores = open_stores(
            settings_or_exit("auth", StoresSettings), environment=settings_or_exit("auth", PlatformSettings).environment
        )
        return build(stores, settings, platform, owns_stores=True)

    run_service("auth", settings, compose)
