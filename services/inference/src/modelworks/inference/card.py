"""What a repository says to inference: `modelworks.yaml`, or the mapping below `modelworks:` in its card's front matter.

Only what is read is parsed, and aliases are refused: these files come from
strangers, may be long, and YAML can be made to explode.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from modelworks.kit.errors import InvalidInput

CARD = "README.md"
MANIFEST = "modelworks.yaml"
"""Goes before the card. Other services read their own parts of both."""

_CHARACTERS_MAX = 16 * 1024
_DEPTH_MAX = 32
_TOP_LEVEL_KEY = re.compile(r"^([A-Za-z_][\w-]*)\s*:(?=\s|$)")


def read_wishes(files: Mapping[str, bytes]) -> Mapping[str, str]:
    """The scalars of the mapping, as text; empty when the repository says nothing.

    Args:
        files: `modelworks.yaml` and `README.md`, those that exist.

    Raises:
        InvalidInput: it is not YAML, or not a mapping.
    """
    if MANIFEST in files:
        return _scalars(_parse(_text(files[MANIFEST]), MANIFEST), MANIFEST)
    front = _select(_text(files.get(CARD, b"")))
    if not front:
        return {}
    where = f"{CARD}: modelworks"
    given = _parse(front, where)
    return _scalars(given["modelworks"] if isinstance(given, dict) else given, where)


def _text(source: bytes) -> str:
    return source.decode("utf-8", "replace").replace("\r\n", "\n")


def _select(text: str) -> str:
    """The lines of the front matter that belong to `modelworks:`."""
    lines = text.split("\n")
    if lines[0].strip() != "---":
        return ""
    kept: list[str] = []
    keep = False
    for line in lines[1:]:
        if line.rstrip() == "---":
            return "\n".join(kept)
        key = _TOP_LEVEL_KEY.match(line)
        if key:
            keep = key.group(1) == "modelworks"
        if keep:
            kept.append(line)
    # Without its end it is no front matter.
    return ""


def _parse(text: str, where: str) -> Any:
    if len(text) > _CHARACTERS_MAX:
        raise InvalidInput(f"{where} has over {_CHARACTERS_MAX} characters")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise InvalidInput(f"{where} uses aliases (*name), which are not read")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEPTH_MAX:
                raise InvalidInput(f"{where} is nested deeper than {_DEPTH_MAX}")
        return yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidInput(f"{where} is not YAML: {str(error)[:300]}") from error


def _scalars(found: Any, where: str) -> Mapping[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidInput(f"{where} must be a mapping, as 'model: model.onnx'")
    return {str(name): str(value) for name, value in found.items() if isinstance(value, (str, int, float))}
