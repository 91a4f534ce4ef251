"""`python -m modelworks.audit` runs the service; `python -m modelworks.audit keygen [NAME]` makes a signing key."""

from __future__ import annotations

import sys

from modelworks.audit.tlog.note import Signer, VerificationError, generate_key


def keygen(name: str) -> int:
    """Print a new signing key to standard output, and its public key to standard error."""
    try:
        key = generate_key(name)
    except VerificationError as error:
        print(f"keygen: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(key)  # noqa: T201
    print(f"public key, to be pinned by those who verify: {Signer(key).verifier.vkey}", file=sys.stderr)  # noqa: T201
    return 0


def run(arguments: list[str]) -> int:
    """What the command line asks for; the exit code."""
    if arguments[:1] == ["keygen"] and len(arguments) <= 2:
        return keygen(arguments[1] if len(arguments) == 2 else "modelworks-audit")
    if arguments:
        print("usage: python -m modelworks.audit [keygen [NAME]]", file=sys.stderr)  # noqa: T201
        return 2
    from modelworks.audit.app import main

    main()
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
