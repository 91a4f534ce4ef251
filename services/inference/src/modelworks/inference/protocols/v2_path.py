"""Paths of the V2 protocol below `/oip/v2/models/`. A model's name holds one slash, a version may hold more."""

from __future__ import annotations

import re
from dataclasses import dataclass

from modelworks.kit.errors import NotFound

_ACTIONS = frozenset({"ready", "config", "stats", "infer", "generate", "generate_stream"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names."""

    model: str
    version: str = ""
    """A commit, a prefix of one, or a ref; empty: what is deployed."""
    action: str = ""
    """Empty: the metadata."""


def parse_target(path: str) -> Target:
    """Read `ns/name[@ref][/versions/{v}][/action]`, from the right: a version may hold slashes.

    Raises:
        NotFound: it names no model.
    """
    rest, action = path, ""
    head, _, last = path.rpartition("/")
    # `ns/ready` alone is a model that is called so.
    if last in _ACTIONS and head.count("/") >= 1:
        rest, action = head, last
    elif rest.endswith("/trace/setting"):
        rest, action = rest.removesuffix("/trace/setting"), "trace/setting"
    name, marker, version = rest.partition("@")
    if not marker:
        namespace, _, tail = rest.partition("/")
        name, marker, version = tail.partition("/versions/")
        name = f"{namespace}/{name}"
    if not _NAME.fullmatch(name) or (marker and not version):
        raise NotFound(f"no such path: {path!r} names no model; write namespace/name, as in models/acme/digits/infer")
    return Target(name, version, action)
