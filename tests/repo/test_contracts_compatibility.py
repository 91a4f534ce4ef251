"""Inside a major a contract may gain an optional property, and nothing else."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.repo.contracts import CONTRACTS, compatibility

Change = Callable[[dict[str, Any]], object]

BASE: dict[str, Any] = {
    "title": "Thing",
    "type": "object",
    "properties": {
        "name": {"$ref": "#/$defs/Name", "description": "Its name."},
        "size": {"type": "integer", "minimum": 0},
        "kind": {"type": "string", "enum": ["a", "b"]},
        "parts": {
            "type": "array",
            "items": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
            "maxItems": 8,
        },
        "lane": {"type": "string", "default": "standard"},
    },
    "required": ["name", "size"],
    "$defs": {"Name": {"type": "string", "pattern": "^[a-z]+$"}},
}


def _set(path: str, value: Any) -> Change:
    def change(schema: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        node = schema
        for parent in parents:
            node = node[parent]
        node[last] = value

    return change


def _drop(path: str) -> Change:
    def change(schema: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        node = schema
        for parent in parents:
            node = node[parent]
        del node[last]

    return change


ALLOWED: dict[str, Change] = {
    "nothing": lambda schema: None,
    "a new optional property": _set("properties/colour", {"type": "string"}),
    "a new optional property with a default": _set("properties/colour", {"type": "string", "default": "red"}),
    "a new optional object": _set("properties/box", {"type": "object", "properties": {}, "required": []}),
    "a new optional property in a list's items": _set("properties/parts/items/properties/note", {"type": "string"}),
    "another title": _set("title", "Something"),
    "another description": _set("properties/name/description", "What it is called."),
    "examples": _set("examples", [{"name": "x", "size": 1}]),
    "another order of required": _set("required", ["size", "name"]),
    "another order of an enum": _set("properties/kind/enum", ["b", "a"]),
    "a definition written out in place": _set("properties/name", {"type": "string", "pattern": "^[a-z]+$"}),
    "a definition nobody uses": _set("$defs/Colour", {"type": "string"}),
}

FORBIDDEN: dict[str, Change] = {
    "a property removed": _drop("properties/lane"),
    "a property renamed": lambda s: s["properties"].update(extent=s["properties"].pop("size")),
    "a property of another type": _set("properties/size/type", "number"),
    "a new required property": lambda s: (s["properties"].update(x={"type": "string"}), s["required"].append("x")),
    "a property that becomes required": _set("required", ["name", "size", "lane"]),
    "a property that is no longer required": _set("required", ["name"]),
    "no required at all": _drop("required"),
    "a new enum value": _set("properties/kind/enum", ["a", "b", "c"]),
    "an enum value removed": _set("properties/kind/enum", ["a"]),
    "a tighter bound": _set("properties/size/minimum", 1),
    "a wider bound": _drop("properties/size/minimum"),
    "a new bound": _set("properties/size/maximum", 10),
    "a longer list": _set("properties/parts/maxItems", 9),
    "another pattern": _set("$defs/Name/pattern", "^[a-z0-9]+$"),
    "another default": _set("properties/lane/default", "bulk"),
    "a default removed": _drop("properties/lane/default"),
    "a format": _set("properties/lane/format", "date-time"),
    "a property removed in a list's items": _drop("properties/parts/items/properties/path"),
    "a required property in a list's items": _set("properties/parts/items/required", []),
    "unknown properties refused": _set("additionalProperties", False),
}


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED)
def test_allowed_change_is_compatible(change: Change):
    new = copy.deepcopy(BASE)
    change(new)

    assert compatibility.breaking(BASE, new) == []


@pytest.mark.parametrize("change", FORBIDDEN.values(), ids=FORBIDDEN)
def test_forbidden_change_is_named(change: Change):
    new = copy.deepcopy(BASE)
    change(new)

    assert compatibility.breaking(BASE, new)


def test_refusal_names_the_place_and_both_values():
    new = copy.deepcopy(BASE)
    new["properties"]["size"]["minimum"] = 1

    assert compatibility.breaking(BASE, new) == ["/properties/size/minimum: 0 became 1"]


def test_new_topic_is_always_allowed():
    assert compatibility.breaking_set({"a.b-done.v1": BASE}, {"a.b-done.v1": BASE, "a.c-done.v1": BASE}) == []


def test_topic_removed_without_its_next_major_is_refused():
    found = compatibility.breaking_set({"a.b-done.v1": BASE}, {"a.b-done.v2": BASE})

    assert len(found) == 1
    assert "a.b-done.v1: removed" in found[0]


def test_topic_may_go_once_a_release_had_both_majors():
    assert compatibility.breaking_set({"a.b-done.v1": BASE, "a.b-done.v2": BASE}, {"a.b-done.v2": BASE}) == []


def _repository(folder: Path) -> Path:
    contracts = folder / "contracts"
    (contracts / "events" / "a.b-done.v1").mkdir(parents=True)
    (contracts / "compatibility.py").write_text((CONTRACTS / "compatibility.py").read_text("utf-8"), "utf-8")
    (contracts / "events" / "a.b-done.v1" / "schema.json").write_text(json.dumps(BASE), "utf-8")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run(["git", *identity, *command], cwd=folder, check=True)
    return contracts


def _run(contracts: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(contracts / "compatibility.py")], capture_output=True, text=True, check=False
    )


def test_command_says_so_when_there_is_no_tag(tmp_path: Path):
    done = _run(_repository(tmp_path))

    assert done.returncode == 0
    assert "no release tag yet" in done.stdout


def test_command_fails_when_the_working_tree_breaks_the_last_tag(tmp_path: Path):
    contracts = _repository(tmp_path)
    subprocess.run(["git", "tag", "v1"], cwd=tmp_path, check=True)
    same = _run(contracts)
    changed = {**BASE, "required": ["name"]}
    (contracts / "events" / "a.b-done.v1" / "schema.json").write_text(json.dumps(changed), "utf-8")

    broken = _run(contracts)

    assert same.returncode == 0, same.stderr
    assert "compatible" in same.stdout
    assert broken.returncode == 1
    assert "a.b-done.v1 /properties/size: is no longer required" in broken.stderr
