"""Folders on the way to the registry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelworks.kit.errors import InvalidInput

_SKIPPED = frozenset({".git", ".hg", ".DS_Store", "__pycache__", ".ipynb_checkpoints"})


def files_of(folder: Path) -> Mapping[str, Path]:
    """The files of a folder by their path in the repository, in path order.

    Raises:
        InvalidInput: the folder is empty, or holds a link that leads out of it.
    """
    root = folder.resolve()
    files: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if any(part in _SKIPPED for part in relative.parts) or not path.is_file():
            continue
        if not path.resolve().is_relative_to(root):
            raise InvalidInput(f"{relative} is a link that leads out of {folder}: copy the file, or remove the link")
        files[relative.as_posix()] = path
    if not files:
        raise InvalidInput(f"{folder} holds no files to push")
    return files


def read_recipe(path: Path) -> Mapping[str, Any]:
    """A recipe file, YAML or JSON; its content is checked by the optimizer.

    Raises:
        InvalidInput: it is neither.
    """
    text = path.read_text("utf-8")
    try:
        if path.suffix == ".json":
            recipe = json.loads(text)
        else:
            import yaml

            recipe = yaml.safe_load(text)
    except ValueError as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    except Exception as error:  # yaml.YAMLError is not a ValueError
        raise InvalidInput(f"{path} is not YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise InvalidInput(f"{path} holds no recipe: write a mapping with at least 'pass'")
    return recipe


def sha256_of(path: Path) -> str:
    """Digest of a file, in hexadecimal; memory does not grow with the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
