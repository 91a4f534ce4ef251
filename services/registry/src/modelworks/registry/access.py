"""Who may do what to which repository; one that the caller may not know of is answered as if it did not exist.

A refusal on a private repository is told to the audit as any other, but the
caller gets the 404 of a name that was never used, word for word. Only a caller
who may read a repository learns with 403 that something else is not allowed.
"""

from __future__ import annotations

from modelworks.events import AccessDenied
from modelworks.kit.errors import Forbidden, NotFound
from modelworks.kit.http import Recorder
from modelworks.kit.policy import Policy, Resource
from modelworks.kit.principal import Principal
from modelworks.registry.domain import Repository
from modelworks.registry.handlers import Handlers
from modelworks.registry.metrics import Metrics
from modelworks.registry.moving import no_repository
from modelworks.registry.names import is_repository

READ, WRITE, CREATE = "repository:read", "repository:write", "repository:create"
SERVICE = "registry"


class Access:
    """Asks the policy."""

    def __init__(self, *, policy: Policy, handlers: Handlers, record: Recorder, metrics: Metrics) -> None:
        self._policy = policy
        self._handlers = handlers
        self._record = record
        self._metrics = metrics

    async def require(self, principal: Principal, action: str, name: str) -> Repository:
        """The repository, when the principal may do this to it.

        Raises:
            Forbidden: the token's scope or the principal's roles allow this on no repository, or the principal may
                read this one and no more. Neither tells whether a private repository exists.
            NotFound: there is none, or none that the principal may read.
        """
        self._policy.require(principal, action, resource_of(name, private=False, owner=principal.id))
        repository = await self._handlers.get(name) if is_repository(name) else None
        if repository is None:
            raise NotFound(no_repository(name), repository=name)
        try:
            self._policy.require(principal, action, _of(repository))
        except Forbidden as refusal:
            if self._policy.check(principal, READ, _of(repository)).allowed:
                raise
            await self._hide(principal, refusal)
            raise NotFound(no_repository(name), repository=name) from None
        return repository

    def require_create(self, principal: Principal, name: str, *, private: bool) -> None:
        """Nothing, when the principal may create it.

        Raises:
            Forbidden: it may not.
        """
        self._policy.require(principal, CREATE, resource_of(name, private=private, owner=principal.id))

    def reader(self, principal: Principal) -> str | None:
        """Whose private repositories a search shows: the principal's id, or None for those who may read all.

        Raises:
            Forbidden: the principal may not read repositories at all.
        """
        self._policy.require(principal, READ, resource_of("*", private=False, owner=principal.id))
        # The question whose answer tells: a private repository of nobody.
        everything = self._policy.check(principal, READ, resource_of("*", private=True, owner=""))
        return None if everything.allowed else principal.id

    async def _hide(self, principal: Principal, refusal: Forbidden) -> None:
        self._metrics.hidden.inc()
        event = AccessDenied(
            principal=principal.id, service=SERVICE, action=refusal.action, resource=refusal.resource,
            reason="policy-denied", detail=f"answered as not found: {refusal.message}"[:500], policy=refusal.policy,
        )  # fmt: skip
        await self._record(event, principal.id)


def resource_of(name: str, *, private: bool, owner: str) -> Resource:
    """A repository in the policy's words."""
    return Resource("Repository", name, {"private": private}, owner=owner)


def _of(repository: Repository) -> Resource:
    return resource_of(repository.name, private=repository.private, owner=repository.owner)
