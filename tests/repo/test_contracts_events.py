"""Event schemas and event classes are written twice, by hand; here they are held equal."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from modelworks.events import ALL, BY_TOPIC, Envelope, EnvelopeError, Event

from tests.repo.contracts import CONTRACTS, compatibility, schema_of

FORMATS = FormatChecker(())


@FORMATS.checks("date-time")
def _is_rfc3339(value: object) -> bool:
    if not isinstance(value, str):
        return True
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


TOPICS = sorted(BY_TOPIC)
EXAMPLES = [
    pytest.param(path, id=f"{path.parent.parent.name}/{path.parent.name}/{path.stem}")
    for path in sorted((CONTRACTS / "events").glob("*/*/*.json"))
]


def class_rules(event: type[Event]) -> Any:
    """The rules of a class's own schema. Optional means absent, so pydantic's null branch is left out."""
    return compatibility.rules(_without_null(event.model_json_schema()))


def _without_null(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    branches = [branch for branch in node.get("anyOf", []) if branch != {"type": "null"}]
    if len(branches) == 1:
        node = {**{k: v for k, v in node.items() if k != "anyOf"}, **branches[0]}
    return {k: _without_null(v) for k, v in node.items() if not (k == "default" and v is None)}


def schema_accepts(topic: str, value: Any) -> bool:
    return bool(Draft202012Validator(schema_of(topic), format_checker=FORMATS).is_valid(value))


def class_accepts(topic: str, value: Any) -> bool:
    headers = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/tests", "ce_type": topic}
    try:
        Envelope.parse(headers, json.dumps(value).encode(), BY_TOPIC)
    except EnvelopeError:
        return False
    return True


def test_every_event_class_has_a_schema_and_every_schema_a_class():
    assert sorted(path.parent.name for path in (CONTRACTS / "events").glob("*/schema.json")) == TOPICS
    assert len(ALL) == len(BY_TOPIC)


@pytest.mark.parametrize("topic", TOPICS)
def test_class_and_schema_demand_the_same(topic: str):
    assert class_rules(BY_TOPIC[topic]) == compatibility.rules(schema_of(topic))


@pytest.mark.parametrize("topic", TOPICS)
def test_schema_is_readable_and_names_its_topic(topic: str):
    schema = schema_of(topic)

    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:modelworks:event:{topic}"
    assert schema["title"] == BY_TOPIC[topic].__name__
    for where, node in _properties(schema):
        assert node.get("description"), f"{topic} {where} has no description"
    assert "null" not in json.dumps(schema), "optional means absent, never null"


@pytest.mark.parametrize("topic", TOPICS)
def test_topic_is_named_service_noun_past_verb_major(topic: str):
    assert re.fullmatch(r"(registry|optimizer|inference|auth|audit|ingest)\.[a-z]+(-[a-z]+)+\.v[1-9][0-9]*", topic)


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_has_examples_of_both_kinds(topic: str):
    folder = CONTRACTS / "events" / topic

    assert list((folder / "valid").glob("*.json"))
    assert list((folder / "invalid").glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES)
def test_example_gets_the_same_verdict_from_schema_and_class(path: Path):
    topic, expected = path.parent.parent.name, path.parent.name == "valid"
    value = json.loads(path.read_text("utf-8"))

    assert schema_accepts(topic, value) is expected
    assert class_accepts(topic, value) is expected


@pytest.mark.parametrize("path", [p for p in EXAMPLES if "/invalid/" in str(p.values[0])])
def test_invalid_example_breaks_exactly_one_rule(path: Path):
    topic = path.parent.parent.name
    errors = list(
        Draft202012Validator(schema_of(topic), format_checker=FORMATS).iter_errors(json.loads(path.read_text()))
    )

    assert len(errors) == 1, [error.message for error in errors]


@pytest.mark.parametrize("path", [p for p in EXAMPLES if "/valid/" in str(p.values[0])])
def test_what_we_publish_passes_the_schema(path: Path):
    topic = path.parent.parent.name
    value = json.loads(path.read_text("utf-8"))
    headers = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/tests", "ce_type": topic}

    published = json.loads(Envelope.parse(headers, json.dumps(value).encode(), BY_TOPIC).body())

    assert schema_accepts(topic, published)
    known = schema_of(topic)["properties"]
    assert {name: published[name] for name in value if name in known} == {n: v for n, v in value.items() if n in known}


@pytest.mark.parametrize("topic", TOPICS)
def test_wrong_types_and_values_past_a_bound_are_refused_by_both(topic: str):
    full = json.loads((CONTRACTS / "events" / topic / "valid" / "full.json").read_text("utf-8"))
    rules = compatibility.rules(schema_of(topic))

    mutants = list(_mutants(rules, full))

    assert mutants
    for what, mutant in mutants:
        assert not schema_accepts(topic, mutant), f"the schema lets pass: {what}"
        assert not class_accepts(topic, mutant), f"the class lets pass: {what}"


def _mutants(rules: Mapping[str, Any], value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Copies of a valid value, each with one rule broken that no example file breaks."""
    kind = rules.get("type")
    wrong: dict[str, Any] = {
        "string": 17, "integer": "7", "number": "7", "boolean": 1, "array": "one", "object": "one"
    }  # fmt: skip
    if kind in wrong:
        yield f"{where} of another type", wrong[kind]
    if kind == "integer":
        yield f"{where} not whole", 1.5
    if "maxLength" in rules:
        yield f"{where} too long", "x" * (rules["maxLength"] + 1)
    if "maximum" in rules:
        yield f"{where} too large", rules["maximum"] + 1
    if "maxItems" in rules and value:
        yield f"{where} too many", [value[0]] * (rules["maxItems"] + 1)
    if isinstance(value, dict):
        for name, inner in rules.get("properties", {}).items():
            for what, mutant in _mutants(inner, value.get(name), f"{where}/{name}"):
                changed = copy.deepcopy(value)
                changed[name] = mutant
                yield what, changed
    if isinstance(value, list) and value:
        for what, mutant in _mutants(rules.get("items", {}), value[0], f"{where}/0"):
            yield what, [mutant, *value[1:]]


def _properties(node: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, dict):
        for name, inner in node.get("properties", {}).items():
            yield f"{where}/{name}", inner
            yield from _properties(inner, f"{where}/{name}")
        for name, inner in node.get("$defs", {}).items():
            yield f"{where}/$defs/{name}", inner
            yield from _properties(inner, f"{where}/$defs/{name}")
