"""The registry over HTTP, with this service's own token."""

from __future__ import annotations

from pathlib import Path

from modelworks.client import AsyncModelworks
from modelworks.kit.errors import NotFound
from modelworks.optimizer.domain import CommitPlan
from modelworks.optimizer.ports import RepositoryFacts, SourceFile, SourceRevision


class HttpModelRepository:
    """See `ports.ModelRepository`."""

    def __init__(self, client: AsyncModelworks) -> None:
        self._client = client

    async def facts(self, repository: str) -> RepositoryFacts:
        """See the port."""
        found = await self._client.repository(repository)
        return RepositoryFacts(repository, owner=found.get("owner"), private=bool(found["private"]))

    async def revision(self, repository: str, ref: str) -> SourceRevision:
        """See the port."""
        found = await self._client.revision(repository, ref)
        files = tuple(SourceFile(entry.path, entry.size_bytes, entry.sha256) for entry in found.tree)
        return SourceRevision(found.revision, found.created_at, files, found.lineage)

    async def download(self, repository: str, file: SourceFile, revision: str, into: Path) -> None:
        """See the port."""
        await self._client.download(repository, file.path, revision, into, sha256=file.sha256)

    async def upload(self, repository: str, data: Path | bytes) -> str:
        """See the port."""
        return await self._client.upload(repository, data)

    async def commit(self, repository: str, plan: CommitPlan) -> str:
        """See the port."""
        made = await self._client.commit(
            repository,
            branch=plan.branch,
            message=plan.message,
            puts=plan.puts,
            deletes=plan.deletes,
            expected=plan.expected,
            start=plan.start,
            lineage=plan.lineage,
            idempotency_key=plan.idempotency_key,
        )
        return made.revision

    async def tag(self, repository: str, name: str) -> str | None:
        """See the port."""
        return await self._client.ref(repository, "tag", name)

    async def set_tag(self, repository: str, name: str, revision: str, *, expected: str | None) -> None:
        """See the port."""
        await self._client.set_ref(repository, "tag", name, revision, expected=expected)

    async def head(self, repository: str, branch: str) -> SourceRevision | None:
        """See the port."""
        found = await self._client.ref(repository, "branch", branch)
        if found is None:
            return None
        try:
            return await self.revision(repository, found)
        except NotFound:
            # The branch was deleted in between.
            return None

    async def check(self) -> None:
        """See the port. Asks for one page of the smallest size: that needs the token endpoint, too."""
        await self._client.search(limit=1)

    async def close(self) -> None:
        """See the port."""
        await self._client.close()
