"""Who may do what: the matrix is written by hand, so that a change of policy.cedar shows here in plain words."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from typing import Any

import cedarpy
import pytest
from modelworks.kit.errors import Forbidden
from modelworks.kit.policy import ACTIONS, ROLES, SCOPES, SUITE, Policy, Resource
from modelworks.kit.principal import Principal

TEXT = files("modelworks.kit").joinpath("policy.cedar").read_text("utf-8")
SCHEMA = files("modelworks.kit").joinpath("policy.cedarschema").read_text("utf-8")

# What stands for an action's resource: a thing of somebody else, open to all where it can be.
RESOURCES = {
    "repository": Resource("Repository", "bob/model", {"private": False}, owner="bob"),
    "optimization": Resource("Repository", "bob/model", {"private": False}, owner="bob"),
    "deployment": Resource("Model", "bob/model"),
    "model": Resource("Model", "bob/model"),
    "job": Resource("Job", "job-1", owner="bob"),
    "event": Resource("Topic", "inference.prediction-completed.v1", {"own_only": False}),
    "audit": SUITE,
    "metrics": SUITE,
    "client": Resource("Client", "app"),
    "key": SUITE,
}

MATRIX = """
                     administrator publisher operator consumer auditor service nobody
repository:create    yes           yes       -        -        -       -       -
repository:read      yes           yes       yes      -        -       yes     -
repository:write     yes           yes       -        -        -       yes     -
optimization:run     yes           yes       yes      -        -       -       -
optimization:read    yes           yes       yes      -        -       -       -
deployment:read      yes           -         yes      yes      -       yes     -
deployment:write     yes           -         yes      -        -       -       -
model:predict        yes           -         yes      yes      -       -       -
job:read             yes           -         yes      -        -       -       -
job:cancel           yes           -         yes      -        -       -       -
event:publish        yes           -         -        yes      -       -       -
event:read           yes           -         yes      -        -       -       -
event:replay         yes           -         yes      -        -       -       -
audit:read           yes           -         -        -        yes     -       -
metrics:read         yes           -         yes      -        yes     yes     -
client:manage        yes           -         -        -        -       -       -
key:rotate           yes           -         -        -        -       -       -
"""


def matrix() -> list[tuple[str, str, bool]]:
    head, *rows = [line.split() for line in MATRIX.strip().splitlines()]
    return [(action, role, cell == "yes") for action, *cells in rows for role, cell in zip(head, cells, strict=True)]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy()


def who(*roles: str, id: str = "alice", scopes: frozenset[str] = frozenset(SCOPES)) -> Principal:
    return Principal(id, roles=frozenset(roles), scopes=scopes)


@pytest.mark.parametrize(("action", "role", "allowed"), matrix(), ids=lambda value: str(value))
def test_role_may_do_what_the_matrix_says(policy: Policy, action: str, role: str, allowed: bool) -> None:
    principal = who() if role == "nobody" else who(role)

    decision = policy.check(principal, action, RESOURCES[action.split(":", maxsplit=1)[0]])

    assert decision.allowed is allowed
    assert decision.errors == ()
    assert bool(decision.policies) is allowed


def test_matrix_has_each_action_and_each_role() -> None:
    cells = matrix()

    assert {action for action, _, _ in cells} == ACTIONS
    assert {role for _, role, _ in cells} == {*ROLES, "nobody"}


def test_role_that_does_not_exist_may_do_nothing(policy: Policy) -> None:
    for action in ACTIONS:
        assert not policy.check(who("emperor", "Administrator"), action, SUITE).allowed


def test_roles_add_up(policy: Policy) -> None:
    both = who("consumer", "auditor")

    assert policy.check(both, "audit:read").allowed
    assert policy.check(both, "model:predict", Resource("Model", "bob/model")).allowed


# --- private repositories

PRIVATE = Resource("Repository", "bob/secret", {"private": True}, owner="bob")


@pytest.mark.parametrize(
    ("principal", "allowed"),
    [
        (who("publisher", id="bob"), True), (who("publisher"), False), (who("operator"), False),
        (who("publisher", "operator", "consumer", "auditor"), False), (who("administrator"), True), (who("service"), True),
        (who("consumer", id="bob"), False),
    ],
    ids=str,
)  # fmt: skip
def test_private_repository_is_read_by_its_owner_administrators_and_services_only(
    policy: Policy, principal: Principal, allowed: bool
) -> None:
    assert policy.check(principal, "repository:read", PRIVATE).allowed is allowed


@pytest.mark.parametrize("action", ["repository:write", "repository:create", "optimization:run", "optimization:read"])
def test_private_repository_of_another_is_closed_for_every_action(policy: Policy, action: str) -> None:
    assert not policy.check(who("publisher"), action, PRIVATE).allowed
    assert policy.check(who("publisher", id="bob"), action, PRIVATE).allowed


def test_refusal_of_a_private_repository_names_the_policy_that_forbids(policy: Policy) -> None:
    assert policy.check(who("publisher"), "repository:read", PRIVATE).policies == ("private-repository-is-its-owners",)


def test_policy_that_cannot_be_evaluated_refuses() -> None:
    """INVARIANT: a resource without the attribute that a `forbid` asks for must not slip through it."""
    policy = Policy()

    decision = policy.check(who("publisher"), "repository:read", Resource("Repository", "bob/secret"))

    assert not decision.allowed
    assert "does not have the attribute `private`" in decision.errors[0]
    with pytest.raises(Forbidden, match="does not have the attribute"):
        policy.require(who("publisher"), "repository:read", Resource("Repository", "bob/secret"))


# --- what is one's own


@pytest.mark.parametrize("action", ["job:read", "job:cancel"])
def test_job_belongs_to_its_owner(policy: Policy, action: str) -> None:
    job = Resource("Job", "job-1", owner="alice")

    assert policy.check(who("consumer"), action, job).allowed
    assert not policy.check(who("consumer", id="mallory"), action, job).allowed


def test_owner_is_an_id_and_not_a_role(policy: Policy) -> None:
    job = Resource("Job", "job-1", owner="administrator")

    assert not policy.check(who("consumer"), "job:read", job).allowed


def test_consumer_reads_its_own_results_only(policy: Policy) -> None:
    own = Resource("Topic", "inference.prediction-completed.v1", {"own_only": True})

    assert policy.check(who("consumer"), "event:read", own).allowed
    assert not policy.check(who("consumer"), "event:read", RESOURCES["event"]).allowed


@pytest.mark.parametrize("id", ['a"b', "a\\b", "a\nb", "a::b", 'Role::"administrator"', "", "é" * 100, "a\x00b"])
def test_names_of_any_characters_are_names_and_nothing_else(policy: Policy, id: str) -> None:
    stranger = Principal(id, roles=frozenset({id}), scopes=frozenset(SCOPES))

    assert not policy.check(stranger, "client:manage", Resource("Client", id)).allowed
    assert policy.check(stranger, "job:read", Resource("Job", id, owner=id)).allowed
    assert not policy.check(who("consumer"), "job:read", Resource("Job", id, owner=id)).allowed


# --- scopes


def test_scope_narrows_what_the_role_may(policy: Policy) -> None:
    reader = who("administrator", scopes=frozenset({"repository:read"}))

    policy.require(reader, "repository:read", PRIVATE)
    with pytest.raises(Forbidden, match="needs a token with scope repository:write") as refused:
        policy.require(reader, "repository:write", PRIVATE)

    assert refused.value.reason == "scope-missing"
    assert refused.value.principal == "alice"
    assert 'error="insufficient_scope"' in refused.value.headers["WWW-Authenticate"]


def test_scope_gives_nothing_that_the_role_may_not(policy: Policy) -> None:
    with pytest.raises(Forbidden, match=r"alice \(roles: consumer\) may not client:manage on Client:app") as refused:
        policy.require(who("consumer"), "client:manage", Resource("Client", "app"))

    assert (refused.value.reason, refused.value.policy) == ("policy-denied", policy.version)
    assert "WWW-Authenticate" not in refused.value.headers


@pytest.mark.parametrize("scope", sorted(SCOPES))
def test_each_scope_lets_exactly_its_actions_through(policy: Policy, scope: str) -> None:
    narrowed = who("administrator", scopes=frozenset({scope, "no-such-scope"}))

    for action in SCOPES[scope]:
        policy.require(narrowed, action, RESOURCES[action.split(":")[0]])
    for action in ACTIONS - SCOPES[scope]:
        with pytest.raises(Forbidden) as refused:
            policy.require(narrowed, action, RESOURCES[action.split(":")[0]])
        assert refused.value.reason == "scope-missing"


def test_action_that_does_not_exist_is_a_mistake_of_ours(policy: Policy) -> None:
    with pytest.raises(ValueError, match="repository:burn"):
        policy.require(who("administrator"), "repository:burn")


# --- the decision


def test_decision_names_the_policies_and_the_set_that_made_it(policy: Policy) -> None:
    decision = policy.require(who("publisher", "operator"), "optimization:run", RESOURCES["optimization"])

    assert decision.policies == ("operator-operates", "publisher-publishes")
    assert decision.policy_set == policy.version == hashlib.sha256(TEXT.encode()).hexdigest()


def test_same_question_again_gives_the_same_decision(policy: Policy) -> None:
    first = policy.check(who("auditor"), "audit:read")

    assert policy.check(who("auditor"), "audit:read") is first


def test_remembered_decision_is_of_the_same_question_in_every_part(policy: Policy) -> None:
    open_, closed = (Resource("Repository", "bob/m", {"private": private}, owner="bob") for private in (False, True))
    assert policy.check(who("publisher"), "repository:read", open_).allowed

    assert not policy.check(who("publisher"), "repository:read", closed).allowed
    assert not policy.check(who(), "repository:read", open_).allowed
    assert not policy.check(who("publisher"), "audit:read", open_).allowed
    assert policy.check(who("publisher", id="bob"), "repository:read", closed).allowed


def test_memory_of_decisions_is_bounded() -> None:
    policy = Policy()

    for number in range(5000):
        policy.check(who("consumer"), "job:read", Resource("Job", str(number), owner="alice"))

    assert len(policy._cache) <= 4096


# --- the text


def test_shipped_policies_are_valid_by_the_schema() -> None:
    result = cedarpy.validate_policies(TEXT, SCHEMA)

    assert [str(error) for error in result.errors] == []
    assert result.validation_passed


@pytest.mark.parametrize(
    "wrong",
    [
        'permit (principal in Role::"auditor", action == Action::"audit:reed", resource);',
        'permit (principal, action == Action::"job:read", resource is Job) when { resource.ownr == principal };',
        'permit (principal is Person, action == Action::"job:read", resource);',
    ],
)
def test_schema_finds_what_is_misspelt(wrong: str) -> None:
    assert not cedarpy.validate_policies(wrong, SCHEMA).validation_passed


def test_schema_has_exactly_the_actions_of_the_scopes() -> None:
    for action in ACTIONS:
        text = f'permit (principal, action == Action::"{action}", resource);'
        assert cedarpy.validate_policies(text, SCHEMA).validation_passed, action


@pytest.mark.parametrize("resource", RESOURCES.values(), ids=lambda each: each.type)
def test_resources_of_these_tests_are_as_the_schema_says(resource: Resource) -> None:
    entity: dict[str, Any] = {"uid": {"type": resource.type, "id": resource.id}, "attrs": dict(resource.attributes)}
    if resource.owner:
        entity["attrs"]["owner"] = {"__entity": {"type": "Principal", "id": resource.owner}}

    assert len(cedarpy.Entities.from_json_str(json.dumps([{**entity, "parents": []}]), SCHEMA)) >= 1


def test_each_policy_has_a_name_of_its_own(policy: Policy) -> None:
    assert len(policy.names) == len(set(policy.names)) == TEXT.count("\n@id(")


@pytest.mark.parametrize(
    "text",
    [
        "permit (principal, action, resource)",
        "permit (principal, action, resource);",
        '@id("a") permit (principal, action, resource); @id("a") forbid (principal, action, resource);',
        "nonsense",
    ],
)
def test_policy_text_that_is_wrong_or_nameless_is_refused_at_start(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Policy(text)


def test_policies_may_be_given_as_text() -> None:
    policy = Policy('@id("all-read")\npermit (principal, action == Action::"audit:read", resource);')

    assert policy.check(who(), "audit:read").policies == ("all-read",)
    assert not policy.check(who("administrator"), "metrics:read").allowed
