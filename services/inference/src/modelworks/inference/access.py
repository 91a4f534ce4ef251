"""Questions to the policy that need more than one fact."""

from __future__ import annotations

from modelworks.inference.ports import Ownership
from modelworks.kit.errors import Forbidden
from modelworks.kit.policy import Policy, Resource
from modelworks.kit.principal import Principal


def require_deployable(policy: Policy, principal: Principal, model: str, ownership: Ownership) -> None:
    """The caller may bring this repository into service.

    The service reads the registry with a token of its own that sees private
    repositories; what it does for a caller must not exceed what the caller may
    read. The token's scopes are not asked: `deploy` is meant to be enough.

    Raises:
        Forbidden: the policy says no.
    """
    policy.require(principal, "deployment:write", Resource("Model", model))
    repository = Resource("Repository", model, {"private": ownership.private}, owner=ownership.owner)
    if not policy.check(principal, "repository:read", repository).allowed:
        raise Forbidden(
            f"{principal.id} may not read repository {model}, so may not deploy it: ask its owner",
            action="repository:read", resource=f"Repository:{model}", policy=policy.version,
        )  # fmt: skip
