"""Inputs by reference: a V2 request body that lies in a repository of this suite, and nowhere else.

An event must not make this service fetch what its sender could not: no foreign
address is ever opened, and of the suite's own files only those of public
repositories and of the sender's own.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import parse_qs, unquote, urlsplit

from modelworks.events import BlobRef
from modelworks.inference.engine.v2 import Limits, header_length
from modelworks.inference.ports import ModelSource
from modelworks.kit.errors import InvalidInput, NotFound, TooLarge

_FILE = re.compile(
    r"/api/v1/repositories/([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})/files/(.{1,1000})", re.ASCII
)


class InputReferences:
    """Reads what a BlobRef points to."""

    def __init__(self, source: ModelSource, limits: Limits) -> None:
        self._source = source
        self._limits = limits

    async def read(self, reference: BlobRef, actor: str) -> tuple[bytes, int | None]:
        """The body with the reference's digest, and the length of its JSON header.

        Raises:
            InvalidInput: the address is not one of a repository's file, or the bytes are others.
            TooLarge: it is above the limit of a body.
            NotFound: no such file, or none that the actor may read.
        """
        parts = urlsplit(reference.uri)
        match = _FILE.fullmatch(parts.path)
        if parts.scheme or parts.netloc or parts.fragment or match is None:
            raise InvalidInput(
                f"inputs_ref {reference.uri[:200]!r} is not read: give the path of a repository's file on this suite, "
                "as /api/v1/repositories/NAMESPACE/NAME/files/PATH?ref=REF"
            )
        if reference.size_bytes > self._limits.inflated_bytes_max:
            raise TooLarge(
                f"inputs_ref has {reference.size_bytes} bytes, at most {self._limits.inflated_bytes_max} allowed"
            )
        repository, path = match.group(1), unquote(match.group(2))
        ref = parse_qs(parts.query).get("ref", ["main"])[0]
        ownership = await self._source.ownership(repository)
        if ownership.private and ownership.owner != actor:
            raise NotFound(f"no repository {repository!r} that {actor} may read")
        revision = (await self._source.resolve(repository, ref)).revision
        body = await self._source.read(repository, revision, path, bytes_max=reference.size_bytes)
        if len(body) != reference.size_bytes or hashlib.sha256(body).hexdigest() != reference.sha256:
            raise InvalidInput(f"inputs_ref {reference.uri[:200]!r} does not have the sha256 and size that were given")
        return body, header_length(body, self._limits)
