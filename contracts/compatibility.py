"""May this contract follow that one? Inside a major version only a new optional property is allowed.

Anything else - removed, renamed, retyped, other bounds, required in either
direction, a new enum value, another default - breaks somebody, so it is a new
major, which is a new topic; the old topic stays until a release has published
both. Words (titles, descriptions, examples) may change freely.

`python contracts/compatibility.py` compares the working tree with the last git tag.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

WORDS = frozenset({"$schema", "$id", "$comment", "title", "description", "examples", "deprecated"})
Schema = Mapping[str, Any]


def rules(schema: Any, root: Schema | None = None) -> Any:
    """What a schema demands: local references put in their place, words left out, sets in one order."""
    root = schema if root is None else root
    if isinstance(schema, list):
        return [rules(item, root) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    if "$ref" in schema:
        target: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        schema = {**target, **{name: value for name, value in schema.items() if name != "$ref"}}
    found: dict[str, Any] = {}
    for name, value in schema.items():
        if name in WORDS or name == "$defs":
            continue
        if name == "properties":
            found[name] = {each: rules(inner, root) for each, inner in value.items()}
        elif name in ("required", "enum"):
            found[name] = sorted(value, key=repr)
        else:
            found[name] = rules(value, root)
    return found


def breaking(old: Schema, new: Schema) -> list[str]:
    """What keeps `new` from following `old` inside a major; empty when nothing does."""
    return list(_differences(rules(old), rules(new), ""))


def _differences(old: Any, new: Any, where: str) -> Iterator[str]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new:
            yield f"{where or '/'}: {json.dumps(old)} became {json.dumps(new)}"
        return
    for name in sorted(old.keys() | new.keys()):
        path = f"{where}/{name}"
        if name == "properties":
            # A new property is allowed; whether it is optional is seen in `required`.
            before, after = old.get(name, {}), new.get(name, {})
            for gone in sorted(before.keys() - after.keys()):
                yield f"{path}/{gone}: removed"
            for kept in sorted(before.keys() & after.keys()):
                yield from _differences(before[kept], after[kept], f"{path}/{kept}")
        elif name == "required":
            before_set, after_set = set(old.get(name, ())), set(new.get(name, ()))
            for each in sorted(after_set - before_set):
                yield f"{where}/properties/{each}: became required"
            for each in sorted(before_set - after_set):
                yield f"{where}/properties/{each}: is no longer required"
        elif name not in old or name not in new:
            yield f"{path}: {'added' if name in new else 'removed'}"
        else:
            yield from _differences(old[name], new[name], path)


def breaking_set(old: Mapping[str, Schema], new: Mapping[str, Schema]) -> list[str]:
    """The same over all topics: a topic may go only when the older set had its next major beside it."""
    found: list[str] = []
    for topic, schema in sorted(old.items()):
        if topic in new:
            found += [f"{topic} {line}" for line in breaking(schema, new[topic])]
        elif not _has_newer_major(topic, old):
            found.append(f"{topic}: removed, and no newer major was published beside it in that release")
    return found


def _has_newer_major(topic: str, topics: Mapping[str, Schema]) -> bool:
    stem, major = _split(topic)
    return any(other_stem == stem and other > major for other_stem, other in map(_split, topics))


def _split(topic: str) -> tuple[str, int]:
    match = re.fullmatch(r"(.+)\.v([0-9]+)", topic)
    if match is None:
        raise ValueError(f"topic {topic!r} does not end in its major version: name it '<service>.<noun>-<verb>.v1'")
    return match[1], int(match[2])


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)  # noqa: S603, S607
    return done.stdout if done.returncode == 0 else None


def main() -> int:
    """Compare with the last tag; 1 when something breaks."""
    folder = Path(__file__).parent / "events"
    new = {path.parent.name: json.loads(path.read_text("utf-8")) for path in folder.glob("*/schema.json")}
    tag = (_git("describe", "--tags", "--abbrev=0") or "").strip()
    if not tag:
        print("contracts: no release tag yet, nothing to be compatible with")  # noqa: T201
        return 0
    names = (_git("ls-tree", "-r", "--name-only", "--full-name", tag, "--", "events") or "").splitlines()
    old = {
        Path(name).parent.name: json.loads(_git("show", f"{tag}:{name}") or "{}")
        for name in names
        if name.endswith("/schema.json")
    }
    problems = breaking_set(old, new)
    for problem in problems:
        print(f"contracts: {problem}", file=sys.stderr)  # noqa: T201
    print(f"contracts: {len(new)} topics against {tag}: {'breaking' if problems else 'compatible'}")  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
