"""`contracts/asyncapi.yaml` is valid AsyncAPI 3 and says what the classes and the services say."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from modelworks.events import ALL, BY_TOPIC, Audited, Envelope

from tests.repo.contracts import CONTRACTS

SERVICES = ("registry", "optimizer", "inference", "auth", "audit", "edge")
PATTERNS = {"retry", "dead-letter"}
"""Channels that stand for one beside every topic."""


@cache
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CONTRACTS / "asyncapi.yaml").read_text("utf-8"))
    return loaded


def faults(candidate: dict[str, Any]) -> list[str]:
    schema = json.loads((CONTRACTS / "vendor" / "asyncapi-3.0.0.schema.json").read_text("utf-8"))
    return [
        f"{'/'.join(map(str, error.path))}: {error.message[:200]}"
        for error in Draft7Validator(schema).iter_errors(candidate)
    ]


def operations(action: str) -> set[tuple[str, str]]:
    """(who, channel) of all operations of a kind."""
    return {
        (operation["tags"][0]["name"], operation["channel"]["$ref"].removeprefix("#/channels/"))
        for operation in document()["operations"].values()
        if operation["action"] == action
    }


def test_document_is_valid_asyncapi_3():
    assert document()["asyncapi"] == "3.0.0"
    assert faults(document()) == []


BREAKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an unknown version": lambda d: d.update(asyncapi="2.6.0"),
    "no title": lambda d: d["info"].pop("title"),
    "an unknown key in a channel": lambda d: next(iter(d["channels"].values())).update(topic="x"),
    "an action of AsyncAPI 2": lambda d: next(iter(d["operations"].values())).update(action="publish"),
    "an operation without a channel": lambda d: next(iter(d["operations"].values())).pop("channel"),
    "a server without a protocol": lambda d: d["servers"]["kafka"].pop("protocol"),
    "a binding that is not Kafka's": lambda d: d["components"]["messageTraits"]["cloudEvent"].update(
        bindings={"kafka": 1}
    ),
}


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
def test_the_validator_refuses(change: Callable[[dict[str, Any]], object]):
    broken = copy.deepcopy(document())
    change(broken)

    assert faults(broken)


def test_every_reference_resolves():
    references = list(_references(document()))

    assert len(references) > 2 * len(ALL)
    for reference in references:
        path, _, pointer = reference.partition("#")
        target: Any = json.loads((CONTRACTS / path).read_text("utf-8")) if path else document()
        for step in pointer.removeprefix("/").split("/") if pointer else ():
            target = target[step]
        assert target, reference


def test_channels_are_the_topics():
    assert set(document()["channels"]) - PATTERNS == set(BY_TOPIC)
    assert set(document()["components"]["messages"]) - {"failed"} == set(BY_TOPIC)


@pytest.mark.parametrize("topic", sorted(BY_TOPIC))
def test_channel_says_what_the_class_says(topic: str):
    event, channel = BY_TOPIC[topic], document()["channels"][topic]
    message = document()["components"]["messages"][topic]

    assert channel["address"] == topic
    assert channel["x-audited"] == event.audited.value
    assert channel["messages"] == {"event": {"$ref": f"#/components/messages/{topic}"}}
    assert message["name"] == event.__name__
    assert message["x-key"] == event.key_field
    assert message["payload"]["schema"] == {"$ref": f"events/{topic}/schema.json"}
    assert message["traits"] == [{"$ref": "#/components/messageTraits/cloudEvent"}]


def test_operation_names_say_who_does_what():
    words = {"send": "sends", "receive": "receives"}

    for name, operation in document()["operations"].items():
        who, channel = operation["tags"][0]["name"], operation["channel"]["$ref"].removeprefix("#/channels/")
        if who != "stores":
            assert name == f"{who}-{words[operation['action']]}-{channel}"
            assert who in (*SERVICES, "upstream")


def test_every_topic_is_sent_by_its_own_service():
    senders = operations("send")

    for topic in BY_TOPIC:
        owner = topic.partition(".")[0]
        expected = {"edge", "upstream"} if owner == "ingest" else {owner}
        if topic == "auth.access-denied.v1":
            expected = set(SERVICES)  # every service refuses for itself
        assert {who for who, sent in senders if sent == topic} == expected, topic


def test_audit_receives_exactly_what_is_audited():
    received = {channel for who, channel in operations("receive") if who == "audit"}

    assert received == {event.topic for event in ALL if event.audited is not Audited.NO}


def test_every_unaudited_topic_has_another_receiver():
    for event in ALL:
        if event.audited is Audited.NO and event.topic != "audit.checkpoint-signed.v1":
            assert {who for who, channel in operations("receive") if channel == event.topic}, event.topic


@pytest.mark.parametrize("topic", sorted(BY_TOPIC))
def test_headers_of_a_published_event_pass_the_header_schema(topic: str):
    headers_schema = document()["components"]["schemas"]["CloudEventHeaders"]
    example = (CONTRACTS / "events" / topic / "valid" / "full.json").read_bytes()
    incoming = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/services/x", "ce_type": topic}

    headers = Envelope.parse(incoming, example, BY_TOPIC).headers()

    assert Draft7Validator(headers_schema).is_valid(headers)
    assert set(headers) <= set(headers_schema["properties"])
    without_id = {name: value for name, value in headers.items() if name != "ce_id"}
    assert not Draft7Validator(headers_schema).is_valid(without_id)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for item in node:
            yield from _references(item)
