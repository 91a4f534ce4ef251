"""Writes `.env` for docker compose: a random secret for every name that `docker-compose.yml` requires.

Run by `make env` with the system's Python, so only the standard library is used. An existing file is kept: only
names that it lacks are added. Names are printed, values never.
"""

# ruff: noqa: T201 - a command speaks on its standard output

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ORIGIN = "modelworks-audit"
"""Name of the audit log; part of its key and of every checkpoint."""

_HEADER = """\
# Secrets of this installation, made by `make env`. Keep a copy apart: without AUTH_MASTER_KEY the signing keys of
# auth cannot be read, without AUDIT_SIGNING_KEY the audit log cannot be continued.
# Not secret and optional, with their defaults:
#   MODELWORKS_PUBLIC_URL=http://127.0.0.1:8080   the address that clients use; issuer of all tokens
#   MODELWORKS_BIND=127.0.0.1                     where the door and Dashboards listen
#   MODELWORKS_PORT=8080
#   DASHBOARDS_PORT=5601
#   MODELWORKS_SUBNET=172.31.250.0/24             the suite's own network
#   MODELWORKS_VERSION=0.1.0                      tag of the images
"""
_NAME = re.compile(r"^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$")


def secret() -> str:
    """43 characters that need no quoting in a `.env` file, JSON or a URL (256 random bits)."""
    return secrets.token_urlsafe(32)


def password() -> str:
    """As `secret`, and always with the four kinds of characters that OpenSearch asks of a password."""
    return f"Mw-1{secrets.token_urlsafe(32)}"


def signing_key() -> str:
    """An Ed25519 key in the signed-note form `PRIVATE+KEY+name+hash+base64(1, seed)`."""
    return signer_text(ORIGIN, secrets.token_bytes(32))


def signer_text(name: str, seed: bytes) -> str:
    """The signed-note form of a seed of 32 bytes; the hash is over name and public key (C2SP signed-note)."""
    algorithm = b"\x01"
    digest = hashlib.sha256(name.encode() + b"\n" + algorithm + ed25519_public(seed)).digest()[:4]
    return f"PRIVATE+KEY+{name}+{digest.hex()}+{base64.b64encode(algorithm + seed).decode()}"


VARIABLES: Mapping[str, Callable[[], str]] = {
    "AUTH_MASTER_KEY": secret,
    "AUTH_ADMIN_CLIENT_SECRET": secret,
    "OPTIMIZER_CLIENT_SECRET": secret,
    "INFERENCE_CLIENT_SECRET": secret,
    "AUDIT_SIGNING_KEY": signing_key,
    "REDIS_PASSWORD": secret,
    "S3_ACCESS_KEY": lambda: f"modelworks-{secrets.token_hex(4)}",
    "S3_SECRET_KEY": secret,
    "OPENSEARCH_ADMIN_PASSWORD": password,
    "OPENSEARCH_SERVICES_PASSWORD": password,
    "OPENSEARCH_DASHBOARDS_PASSWORD": password,
    "DASHBOARDS_COOKIE_PASSWORD": secret,
}
"""Every name that `docker-compose.yml` requires, and what makes its value."""


def ed25519_public(seed: bytes) -> bytes:
    """The public key of a seed, by RFC 8032 section 5.1.5.

    The standard library has no Ed25519. Python's integers take a time that depends on the key, which is harmless
    here: it happens once, on the machine that keeps the key.
    """
    prime = 2**255 - 19
    d = -121665 * pow(121666, -1, prime) % prime

    def add(p: tuple[int, int], q: tuple[int, int]) -> tuple[int, int]:
        (x1, y1), (x2, y2) = p, q
        product = d * x1 * x2 * y1 * y2 % prime
        x3 = (x1 * y2 + x2 * y1) * pow(1 + product, -1, prime) % prime
        y3 = (y1 * y2 + x1 * x2) * pow(1 - product, -1, prime) % prime
        return x3, y3

    scalar = int.from_bytes(hashlib.sha512(seed).digest()[:32], "little")
    scalar = (scalar & ((1 << 254) - 8)) | (1 << 254)
    y = 4 * pow(5, -1, prime) % prime
    base = (15112221349535400772501151409588531511454012693041857206046113283949847762202, y)
    point = (0, 1)
    while scalar:
        if scalar & 1:
            point = add(point, base)
        base = add(base, base)
        scalar >>= 1
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def complete(text: str) -> tuple[str, list[str]]:
    """A `.env` text with every variable set, and the names that were added. What is set stays as it is."""
    lines = text.splitlines()
    present: dict[str, int] = {}
    for number, line in enumerate(lines):
        if (match := _NAME.match(line)) and match.group(1) in VARIABLES:
            present[match.group(1)] = number
    added = []
    for name, make in VARIABLES.items():
        at = present.get(name)
        if at is None:
            lines.append(f"{name}={make()}")
        elif not _NAME.match(lines[at]).group(2).strip().strip("\"'"):  # type: ignore[union-attr]
            lines[at] = f"{name}={make()}"
        else:
            continue
        added.append(name)
    return "\n".join(lines) + "\n", added


def write_private(path: Path, text: str) -> None:
    """Write for the owner's eyes only, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make env", description=__doc__)
    default = Path(__file__).resolve().parent.parent / ".env"
    parser.add_argument("path", nargs="?", type=Path, default=default, help="the file; default: .env at the root")
    path: Path = parser.parse_args(arguments).path
    try:
        existing = path.read_text("utf-8") if path.exists() else _HEADER
        text, added = complete(existing)
        if added or path.stat().st_mode & 0o077:
            write_private(path, text)
    except (OSError, UnicodeDecodeError) as error:
        print(f"{path} cannot be read or written: {error}", file=sys.stderr)
        return 1
    for name in added:
        print(f"made  {name}")
    print(f"{path}: {len(added)} made, {len(VARIABLES) - len(added)} kept; readable by you only (mode 0600)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
