"""What a repository's README.md says of it: the fields of its YAML front matter that search can filter by.

Only the few keys that are read are parsed, each found by its line: a card may
carry hundreds of kilobytes of evaluation results, and YAML is slow and can be
made to explode. Aliases are refused for that reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from modelworks.registry.domain import Card

CARD_PATH = "README.md"
_TEXT_CHARACTERS_MAX = 64 * 1024
_YAML_CHARACTERS_MAX = 16 * 1024
_TAGS_MAX = 100
_VALUE_CHARACTERS_MAX = 100
# Hugging Face's names come first: cards that exist use them.
_LIBRARY, _TASK, _LICENSE = ("library_name", "library"), ("pipeline_tag", "task"), ("license", "licence")
_READ = frozenset({*_LIBRARY, *_TASK, *_LICENSE, "tags"})
_TOP_LEVEL_KEY = re.compile(r"^([A-Za-z_][\w-]*)\s*:(?=\s|$)")


def read_card(source: bytes, *, sha256: str) -> Card:
    """The card of a README.md (its first bytes, if it is long). Never raises: a broken card is one with an `error`."""
    text = source.decode("utf-8", errors="replace").replace("\r\n", "\n")
    front, prose = _split(text)
    prose = prose.strip()[:_TEXT_CHARACTERS_MAX]
    if front is None:
        return Card(sha256=sha256, text=prose)
    selected = _select(front)
    if len(selected) > _YAML_CHARACTERS_MAX:
        return Card(
            sha256=sha256,
            text=prose,
            error=f"tags, library, task and license have over {_YAML_CHARACTERS_MAX} characters",
        )
    try:
        fields = _parse(selected)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return Card(sha256=sha256, text=prose, error=f"front matter is not YAML: {str(error)[:300]}")
    return Card(
        sha256=sha256,
        text=prose,
        tags=_texts(fields.get("tags"))[:_TAGS_MAX],
        library=_first(fields, _LIBRARY),
        task=_first(fields, _TASK),
        license=_first(fields, _LICENSE),
    )


def _split(text: str) -> tuple[str | None, str]:
    """Front matter without its `---` lines (None when there is none), and what follows."""
    if not text.startswith("---\n"):
        return None, text
    end = re.search(r"^---[ \t]*$", text[4:], re.MULTILINE)
    if end is None:
        return None, text
    return text[4 : 4 + end.start()], text[4 + end.end() :]


def _select(front: str) -> str:
    """The lines of the top-level keys that are read."""
    kept: list[str] = []
    keep = False
    for line in front.splitlines():
        key = _TOP_LEVEL_KEY.match(line)
        if key:
            keep = key.group(1) in _READ
        if keep:
            kept.append(line)
    return "\n".join(kept)


def _parse(text: str) -> Mapping[str, Any]:
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases (*name) are not read")
    value = yaml.load(text, Loader=yaml.CSafeLoader)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("it is not a mapping")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(item[:_VALUE_CHARACTERS_MAX] for item in items if isinstance(item, str) and item))


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((texts[0] for name in names if (texts := _texts(fields.get(name)))), None)
