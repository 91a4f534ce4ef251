"""The registry's port kept in one folder, so that several processes can share it and it survives their death."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelworks.kit.errors import Conflict, InvalidInput, NotFound, Unavailable, VersionConflict
from modelworks.optimizer.domain import CommitPlan
from modelworks.optimizer.ports import RepositoryFacts, SourceFile, SourceRevision


class FakeRegistry:
    """See `ports.ModelRepository`. Blobs are files, everything else is one JSON file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.away = False
        """Answers everything with Unavailable."""
        self.calls: list[str] = []
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        if not self._file.exists():
            self._write({"repositories": {}, "commits": [], "refs": {}, "keys": {}})

    @property
    def _file(self) -> Path:
        return self.folder / "state.json"

    def _read(self) -> dict[str, Any]:
        return json.loads(self._file.read_text())

    def _write(self, state: Mapping[str, Any]) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(state))
        temporary.replace(self._file)

    # For tests.

    def create(self, repository: str, *, owner: str = "alice", private: bool = False) -> None:
        state = self._read()
        state["repositories"][repository] = {"owner": owner, "private": private}
        self._write(state)

    def push(
        self, repository: str, files: Mapping[str, bytes | Path], *, branch: str = "main", lineage: Any = None
    ) -> str:
        """A commit that makes the tree exactly these files."""
        if repository not in self._read()["repositories"]:
            self.create(repository)
        tree = {path: self.put(data) for path, data in files.items()}
        return self._commit(repository, branch, tree, "pushed", lineage)

    def put(self, data: bytes | Path) -> str:
        content = data if isinstance(data, bytes) else data.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs" / sha256).write_bytes(content)
        return sha256

    def commits(self, repository: str, branch: str) -> list[dict[str, Any]]:
        return [c for c in self._read()["commits"] if (c["repository"], c["branch"]) == (repository, branch)]

    def read(self, repository: str, revision: str, path: str) -> bytes:
        commit = next(c for c in self._read()["commits"] if c["revision"] == revision)
        return (self.folder / "blobs" / commit["tree"][path]).read_bytes()

    def ref(self, repository: str, kind: str, name: str) -> str | None:
        return self._read()["refs"].get(f"{repository} {kind} {name}")

    def move(self, repository: str, kind: str, name: str, revision: str) -> None:
        state = self._read()
        state["refs"][f"{repository} {kind} {name}"] = revision
        self._write(state)

    def _commit(
        self, repository: str, branch: str, tree: Mapping[str, str], message: str, lineage: Any, key: str | None = None
    ) -> str:
        state = self._read()
        number = len(state["commits"])
        revision = hashlib.sha1(f"{number}{sorted(tree.items())}".encode()).hexdigest()
        state["commits"].append({
            "repository": repository, "revision": revision, "branch": branch, "tree": dict(tree), "message": message,
            "lineage": lineage, "created_at": f"2026-01-01T00:00:{number:02d}.000000Z",
        })  # fmt: skip
        state["refs"][f"{repository} branch {branch}"] = revision
        if key:
            state["keys"][key] = revision
        self._write(state)
        return revision

    # The port.

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.away:
            raise Unavailable("the registry does not answer")

    async def facts(self, repository: str) -> RepositoryFacts:
        self._called("facts")
        found = self._read()["repositories"].get(repository)
        if found is None:
            raise NotFound(f"repository {repository!r} does not exist")
        return RepositoryFacts(repository, found["owner"], found["private"])

    async def revision(self, repository: str, ref: str) -> SourceRevision:
        self._called("revision")
        state = self._read()
        if repository not in state["repositories"]:
            raise NotFound(f"repository {repository!r} does not exist")
        wanted = state["refs"].get(f"{repository} branch {ref}") or state["refs"].get(f"{repository} tag {ref}") or ref
        for commit in state["commits"]:
            if commit["revision"] == wanted and commit["repository"] == repository:
                files = tuple(
                    SourceFile(path, (self.folder / "blobs" / sha256).stat().st_size, sha256)
                    for path, sha256 in sorted(commit["tree"].items())
                )
                return SourceRevision(wanted, commit["created_at"], files, commit["lineage"])
        raise NotFound(f"ref {ref!r} does not exist in {repository}")

    async def download(self, repository: str, file: SourceFile, revision: str, into: Path) -> None:
        self._called("download")
        into.write_bytes((self.folder / "blobs" / file.sha256).read_bytes())

    async def upload(self, repository: str, data: Path | bytes) -> str:
        self._called("upload")
        return self.put(data)

    async def commit(self, repository: str, plan: CommitPlan) -> str:
        self._called("commit")
        state = self._read()
        if plan.idempotency_key in state["keys"]:
            return state["keys"][plan.idempotency_key]
        head = state["refs"].get(f"{repository} branch {plan.branch}")
        if head != plan.expected:
            raise VersionConflict(f"branch {plan.branch} is at {head}, not {plan.expected}")
        base = next((c["tree"] for c in state["commits"] if c["revision"] == (head or plan.start)), {})
        for sha256 in plan.puts.values():
            if not (self.folder / "blobs" / sha256).exists():
                raise InvalidInput(f"blob {sha256} was not uploaded")
        if missing := set(plan.deletes) - base.keys():
            raise InvalidInput(f"cannot delete {missing}")
        tree = {path: sha256 for path, sha256 in (base | plan.puts).items() if path not in plan.deletes}
        if any(key == plan.idempotency_key for key in state["keys"]):
            raise Conflict("key used")
        return self._commit(repository, plan.branch, tree, plan.message, plan.lineage, plan.idempotency_key)

    async def tag(self, repository: str, name: str) -> str | None:
        self._called("tag")
        return self.ref(repository, "tag", name)

    async def set_tag(self, repository: str, name: str, revision: str, *, expected: str | None) -> None:
        self._called("set_tag")
        if self.ref(repository, "tag", name) != expected:
            raise VersionConflict(f"tag {name} is not at {expected}")
        self.move(repository, "tag", name, revision)

    async def head(self, repository: str, branch: str) -> SourceRevision | None:
        self._called("head")
        revision = self.ref(repository, "branch", branch)
        return await self.revision(repository, revision) if revision else None

    async def check(self) -> None:
        self._called("check")

    async def close(self) -> None:
        pass
