"""Who is asking, as a verified access token says it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """The subject of a token that was verified."""

    id: str
    """The token's `sub`; for client credentials, the client id."""
    roles: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    token_id: str = ""
    """The token's `jti`."""


ANONYMOUS = Principal(id="anonymous")
