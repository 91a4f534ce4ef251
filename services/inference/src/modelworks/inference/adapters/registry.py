"""The registry as a source of models, through the suite's client."""

from __future__ import annotations

from pathlib import Path

from modelworks.client import AsyncModelworks
from modelworks.inference.domain import Artifact
from modelworks.inference.ports import Ownership, SourceRevision
from modelworks.kit.errors import Forbidden, Unauthenticated, Unavailable


class RegistrySource:
    """ModelSource over HTTP with the service's own token."""

    def __init__(self, client: AsyncModelworks) -> None:
        self._client = client

    async def ownership(self, model: str) -> Ownership:
        """See ModelSource."""
        try:
            repository = await self._client.repository(model)
        except (Unauthenticated, Forbidden) as error:
            raise _refused(error) from error
        return Ownership(private=bool(repository.get("private")), owner=str(repository.get("owner", "")))

    async def resolve(self, model: str, ref: str) -> SourceRevision:
        """See ModelSource."""
        try:
            found = await self._client.revision(model, ref)
        except (Unauthenticated, Forbidden) as error:
            raise _refused(error) from error
        files = {entry.path: (entry.sha256, entry.size_bytes) for entry in found.tree}
        return SourceRevision(model=model, revision=found.revision, files=files)

    async def read(self, model: str, revision: str, path: str, *, bytes_max: int) -> bytes:
        """See ModelSource."""
        try:
            return await self._client.read_file(model, path, revision, bytes_max=bytes_max)
        except (Unauthenticated, Forbidden) as error:
            raise _refused(error) from error

    async def download(self, model: str, revision: str, artifact: Artifact, into: Path) -> None:
        """See ModelSource."""
        try:
            await self._client.download(model, artifact.path, revision, into, sha256=artifact.sha256)
        except (Unauthenticated, Forbidden) as error:
            raise _refused(error) from error


def _refused(error: Exception) -> Unavailable:
    # Our own credentials, not the caller's: the caller must not be told to log in.
    return Unavailable(f"the registry refused this service's own token: {error}")
