"""Signed notes and checkpoints, by C2SP `signed-note` and `tlog-checkpoint`: who says that the tree has this root.

A `SignedCheckpoint` can only be had by verifying a note or by signing one, and
every check of a proof asks for one: a proof alone proves nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from modelworks.audit.tlog.hashes import EMPTY_ROOT, HASH_BYTES

_ALGORITHM = b"\x01"
"""Ed25519 in signed notes."""
_NAME = re.compile(r"[^\s+\x00-\x1f]{1,200}")
_NOTE_BYTES_MAX = 16 * 1024
_SIGNATURES_MAX = 100


class VerificationError(Exception):
    """A key, note, checkpoint or proof does not hold; the text says what and where."""


def _key_hash(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ALGORITHM + public).digest()[:4]


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise VerificationError(f"{name!r} is no key name: 1 to 200 characters, no space, no '+'")
    return name


def _split_key(text: str, kind: str) -> tuple[str, bytes]:
    """Name and 32 key bytes of `name+hash+base64(algorithm, key)`; the hash is checked by the caller."""
    parts = text.strip().split("+", 2)
    if len(parts) != 3:
        raise VerificationError(f"this is no {kind}: it should read name+hash+key")
    name, digest, encoded = parts
    try:
        raw = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise VerificationError(f"the {kind} of {name!r} is cut or altered: its last part is not base64") from error
    if not re.fullmatch(r"[0-9a-f]{8}", digest) or len(raw) != 33 or raw[:1] != _ALGORITHM:
        raise VerificationError(f"the {kind} of {name!r} is no Ed25519 key of signed notes")
    return _check_name(name), raw[1:] + bytes.fromhex(digest)


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key with the name it signs under."""

    name: str
    public: bytes

    @classmethod
    def parse(cls, vkey: str) -> Verifier:
        """From `name+hash+key`.

        Raises:
            VerificationError: it is no verifier key, or its hash does not fit.
        """
        name, rest = _split_key(vkey, "verifier key")
        public, digest = rest[:32], rest[32:]
        if _key_hash(name, public) != digest:
            raise VerificationError(f"the verifier key of {name!r} is altered: its hash does not fit")
        return cls(name, public)

    @property
    def vkey(self) -> str:
        """The text form, to be pinned by whoever verifies."""
        digest = _key_hash(self.name, self.public).hex()
        return f"{self.name}+{digest}+{base64.b64encode(_ALGORITHM + self.public).decode()}"

    def open(self, note: str) -> str:
        """The note's text, when this key signed it.

        Raises:
            VerificationError: the note is malformed, or carries no valid signature of this key.
        """
        text, lines = _split_note(note)
        wanted = _key_hash(self.name, self.public)
        for line in lines:
            name, _, encoded = line.removeprefix("— ").partition(" ")
            try:
                raw = base64.b64decode(encoded, validate=True)
            except binascii.Error as error:
                raise VerificationError(f"the signature line of {name!r} is not base64") from error
            if name != self.name or raw[:4] != wanted:
                continue  # another key's signature, for example a witness's
            try:
                Ed25519PublicKey.from_public_bytes(self.public).verify(raw[4:], text.encode())
            except InvalidSignature as error:
                raise VerificationError(
                    f"the note is not what {name!r} signed: text or signature is altered"
                ) from error
            return text
        raise VerificationError(f"the note is not signed by {self.name!r} with the key {wanted.hex()}")


def _split_note(note: str) -> tuple[str, list[str]]:
    if len(note) > _NOTE_BYTES_MAX:
        raise VerificationError(f"a note has at most {_NOTE_BYTES_MAX} characters, not {len(note)}")
    at = note.rfind("\n\n")
    text, lines = note[: at + 1], note[at + 2 :].split("\n")
    if at < 0 or not note.endswith("\n") or len(lines) > _SIGNATURES_MAX + 1:
        raise VerificationError("this is no signed note: text, an empty line, then signature lines")
    lines.pop()
    if not lines or not all(line.startswith("— ") for line in lines):
        raise VerificationError("this is no signed note: it has no signature lines, or other lines among them")
    return text, lines


class Signer:
    """A private key; its text form is `PRIVATE+KEY+name+hash+key` (as Go's sumdb/note writes it)."""

    def __init__(self, skey: str) -> None:
        """
        Raises:
            VerificationError: it is no signer key. The text is never repeated in the message.
        """
        prefix = "PRIVATE+KEY+"
        if not skey.strip().startswith(prefix):
            raise VerificationError("this is no signer key: it should read PRIVATE+KEY+name+hash+key")
        name, rest = _split_key(skey.strip().removeprefix(prefix), "signer key")
        self._key = Ed25519PrivateKey.from_private_bytes(rest[:32])
        self.verifier = Verifier(name, self._key.public_key().public_bytes_raw())
        if _key_hash(name, self.verifier.public) != rest[32:]:
            raise VerificationError(f"the signer key of {name!r} is altered: its hash does not fit")

    def __repr__(self) -> str:
        return f"Signer({self.verifier.name!r})"

    @property
    def name(self) -> str:
        """What it signs as."""
        return self.verifier.name

    def sign(self, text: str) -> str:
        """A note of this text, which ends in a newline. The same text gives the same note."""
        if not text.endswith("\n"):
            raise ValueError("a note's text ends in a newline")
        raw = _key_hash(self.name, self.verifier.public) + self._key.sign(text.encode())
        return f"{text}\n— {self.name} {base64.b64encode(raw).decode()}\n"


def generate_key(name: str) -> str:
    """A new signer key in its text form.

    Raises:
        VerificationError: the name has a space or a plus sign.
    """
    _check_name(name)
    key = Ed25519PrivateKey.generate()
    digest = _key_hash(name, key.public_key().public_bytes_raw()).hex()
    encoded = base64.b64encode(_ALGORITHM + key.private_bytes_raw()).decode()
    return f"PRIVATE+KEY+{name}+{digest}+{encoded}"


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """The head of a log, as its key signed it. Made by `open_checkpoint` and `sign_checkpoint` only."""

    origin: str
    size: int
    root: bytes
    note: str
    """The signed note itself."""
    _witnessed: object

    def __post_init__(self) -> None:
        if self._witnessed is not _VERIFIED:
            raise VerificationError("a checkpoint must be opened from its signed note: use open_checkpoint")


_VERIFIED = object()


def sign_checkpoint(signer: Signer, *, size: int, root: bytes) -> SignedCheckpoint:
    """A checkpoint of a tree; the log's origin is the signer's name."""
    text = f"{signer.name}\n{size}\n{base64.b64encode(root).decode()}\n"
    return SignedCheckpoint(signer.name, size, root, signer.sign(text), _VERIFIED)


def open_checkpoint(note: str, verifier: Verifier) -> SignedCheckpoint:
    """The checkpoint in a note, when the verifier's key signed it for the log of the same name.

    Raises:
        VerificationError: not signed by that key, of another log, or malformed.
    """
    lines = verifier.open(note).split("\n")
    origin, size, root, *_ = *lines, "", "", ""
    if origin != verifier.name:
        raise VerificationError(f"the checkpoint is of log {origin!r}, not of {verifier.name!r}")
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", size):
        raise VerificationError(f"the checkpoint's size is {size!r}, not a number")
    try:
        raw = base64.b64decode(root, validate=True)
    except binascii.Error as error:
        raise VerificationError("the checkpoint's root is not base64") from error
    if len(raw) != HASH_BYTES or (int(size) == 0 and raw != EMPTY_ROOT):
        raise VerificationError(f"the checkpoint's root does not fit a tree of {size} leaves")
    return SignedCheckpoint(origin, int(size), raw, note, _VERIFIED)
