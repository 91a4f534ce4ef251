"""YAML from strangers: small, plain and without aliases, which can make a few lines stand for gigabytes."""

from __future__ import annotations

from typing import Any

import yaml
from modelworks.kit.errors import InvalidInput


class _Plain(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.get_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", mark)
        return super().compose_node(parent, index)


def parse_yaml(text: str, *, where: str) -> dict[str, Any]:
    """A mapping from YAML text.

    Raises:
        InvalidInput: not YAML, not a mapping, or it uses aliases; the message names `where` and the line.
    """
    try:
        value = yaml.load(text, Loader=_Plain)  # noqa: S506 - a SafeLoader, narrowed
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InvalidInput(f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InvalidInput(f"{where}: a mapping of names to values is wanted, not {type(value).__name__}")
    return value
