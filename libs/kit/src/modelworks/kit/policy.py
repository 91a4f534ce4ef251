"""Decides in process whether a principal may do something: scopes narrow, Cedar decides.

Policies are parsed once. Roles are entities, so the count of policies stays
small whatever the count of users. Every decision names the policy set (its
sha256) and the policies that made it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import cedarpy
from modelworks.kit.errors import Forbidden
from modelworks.kit.logging import get_logger
from modelworks.kit.principal import Principal

ROLES = ("administrator", "publisher", "operator", "consumer", "auditor", "service")

SCOPES: Mapping[str, frozenset[str]] = {
    "repository:read": frozenset({"repository:read"}),
    "repository:write": frozenset({"repository:create", "repository:read", "repository:write"}),
    "optimize": frozenset({"optimization:run", "optimization:read"}),
    "deploy": frozenset({"deployment:read", "deployment:write"}),
    "predict": frozenset({"model:predict", "deployment:read", "job:read", "job:cancel"}),
    "events": frozenset({"event:publish", "event:read", "event:replay"}),
    "audit": frozenset({"audit:read"}),
    "metrics": frozenset({"metrics:read"}),
    "admin": frozenset({"client:manage", "key:rotate"}),
}
"""OAuth scope to the actions it lets through. A token without an action's scope is refused before policy is asked."""

ACTIONS = frozenset().union(*SCOPES.values())

_CACHE_SIZE = 4096

log = get_logger("policy")


@dataclass(frozen=True, slots=True)
class Resource:
    """What is acted upon."""

    type: str
    """Cedar entity type: `Repository`, `Job`, `Model`, `Suite`."""
    id: str
    attributes: Mapping[str, bool | str] = field(default_factory=dict)
    owner: str | None = None
    """Principal's id, for types whose policies ask for an owner."""


SUITE = Resource("Suite", "modelworks")
"""For actions on no single thing."""


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer and what made it."""

    allowed: bool
    policies: tuple[str, ...]
    """The `@id`s of the policies that decided; empty when none applied (default deny)."""
    policy_set: str
    """sha256 of the policy text."""
    errors: tuple[str, ...] = ()
    """Why policies could not be evaluated; then the answer is no."""


class Policy:
    """A parsed policy set."""

    def __init__(self, text: str | None = None) -> None:
        """Without `text`, the set that ships with the suite.

        Raises:
            ValueError: the text is not valid Cedar, or a policy has no `@id` of its own.
        """
        source = text if text is not None else files("modelworks.kit").joinpath("policy.cedar").read_text("utf-8")
        self._policies = cedarpy.PolicySet.from_str(source)
        self.names = _names(source)
        """The `@id` of each policy."""
        self.version = hashlib.sha256(source.encode()).hexdigest()
        self._cache: dict[tuple[Any, ...], Decision] = {}

    def check(self, principal: Principal, action: str, resource: Resource = SUITE) -> Decision:
        """Ask Cedar. Repeats of the same question are answered from a bounded cache: the set never changes."""
        key = (principal.id, principal.roles, action, resource.type, resource.id, resource.owner,
               tuple(sorted(resource.attributes.items())))  # fmt: skip
        known = self._cache.get(key)
        if known is not None:
            return known
        answer = cedarpy.is_authorized(
            {
                "principal": {"type": "Principal", "id": principal.id},
                "action": {"type": "Action", "id": action},
                "resource": {"type": resource.type, "id": resource.id},
            },
            self._policies,
            json.dumps(_entities(principal, resource)),
        )
        names = answer.diagnostics.id_annotations_by_reason
        errors = tuple(answer.diagnostics.errors)
        if errors:
            log.error("policy.not-evaluated", action=action, resource=resource.type, errors=errors)
        decision = Decision(
            # Cedar skips a policy that fails, for want of an attribute for example. Were it a `forbid`, we would
            # permit what it forbids: so an answer that could not be evaluated whole is a no.
            allowed=bool(answer.allowed) and not errors,
            policies=tuple(sorted(names.get(reason, reason) for reason in answer.diagnostics.reasons)),
            policy_set=self.version,
            errors=errors,
        )
        if len(self._cache) >= _CACHE_SIZE:
            self._cache.clear()
        self._cache[key] = decision
        return decision

    def require(self, principal: Principal, action: str, resource: Resource = SUITE) -> Decision:
        """The decision, when it is yes.

        Raises:
            Forbidden: the token lacks the scope, or no policy permits it.
        """
        if action not in ACTIONS:
            raise ValueError(f"action {action!r} is not in policy.ACTIONS")
        where = f"{resource.type}:{resource.id}"
        if not any(action in SCOPES.get(scope, ()) for scope in principal.scopes):
            wanted = sorted(scope for scope, actions in SCOPES.items() if action in actions)
            refused = Forbidden(
                f"{action} on {where} needs a token with scope {' or '.join(wanted)}",
                action=action, resource=where, reason="scope-missing",
            )  # fmt: skip
            refused.principal = principal.id
            raise refused
        decision = self.check(principal, action, resource)
        if not decision.allowed:
            roles = ", ".join(sorted(principal.roles)) or "none"
            way_out = decision.errors[0] if decision.errors else "ask an administrator for a role that may"
            refused = Forbidden(
                f"{principal.id} (roles: {roles}) may not {action} on {where}: {way_out}",
                action=action, resource=where, policy=self.version,
            )  # fmt: skip
            refused.principal = principal.id
            raise refused
        return decision


def _names(source: str) -> tuple[str, ...]:
    policies = json.loads(cedarpy.policies_to_json_str(source))["staticPolicies"]
    names = [policy.get("annotations", {}).get("id", "") for policy in policies.values()]
    if "" in names or len(set(names)) != len(names):
        raise ValueError('each policy needs an @id("...") of its own: decisions name it')
    return tuple(names)


def _entities(principal: Principal, resource: Resource) -> list[dict[str, Any]]:
    attributes: dict[str, Any] = dict(resource.attributes)
    if resource.owner is not None:
        attributes["owner"] = {"__entity": {"type": "Principal", "id": resource.owner}}
    return [
        {
            "uid": {"type": "Principal", "id": principal.id},
            "attrs": {},
            "parents": [{"type": "Role", "id": role} for role in sorted(principal.roles)],
        },
        {"uid": {"type": resource.type, "id": resource.id}, "attrs": attributes, "parents": []},
    ]
