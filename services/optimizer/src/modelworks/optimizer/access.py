"""Who may see or start what: a job belongs to its repository, and whoever may not know of that gets a plain 404."""

from __future__ import annotations

import time
from collections import OrderedDict

from modelworks.events import AccessDenied
from modelworks.kit.errors import Forbidden, InvalidInput, NotFound
from modelworks.kit.http import Recorder
from modelworks.kit.platform import Platform
from modelworks.kit.policy import Resource
from modelworks.kit.principal import Principal
from modelworks.optimizer.ports import ModelRepository, RepositoryFacts

RUN, READ = "optimization:run", "optimization:read"

_FACTS_MAX = 1000
_FACTS_SECONDS = 5.0


class Access:
    """Asks the policy, with what the registry says of the repository; that is remembered for a few seconds."""

    def __init__(self, platform: Platform, models: ModelRepository, record: Recorder) -> None:
        self._policy = platform.policy
        self._models = models
        self._record = record
        self._known: OrderedDict[str, tuple[float, RepositoryFacts | None]] = OrderedDict()

    def require_any(self, principal: Principal, action: str) -> None:
        """Nothing, when the principal may do this to some repository.

        Raises:
            Forbidden: neither its scopes nor its roles allow it on any.
        """
        self._policy.require(principal, action, _resource("*", private=False, owner=principal.id))

    async def require(self, principal: Principal, action: str, repository: str, *, missing: str) -> None:
        """Nothing, when the principal may do this to the repository.

        Args:
            missing: message of the 404, the same for what does not exist and for what may not be known.

        Raises:
            Forbidden: it may read the repository and no more, or may do this to none.
            NotFound: there is none, or none that it may know of.
        """
        self.require_any(principal, action)
        facts = await self._facts(repository)
        if facts is None:
            # Its jobs outlive a repository; they are shown to those who may see everything.
            facts = RepositoryFacts(repository, owner="", private=True)
        resource = _resource(repository, private=facts.private, owner=facts.owner)
        try:
            self._policy.require(principal, action, resource)
        except Forbidden as refusal:
            if self._policy.check(principal, "repository:read", resource).allowed:
                raise
            event = AccessDenied(
                principal=principal.id, service="optimizer", action=refusal.action, resource=refusal.resource,
                reason="policy-denied", detail=f"answered as not found: {refusal.message}"[:500], policy=refusal.policy,
            )  # fmt: skip
            await self._record(event, principal.id)
            raise NotFound(missing) from None

    async def may(self, principal: Principal, action: str, repository: str) -> bool:
        """Whether the principal may; a question, not a refusal."""
        facts = await self._facts(repository) or RepositoryFacts(repository, owner="", private=True)
        return self._policy.check(
            principal, action, _resource(repository, private=facts.private, owner=facts.owner)
        ).allowed

    async def _facts(self, repository: str) -> RepositoryFacts | None:
        now = time.monotonic()
        known = self._known.get(repository)
        if known is not None and now - known[0] < _FACTS_SECONDS:
            return known[1]
        try:
            facts: RepositoryFacts | None = await self._models.facts(repository)
        except (NotFound, InvalidInput):
            facts = None
        # What is not there may be made the next moment.
        if facts is not None:
            self._known[repository] = (now, facts)
            while len(self._known) > _FACTS_MAX:
                self._known.popitem(last=False)
        return facts


def _resource(repository: str, *, private: bool, owner: str | None) -> Resource:
    return Resource("Repository", repository, {"private": private}, owner)
