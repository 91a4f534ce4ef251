"""Where the contracts are, for the tests that hold the code to them."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

CONTRACTS = Path(__file__).parents[2] / "contracts"


def _load(path: Path) -> ModuleType:
    # `contracts/` is language neutral and no package; its one module is loaded by path.
    spec = importlib.util.spec_from_file_location("contracts_compatibility", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


compatibility: Any = _load(CONTRACTS / "compatibility.py")


@cache
def schema_of(topic: str) -> dict[str, Any]:
    """The hand-written schema of a topic."""
    schema: dict[str, Any] = json.loads((CONTRACTS / "events" / topic / "schema.json").read_text("utf-8"))
    return schema
