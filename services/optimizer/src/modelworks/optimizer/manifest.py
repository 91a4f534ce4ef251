"""What a repository says about its own optimization: `modelworks.yaml`, or `modelworks:` in its card's front matter.

```yaml
optimization:
  rules: {min_agreement: 0.995}
evaluation:
  arrays: [evaluation/inputs.npz]
  inputs:
    bytes: {kind: file-bytes, first: 1024, last: 1024, padding: 256, strip: true}
  outputs:
    target_label: classes
```
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from modelworks.kit.errors import InvalidInput
from modelworks.optimizer.measurement import OutputKind
from modelworks.optimizer.recipe import Rules
from modelworks.optimizer.yaml_text import parse_yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

MANIFEST_PATH = "modelworks.yaml"
CARD_PATH = "README.md"


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileBytes(_Closed):
    """An input made of a file's first and last bytes as numbers."""

    kind: Literal["file-bytes"]
    first: Annotated[int, Field(ge=0, le=1 << 20)] = 1024
    last: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    padding: Annotated[int, Field(ge=0, le=65_535)] = 256
    """Stands where the file has no more bytes."""
    strip: bool = False
    """White space at the outer ends is left out first."""
    block_bytes: Annotated[int, Field(ge=1, le=1 << 20)] = 4096
    """How far from each end is looked."""


class _Evaluation(_Closed):
    arrays: Annotated[tuple[str, ...], Field(max_length=16)] = ()
    """`.npz` files to evaluate on. Empty: every `evaluation/*.npz`."""
    inputs: dict[str, FileBytes] = Field(default_factory=dict, max_length=64)
    outputs: dict[str, OutputKind] = Field(default_factory=dict, max_length=64)


class _Optimization(_Closed):
    rules: Rules = Rules()


class Manifest(BaseModel):
    """A repository's wishes. Properties that concern other services are not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    optimization: _Optimization = _Optimization()
    evaluation: _Evaluation = _Evaluation()


def read_manifest(files: Mapping[str, str]) -> Manifest:
    """The manifest of a revision; `modelworks.yaml` goes before the card.

    Args:
        files: text of `modelworks.yaml` and `README.md`, those that exist.

    Raises:
        InvalidInput: the text is not YAML or a property is wrong; the message names file and property.
    """
    if MANIFEST_PATH in files:
        return _manifest(parse_yaml(files[MANIFEST_PATH], where=MANIFEST_PATH), MANIFEST_PATH)
    front = front_matter(files.get(CARD_PATH, ""))
    given = parse_yaml(front, where=CARD_PATH).get("modelworks", {}) if front else {}
    return _manifest(given, f"{CARD_PATH}: modelworks")


def front_matter(card: str) -> str:
    """The YAML between the first two `---` lines of a card; empty when there is none."""
    found = re.match(r"\A---\r?\n(.*?)^---\s*$", card, re.S | re.M)
    return found.group(1) if found else ""


def _manifest(given: Any, where: str) -> Manifest:
    try:
        return Manifest.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{where}: {path}: {first['msg']} (given: {str(first['input'])[:100]})") from error
