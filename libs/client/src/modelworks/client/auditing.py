"""Checks the audit log from outside, and remembers what it saw.

A log that is rewritten can prove itself to whoever comes for the first time.
Who keeps its key and its last head notices: the next head must be a
continuation.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelworks.client.api import AsyncModelworks
from modelworks.kit.errors import InvalidInput, ModelworksError, NotFound

_ATTEMPTS = 5


class AuditDamaged(ModelworksError):
    """The log does not prove what it should."""

    code = "audit-damaged"


def state_file(url: str) -> Path:
    """Where the key and the last head of the suite at `url` are remembered."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "modelworks" / "audit" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.json"


def verify_hits(document: Mapping[str, Any], key: str) -> int:
    """Check the proofs of a search's answer; returns the number of entries.

    Raises:
        AuditDamaged: one does not hold.
    """
    verify = _verifier()
    try:
        return int(verify.verify_search_answer(document, key))
    except verify.VerificationError as error:
        raise AuditDamaged(f"the answer does not prove itself: {error}") from error


async def verify_log(client: AsyncModelworks, *, key: str = "", state: Path) -> dict[str, Any]:
    """Read the whole log through its tiles and check it; remember its key and head in `state`.

    Args:
        key: the public key it must have; empty: the remembered one, or at the first time the one it serves.

    Raises:
        AuditDamaged: an entry, a tile, the head or its continuation does not hold.
        InvalidInput: the log has another key than the one that is known.
    """
    known = _recall(state)
    served = (await client.text("/api/v1/audit/key")).strip()
    wanted = key.strip() or known.get("key", served)
    if wanted != served:
        raise InvalidInput(
            f"the suite serves key {served!r}, not {wanted!r}: this is another log, or a forgery ({state})"
        )
    verify = _verifier()

    async def fetch(path: str) -> bytes:
        async with client.http.stream("GET", f"/api/v1/audit/{path}") as answer:
            return await answer.aread()

    for attempt in range(_ATTEMPTS):
        try:
            report = await verify.verify_log(fetch, served, earlier=known.get("checkpoint"))
            break
        except verify.VerificationError as error:
            raise AuditDamaged(f"the log does not prove itself: {error}") from error
        except NotFound:
            # It grew meanwhile, and a partial tile of the head we hold was replaced by a fuller one.
            if attempt == _ATTEMPTS - 1:
                raise
            await asyncio.sleep(0.2)
    _remember(state, {"key": served, "checkpoint": report.checkpoint, "size": report.size})
    return {"origin": report.origin, "size": report.size, "root": report.root, "grown_from": known.get("size")}


def _recall(state: Path) -> dict[str, Any]:
    try:
        known = json.loads(state.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{state} cannot be read ({error}): mend or remove it; removed, the next head is trusted"
        ) from error
    if not isinstance(known, dict):
        raise InvalidInput(f"{state} is not what this command writes: mend or remove it")
    return known


def _remember(state: Path, known: Mapping[str, Any]) -> None:
    try:
        state.parent.mkdir(parents=True, exist_ok=True)
        temporary = state.with_name(f".{state.name}.{os.getpid()}")
        temporary.write_text(json.dumps(known, indent=2) + "\n", "utf-8")
        temporary.replace(state)
    except OSError as error:
        raise InvalidInput(f"{state} cannot be written ({error.strerror}): name another with --state") from error


def _verifier() -> Any:
    try:
        from modelworks.audit import verify
    except ImportError:
        raise InvalidInput(
            "the verifier is part of the audit service: install modelworks-audit beside this command"
        ) from None
    return verify
