"""The edge's handlers on an embedded bus."""

from __future__ import annotations

import pytest
from modelworks.edge.handlers import Events
from modelworks.events import Envelope, OptimizationRequested
from modelworks.kit.clock import utc_now
from modelworks.kit.errors import Forbidden, InvalidInput, NotFound
from modelworks.kit.platform import Platform
from modelworks.kit.policy import SCOPES
from modelworks.kit.principal import Principal
from modelworks.stores.stores import Stores

RESULTS = "inference.prediction-completed.v1"
TOKENS = "auth.token-issued.v1"


def principal(role: str, *scopes: str) -> Principal:
    return Principal("me", frozenset({role}), frozenset(scopes or SCOPES))


@pytest.fixture
def events(stores: Stores, platform: Platform) -> Events:
    return Events(stores.bus, platform)


def test_operator_follows_whole_topics(events: Events) -> None:
    assert events.narrow(principal("operator"), [RESULTS, TOKENS]) == frozenset()


def test_consumer_follows_its_own_results(events: Events) -> None:
    assert events.narrow(principal("consumer"), [RESULTS]) == {RESULTS}


@pytest.mark.parametrize("role", ["consumer", "publisher", "auditor", "service"])
def test_other_roles_follow_nothing_of_others(events: Events, role: str) -> None:
    with pytest.raises(Forbidden):
        events.narrow(principal(role), [TOKENS])


def test_token_without_the_scope_follows_nothing(events: Events) -> None:
    with pytest.raises(Forbidden, match="scope events"):
        events.narrow(principal("administrator", "predict"), [RESULTS])


@pytest.mark.parametrize("topics", [[], ["unknown.topic.v1"], [RESULTS] * 33])
def test_topics_must_be_known_and_few(events: Events, topics: list[str]) -> None:
    with pytest.raises(InvalidInput):
        events.narrow(principal("administrator"), topics)


async def test_same_event_sent_twice_keeps_its_id(events: Events) -> None:
    envelope = Envelope(OptimizationRequested(repository="a/b"), "id-1", "/up", utc_now(), "me")

    first, second = await events.ingest([envelope]), await events.ingest([envelope])

    assert first == second == ["id-1"]


def test_event_is_no_way_around_a_right(events: Events) -> None:
    wish = Envelope(OptimizationRequested(repository="a/b"), "1", "/up", utc_now())

    events.require_asked_for(principal("publisher"), [wish])
    with pytest.raises(Forbidden, match="optimization:run"):
        events.require_asked_for(principal("consumer"), [wish])


@pytest.mark.parametrize("limit", [0, 1001, -1])
async def test_dead_letters_are_listed_within_bounds(events: Events, limit: int) -> None:
    with pytest.raises(InvalidInput, match=str(limit)):
        await events.dead_letters(topic=None, limit=limit)


async def test_unknown_dead_letter_is_named(events: Events) -> None:
    with pytest.raises(NotFound, match="nothing"):
        await events.dead_letter("nothing")
