"""The saved objects of OpenSearch Dashboards: what its import does not check and a browser would fail on.

Dashboards stores a dashboard whose panels do not exist and a visualization whose state is no JSON; both fail only when
somebody opens them. Its index refuses attributes it does not know.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from modelworks.audit.adapters.index_documents import SCHEMA
from modelworks.events import BY_TOPIC
from modelworks.stores import FieldType
from modelworks.stores.settings import StoresSettings

FILE = Path(__file__).parents[2] / "deploy" / "dashboards" / "audit.ndjson"

MIGRATIONS = {"index-pattern": (7, 6, 0), "search": (7, 9, 3), "visualization": (7, 10, 0), "dashboard": (7, 9, 3)}
"""The newest migration of each type: a greater version is refused as "of a more recent version"."""

_SOURCE = "kibanaSavedObjectMeta"
ATTRIBUTES = {
    "index-pattern": {"title", "timeFieldName", "fields", "intervalName", "type", "sourceFilters", "fieldFormatMap"},
    "search": {"title", "description", "columns", "columnWidths", "hits", _SOURCE, "sort", "version"},
    "visualization": {"title", "description", _SOURCE, "savedSearchRefName", "uiStateJSON", "visState", "version"},
    "dashboard": {
        "title", "description", "hits", _SOURCE, "optionsJSON", "panelsJSON", "refreshInterval", "timeFrom", "timeTo",
        "timeRestore", "version",
    },
}  # fmt: skip
REQUIRED_JSON = {
    "index-pattern": {"fields"},
    "search": set(),
    "visualization": {"visState", "uiStateJSON"},
    "dashboard": {"panelsJSON", "optionsJSON"},
}
_TYPES = {
    FieldType.KEYWORD: "keyword", FieldType.TEXT: "text", FieldType.INTEGER: "long", FieldType.FLOAT: "double",
    FieldType.TIME: "date", FieldType.BOOLEAN: "boolean",
}  # fmt: skip


def objects() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]


def faults(found: list[dict[str, Any]]) -> list[str]:
    """Everything that keeps the objects from being imported, or from being shown."""
    ids = Counter((each.get("type"), each.get("id")) for each in found)
    problems = [f"{key} is there {count} times" for key, count in ids.items() if count > 1]
    for each in found:
        name = f"{each.get('type')}:{each.get('id')}"
        problems += [f"{name}: {fault}" for fault in _faults_of(each, set(ids))]
    return problems


def _faults_of(each: Mapping[str, Any], ids: set[Any]) -> Iterator[str]:
    kind, attributes = each.get("type"), each.get("attributes", {})
    if kind not in ATTRIBUTES:
        yield "type cannot be imported"
        return
    if set(each) != {"type", "id", "attributes", "references", "migrationVersion"}:
        yield f"has {sorted(each)}"
        return
    if not attributes.get("title"):
        yield "has no title"
    if unknown := set(attributes) - ATTRIBUTES[kind]:
        yield f"has unknown attributes {sorted(unknown)}"
    versions = {name: tuple(map(int, text.split("."))) for name, text in each["migrationVersion"].items()}
    if set(versions) != {kind} or versions[kind] > MIGRATIONS[kind]:
        yield f"has migration versions {versions}"
    for reference in each["references"]:
        if (reference["type"], reference["id"]) not in ids:
            yield f"refers to {reference['type']}:{reference['id']}, which is not there"
    texts = {name: attributes.get(name) for name in REQUIRED_JSON[kind]}
    if kind != "index-pattern":
        texts["searchSourceJSON"] = attributes.get(_SOURCE, {}).get("searchSourceJSON")
        if set(attributes.get(_SOURCE, {})) != {"searchSourceJSON"}:
            yield f"{_SOURCE} holds something else than searchSourceJSON"
    parsed: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            parsed[name] = json.loads(text)
        except (TypeError, ValueError):
            yield f"{name} is no JSON text"
            return
    yield from _names(each, parsed)
    yield from _fields(kind, attributes, parsed)


def _names(each: Mapping[str, Any], parsed: Mapping[str, Any]) -> Iterator[str]:
    """The reference names inside the texts are those of the references."""
    used: set[str] = set()
    source = parsed.get("searchSourceJSON", {})
    if "indexRefName" in source:
        used.add(source["indexRefName"])
        if source["indexRefName"] != f"{_SOURCE}.searchSourceJSON.index":
            yield f"indexRefName is {source['indexRefName']}"
    elif each["type"] in ("search", "visualization"):
        yield "searches no index"
    for number, condition in enumerate(source.get("filter", [])):
        used.add(condition["meta"]["indexRefName"])
        if condition["meta"]["indexRefName"] != f"{_SOURCE}.searchSourceJSON.filter[{number}].meta.index":
            yield f"filter {number} has indexRefName {condition['meta']['indexRefName']}"
    panels = parsed.get("panelsJSON", [])
    used |= {panel.get("panelRefName", "") for panel in panels}
    numbers = [panel.get("panelIndex") for panel in panels]
    if len(set(numbers)) != len(numbers) or any(p["gridData"]["i"] != p["panelIndex"] for p in panels):
        yield "panels share a number, or name another one"
    for panel in panels:
        grid = panel["gridData"]
        if grid["x"] < 0 or grid["y"] < 0 or grid["w"] < 1 or grid["h"] < 1 or grid["x"] + grid["w"] > 48:
            yield f"panel {panel['panelIndex']} does not lie in the grid of 48 columns"
        if not re.fullmatch(r"\d+\.\d+\.\d+", panel.get("version", "")):
            yield f"panel {panel['panelIndex']} has no version"
    names = [reference["name"] for reference in each["references"]]
    if sorted(names) != sorted(used):
        yield f"has references {sorted(names)}, and uses {sorted(used)}"


def _fields(kind: str, attributes: Mapping[str, Any], parsed: Mapping[str, Any]) -> Iterator[str]:
    """Every field that is shown or counted is one that the audit indexes."""
    known = {field.path: field.type for field in SCHEMA.fields}
    used = list(attributes.get("columns", [])) + [name for name, _ in attributes.get("sort", [])]
    for agg in parsed.get("visState", {}).get("aggs", []):
        if "field" in agg["params"]:
            used.append(agg["params"]["field"])
            if known.get(agg["params"]["field"]) is FieldType.TEXT:
                yield f"counts by {agg['params']['field']}, which is text"
    query = parsed.get("searchSourceJSON", {}).get("query", {})
    used += re.findall(r"([a-z_.]+) :", str(query.get("query", "")))
    if query.get("language", "kuery") != "kuery":
        yield f"asks in {query['language']}"
    yield from (f"uses field {name}, which is not indexed" for name in used if name not in known)
    for topic in re.findall(r'"([a-z]+\.[a-z-]+\.v\d+)"', str(query.get("query", ""))):
        if topic not in BY_TOPIC:
            yield f"asks for events of type {topic}, which do not exist"
    if kind == "visualization" and parsed["visState"].get("title") != attributes["title"]:
        yield "has two titles"


def test_saved_objects_can_be_imported_and_shown():
    assert faults(objects()) == []


def test_there_is_one_dashboard_with_what_an_auditor_looks_for():
    kinds = Counter(each["type"] for each in objects())
    titles = {each["attributes"]["title"] for each in objects()}

    assert kinds == {"index-pattern": 1, "search": 2, "visualization": 5, "dashboard": 1}
    assert {"Events over time, by type", "Denials by actor", "Predictions per model"} <= titles


def test_index_pattern_is_the_alias_of_the_collection_and_has_its_fields():
    pattern = next(each for each in objects() if each["type"] == "index-pattern")
    prefix = StoresSettings.model_fields["opensearch_prefix"].default
    fields = {field["name"]: field["esTypes"] for field in json.loads(pattern["attributes"]["fields"])}

    # The alias itself and no wildcard: while an index is made again, a wildcard would count every event twice.
    assert pattern["attributes"]["title"] == f"{prefix}{SCHEMA.collection}"
    assert pattern["attributes"]["timeFieldName"] == "time_dt"
    declared = {field.path: [_TYPES[field.type]] for field in SCHEMA.fields}
    assert {name: types for name, types in fields.items() if not name.startswith("_")} == declared


def test_every_panel_of_the_dashboard_has_a_place_of_its_own():
    dashboard = next(each for each in objects() if each["type"] == "dashboard")
    taken: Counter[tuple[int, int]] = Counter()
    for panel in json.loads(dashboard["attributes"]["panelsJSON"]):
        grid = panel["gridData"]
        taken.update(
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        )

    assert max(taken.values()) == 1


def _edit(name: str, change: Callable[[Any], object]) -> Callable[[dict[str, Any]], None]:
    def edit(each: dict[str, Any]) -> None:
        holder = each["attributes"][_SOURCE] if name == "searchSourceJSON" else each["attributes"]
        value = json.loads(holder[name])
        change(value)
        holder[name] = json.dumps(value)

    return edit


BREAKS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "an unknown type": ("search", lambda o: o.update(type="config")),
    "an unknown attribute": ("dashboard", lambda o: o["attributes"].update(controlGroupInput="{}")),
    "no title": ("search", lambda o: o["attributes"].pop("title")),
    "a newer migration": ("visualization", lambda o: o.update(migrationVersion={"visualization": "7.11.0"})),
    "no migration": ("visualization", lambda o: o.update(migrationVersion={})),
    "a reference to nothing": ("dashboard", lambda o: o["references"][0].update(id="gone")),
    "an unused reference": ("dashboard", lambda o: o["references"][0].update(name="panel_99")),
    "a panel without a reference": ("dashboard", lambda o: o["references"].pop()),
    "panels that are no JSON": ("dashboard", lambda o: o["attributes"].update(panelsJSON="[{")),
    "panels that are no text": ("dashboard", lambda o: o["attributes"].update(panelsJSON=[])),
    "a state that is no JSON": ("visualization", lambda o: o["attributes"].update(visState="{,}")),
    "no search source": ("search", lambda o: o["attributes"].pop(_SOURCE)),
    "two panels of one number": ("dashboard", _edit("panelsJSON", lambda p: p[1].update(panelIndex="1"))),
    "a panel beside the grid": ("dashboard", _edit("panelsJSON", lambda p: p[0]["gridData"].update(x=40))),
    "a panel without a version": ("dashboard", _edit("panelsJSON", lambda p: p[0].pop("version"))),
    "a field that is not indexed": (
        "visualization", _edit("visState", lambda v: v["aggs"][1]["params"].update(field="user.name")),
    ),
    "a count by text": ("visualization", _edit("visState", lambda v: v["aggs"][1]["params"].update(field="message"))),
    "a column that is not indexed": ("search", lambda o: o["attributes"]["columns"].append("leaf")),
    "a query for an unknown field": (
        "search", _edit("searchSourceJSON", lambda s: s["query"].update(query="result : denied")),
    ),
    "a query for an unknown event": (
        "search", _edit("searchSourceJSON", lambda s: s["query"].update(query='event.type : "a.b-done.v1"')),
    ),
    "another index name": ("search", _edit("searchSourceJSON", lambda s: s.update(indexRefName="index"))),
    "a second key": ("search", lambda o: o.update(updated_at="now")),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "change"), BREAKS.values(), ids=BREAKS)
def test_broken_object_is_named(kind: str, change: Callable[[dict[str, Any]], object]):
    found = copy.deepcopy(objects())
    broken = next(each for each in found if each["type"] == kind)
    change(broken)

    assert faults(found)


def test_two_objects_of_one_id_are_named():
    found = objects()

    assert faults([*found, found[1]])
