"""Values that several events carry."""

from __future__ import annotations

from typing import Annotated

from modelworks.events.event import StrictValue
from pydantic import Field

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""Lower-case hexadecimal SHA-256 digest."""

Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
"""Commit id: 40 lower-case hexadecimal digits."""

RepositoryName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")]
"""`namespace/name`."""

RefName = Annotated[str, Field(min_length=1, max_length=200)]
"""Branch, tag or commit id; may hold slashes."""

Identifier = Annotated[str, Field(min_length=1, max_length=200)]
"""Opaque id of a job, worker or client."""


class BlobRef(StrictValue):
    """Bytes that travel beside the event, never inside it."""

    uri: Annotated[str, Field(min_length=1, max_length=2000)]
    """Where to read them: a path on the suite's own door (`/api/v1/...`), or an absolute URL."""
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]


class Failure(StrictValue):
    """Why something did not work, in words a person can act on."""

    code: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
    message: Annotated[str, Field(max_length=2000)]
