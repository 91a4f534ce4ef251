"""The ring of keys in the document store, sealed with AES-256-GCM under the master key.

In the documents and not in the object store, because there a rotation and its
event are one write, and two replicas that rotate at once are told apart by the
document's version.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from joserfc.jwk import ECKey
from modelworks.auth.keyring import KeyRing, SigningKey
from modelworks.events import Event
from modelworks.kit.errors import InvalidInput
from modelworks.stores import Field, FieldType, Schema
from modelworks.stores.outbox import Outbox

SCHEMA = Schema("auth-keys", (Field("current", FieldType.KEYWORD),))
_ID = "ring"
_PURPOSE = b"modelworks auth keyring v1"
"""Separates this use of the master key from any other, and binds the sealed text to it."""
_NONCE_BYTES = 12


def generate_key(now: datetime) -> SigningKey:
    """A new key, named by its thumbprint."""
    key = ECKey.generate_key("P-256")
    return SigningKey(id=key.thumbprint(), private=_strings(key.as_dict(private=True)), created_at=now)


class SealedKeyRings:
    """See `ports.KeyRings`."""

    def __init__(self, outbox: Outbox, *, master_key: str) -> None:
        self._outbox = outbox
        derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(master_key.encode())
        self._cipher = AESGCM(derived)

    async def load(self) -> tuple[KeyRing, str] | None:
        found = await self._outbox.get(_ID)
        if found is None:
            return None
        return self._open(str(found.state["sealed"])), found.version

    async def save(self, ring: KeyRing, events: Sequence[Event], *, expected: str | None, actor: str) -> str:
        state = {
            "sealed": self._seal(ring),
            "current": ring.current.id,
            "published": [key.id for key in ring.published],
        }
        return (await self._outbox.save(_ID, state, events, expected=expected, actor=actor)).version

    def _seal(self, ring: KeyRing) -> str:
        nonce = secrets.token_bytes(_NONCE_BYTES)  # a handful of seals a year: far from a collision
        keys = {"current": _state(ring.current), "successor": _state(ring.successor)}
        previous = [_state(key) for key in ring.previous]
        plain = json.dumps({**keys, "previous": previous, "together": ring.together}).encode()
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, plain, _PURPOSE)).decode()

    def _open(self, sealed: str) -> KeyRing:
        raw = base64.b64decode(sealed)
        try:
            plain = json.loads(self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _PURPOSE))
        except InvalidTag as error:
            raise InvalidInput(
                "the signing keys cannot be opened: AUTH_MASTER_KEY is not the one they were sealed with, or they were"
                f" altered. Give that key, or delete document {SCHEMA.collection}/{_ID} to begin anew"
                " (all tokens become invalid)"
            ) from error
        return KeyRing(
            current=_key(plain["current"]),
            successor=_key(plain["successor"]),
            previous=tuple(_key(state) for state in plain["previous"]),
            together=plain["together"],
        )


def _state(key: SigningKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "private": dict(key.private),
        "created_at": key.created_at.isoformat(),
        "signs_from": key.signs_from and key.signs_from.isoformat(),
        "stopped_at": key.stopped_at and key.stopped_at.isoformat(),
    }


def _key(state: Mapping[str, Any]) -> SigningKey:
    signs_from, stopped_at = state["signs_from"], state["stopped_at"]
    return SigningKey(
        id=state["id"],
        private=state["private"],
        created_at=datetime.fromisoformat(state["created_at"]),
        signs_from=signs_from and datetime.fromisoformat(signs_from),
        stopped_at=stopped_at and datetime.fromisoformat(stopped_at),
    )


def _strings(jwk: Mapping[str, Any]) -> dict[str, str]:
    return {name: jwk[name] for name in ("kty", "crv", "x", "y", "d")}
