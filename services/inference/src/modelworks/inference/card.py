"""What a model's card (README.md) says to inference: the mapping below `modelworks:` in its YAML front matter.

Only that key's lines are parsed, and aliases are refused: cards come from
strangers, may be long, and YAML can be made to explode.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml
from modelworks.kit.errors import InvalidInput

_CHARACTERS_MAX = 4 * 1024
_TOP_LEVEL_KEY = re.compile(r"^([A-Za-z_][\w-]*)\s*:(?=\s|$)")


def read_card(source: bytes) -> Mapping[str, str]:
    """The scalars, as text; empty when the card has none.

    Raises:
        InvalidInput: the mapping is not YAML, or not a mapping of names to scalars.
    """
    text = source.decode("utf-8", "replace").replace("\r\n", "\n")
    selected = _select(text)
    if not selected:
        return {}
    if len(selected) > _CHARACTERS_MAX:
        raise InvalidInput(f"'modelworks:' in the card has over {_CHARACTERS_MAX} characters")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(selected, Loader=yaml.CSafeLoader)):
            raise InvalidInput("'modelworks:' in the card uses aliases (*name), which are not read")
        found = yaml.load(selected, Loader=yaml.CSafeLoader)["modelworks"]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInput(f"'modelworks:' in the card is not YAML: {str(error)[:300]}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidInput("'modelworks:' in the card must be a mapping, as 'modelworks: {model: model.onnx}'")
    return {str(name): str(value) for name, value in found.items() if isinstance(value, (str, int, float))}


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
