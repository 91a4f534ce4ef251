"""The suite's HTTP surface as one class.

Transfers are verified at both ends: the sha256 is computed before an upload,
checked by the registry while it reads, and checked again here on the way down.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from modelworks.client.bulk import Progress, receive_file, send_file
from modelworks.client.credentials import TokenSource
from modelworks.client.folders import sha256_of
from modelworks.client.transport import Transport, error_of
from modelworks.client.values import Commit, Ref, Revision, SearchPage, TreeEntry
from modelworks.kit.errors import InvalidInput, NotFound, TooLarge, Unavailable


class _Omit:
    """The type of OMIT."""


OMIT: Final = _Omit()
"""For `expected`: do not compare; None means that the ref must not exist."""

_CHUNK_BYTES = 1024 * 1024


def _quiet(_: int) -> None: ...


class AsyncModelworks:
    """A client of one suite; close it, or use it as a context manager."""

    def __init__(self, url: str, token: TokenSource, *, timeout_seconds: float = 60) -> None:
        self.http = Transport(url, token, timeout_seconds=timeout_seconds)

    async def __aenter__(self) -> AsyncModelworks:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self.http.close()

    # --- registry: repositories -------------------------------------------------------------------------

    async def create_repository(
        self, name: str, *, kind: str = "model", private: bool = False, description: str = ""
    ) -> Mapping[str, Any]:
        """Create `namespace/name`.

        Raises:
            Conflict: it exists.
        """
        body = {"name": name, "kind": kind, "private": private, "description": description}
        return await self.http.json("POST", "/api/v1/repositories", json=body)  # type: ignore[no-any-return]

    async def repository(self, name: str) -> Mapping[str, Any]:
        """The repository's description, tags and head."""
        return await self.http.json("GET", _repository(name))  # type: ignore[no-any-return]

    async def search(self, text: str = "", *, limit: int = 50, cursor: str | None = None, **filters: str) -> SearchPage:
        """Repositories that the caller may read, by words of their card and by filters."""
        return await self._page("/api/v1/repositories", {"q": text, "limit": limit, "cursor": cursor, **filters})

    # --- registry: blobs, commits, refs -----------------------------------------------------------------

    async def upload(self, repository: str, data: Path | bytes, *, progress: Progress = _quiet) -> str:
        """Send a blob, unless the registry has it; returns its sha256. Memory does not grow with the file."""
        sha256 = await asyncio.to_thread(_digest, data)
        size = len(data) if isinstance(data, bytes) else (await asyncio.to_thread(data.stat)).st_size
        path = f"{_repository(repository)}/blobs/{sha256}"
        try:
            async with self.http.stream("HEAD", path):
                progress(size)
                return sha256
        except NotFound:
            pass
        if isinstance(data, bytes):
            await self.http.json("PUT", path, content=data, headers={"Content-Type": "application/octet-stream"})
            progress(size)
            return sha256
        answer = await self.http.bulk(
            lambda url, headers, stop: send_file(
                url, data, headers, progress=progress, stop=stop, timeout_seconds=self.http.timeout_seconds
            ),
            path,
        )
        if not answer.is_success:
            raise error_of(answer)
        return sha256

    async def commit(
        self,
        repository: str,
        *,
        message: str,
        puts: Mapping[str, str],
        deletes: Sequence[str] = (),
        branch: str = "main",
        expected: str | _Omit | None = OMIT,
        start: str | None = None,
        lineage: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Commit:
        """Commit paths to uploaded blobs on a branch.

        Args:
            puts: path to sha256 of a blob that was uploaded to this repository.
            expected: the head that the branch must have; None: the branch must be new.
            start: where a new branch starts; a ref or revision.
            idempotency_key: the same key again gives the same commit.

        Raises:
            VersionConflict: the branch has another head.
            InvalidInput: a path or blob is not acceptable.
        """
        body: dict[str, Any] = {
            "branch": branch,
            "message": message,
            "operations": [{"op": "put", "path": path, "sha256": sha256} for path, sha256 in puts.items()]
            + [{"op": "delete", "path": path} for path in deletes],
        }
        if not isinstance(expected, _Omit):
            body["expected"] = expected
        optional = {"start": start, "lineage": lineage, "idempotency_key": idempotency_key}
        body |= {name: value for name, value in optional.items() if value is not None}
        return _commit(await self.http.json("POST", f"{_repository(repository)}/commits", json=body))

    async def log(self, repository: str, ref: str = "main", *, limit: int = 50) -> Sequence[Commit]:
        """Commits from `ref` backwards along first parents."""
        path = f"{_repository(repository)}/commits"
        answer = await self.http.json("GET", path, params={"ref": ref, "limit": limit})
        return [_commit(item) for item in answer["items"]]

    async def revision(self, repository: str, ref: str = "main") -> Revision:
        """What a branch, tag or commit id points to, with its whole tree."""
        body = await self.http.json("GET", f"{_repository(repository)}/revisions/{quote(ref)}")
        tree = [TreeEntry(entry["path"], entry["size_bytes"], entry["sha256"]) for entry in body["tree"]]
        return Revision(
            repository=body["repository"], revision=body["revision"], parents=body["parents"], message=body["message"],
            author=body["author"], created_at=body["created_at"], tree=tree, lineage=body.get("lineage"),
        )  # fmt: skip

    async def download(
        self,
        repository: str,
        path: str,
        ref: str,
        into: Path,
        *,
        sha256: str | None = None,
        progress: Progress = _quiet,
    ) -> None:
        """Write a file to `into`: whole and verified, or not at all.

        Args:
            sha256: digest the bytes must have; None takes the registry's word for it (its ETag).

        Raises:
            NotFound: no such repository, ref or path.
            Unavailable: the transfer broke off, or the bytes do not have their digest.
        """
        descriptor, temporary = tempfile.mkstemp(dir=into.parent, prefix=f".{into.name}.")
        os.close(descriptor)
        target = f"{_file(repository, path)}?ref={quote(ref, safe='')}"
        try:
            answer, actual = await self.http.bulk(
                lambda url, headers, stop: receive_file(
                    url,
                    Path(temporary),
                    headers,
                    progress=progress,
                    stop=stop,
                    timeout_seconds=self.http.timeout_seconds,
                ),
                target,
            )
            if not answer.is_success:
                raise error_of(answer)
            expected = sha256 or answer.headers.get("etag", "").strip('"')
            if actual != expected:
                raise Unavailable(
                    f"{repository}@{ref}:{path} arrived with sha256 {actual}, not {expected}: "
                    "it was damaged on the way or in the store"
                )
            os.replace(temporary, into)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    async def read_file(self, repository: str, path: str, ref: str = "main", *, bytes_max: int = 1 << 20) -> bytes:
        """A small file, whole.

        Raises:
            TooLarge: it has more than `bytes_max` bytes.
        """
        parts: list[bytes] = []
        size = 0
        async with self.http.stream("GET", _file(repository, path), params={"ref": ref}) as answer:
            async for chunk in answer.aiter_raw(_CHUNK_BYTES):
                size += len(chunk)
                if size > bytes_max:
                    raise TooLarge(f"{repository}@{ref}:{path} has more than {bytes_max} bytes")
                parts.append(chunk)
        return b"".join(parts)

    async def refs(self, repository: str) -> Sequence[Ref]:
        """All branches and tags."""
        answer = await self.http.json("GET", f"{_repository(repository)}/refs")
        items = answer["items"] if isinstance(answer, dict) else answer
        return [Ref(item["kind"], item["name"], item["revision"]) for item in items]

    async def ref(self, repository: str, kind: str, name: str) -> str | None:
        """Where a branch or tag points, or None."""
        return next((r.revision for r in await self.refs(repository) if (r.kind, r.name) == (kind, name)), None)

    async def set_ref(
        self, repository: str, kind: str, name: str, revision: str, *, expected: str | _Omit | None = OMIT
    ) -> None:
        """Move a branch or tag.

        Raises:
            VersionConflict: it does not point to `expected` any more.
        """
        body: dict[str, Any] = {"revision": revision}
        if not isinstance(expected, _Omit):
            body["expected"] = expected
        await self.http.json("PUT", f"{_repository(repository)}/refs/{kind}/{quote(name)}", json=body)

    # --- optimizer --------------------------------------------------------------------------------------

    async def optimize(
        self, model: str, *, ref: str = "main", recipe: str | Mapping[str, Any] = "int8"
    ) -> Mapping[str, Any]:
        """Ask for a variant; returns the job."""
        body = {"model": model, "ref": ref, "recipe": recipe}
        return await self.http.json("POST", "/api/v1/optimizations", json=body)  # type: ignore[no-any-return]

    async def optimizations(self, *, limit: int = 50, **filters: str) -> SearchPage:
        """Optimization jobs, newest first."""
        return await self._page("/api/v1/optimizations", {"limit": limit, **filters})

    async def optimization(self, job: str, *, wait_seconds: int = 0) -> Mapping[str, Any]:
        """One optimization job; waits up to `wait_seconds` for its end."""
        return await self._waiting(f"/api/v1/optimizations/{quote(job)}", wait_seconds)

    async def cancel_optimization(self, job: str) -> None:
        """Cancel a waiting or running optimization."""
        await self.http.json("DELETE", f"/api/v1/optimizations/{quote(job)}")

    # --- inference --------------------------------------------------------------------------------------

    async def deploy(self, model: str, *, ref: str = "main") -> Mapping[str, Any]:
        """Serve a model; returns the deployment, which may still be loading."""
        body = {"model": model, "ref": ref}
        return await self.http.json("POST", "/api/v1/deployments", json=body)  # type: ignore[no-any-return]

    async def deployment(self, model: str, *, wait_seconds: int = 0) -> Mapping[str, Any]:
        """A deployment; waits up to `wait_seconds` until it is ready or has failed."""
        return await self._waiting(f"/api/v1/deployments/{_name(model)}", wait_seconds)

    async def deployments(self) -> SearchPage:
        """All deployments."""
        return await self._page("/api/v1/deployments", {})

    async def undeploy(self, model: str) -> None:
        """Stop serving a model."""
        await self.http.json("DELETE", f"/api/v1/deployments/{_name(model)}")

    async def predict(self, model: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """One online prediction in the JSON form of the Open Inference Protocol."""
        path = f"/oip/v2/models/{_name(model)}/infer"
        return await self.http.json("POST", path, json=body)  # type: ignore[no-any-return]

    async def predict_binary(self, model: str, body: bytes, header_bytes: int) -> tuple[bytes, int]:
        """One online prediction with binary tensors; returns the answer's body and the size of its JSON header."""
        headers = {"Inference-Header-Content-Length": str(header_bytes)}
        path = f"/oip/v2/models/{_name(model)}/infer"
        async with self.http.stream("POST", path, content=body, headers=headers) as answer:
            data = await answer.aread()
        return data, int(answer.headers.get("inference-header-content-length", len(data)))

    async def enqueue(self, model: str, inputs: Sequence[Mapping[str, Any]], **more: Any) -> Mapping[str, Any]:
        """Queue a prediction; returns the job."""
        body = {"model": model, "inputs": inputs, **more}
        return await self.http.json("POST", "/api/v1/jobs", json=body)  # type: ignore[no-any-return]

    async def jobs(self, *, limit: int = 50, **filters: str) -> SearchPage:
        """Prediction jobs that the caller may see, newest first."""
        return await self._page("/api/v1/jobs", {"limit": limit, **filters})

    async def job(self, job: str, *, wait_seconds: int = 0) -> Mapping[str, Any]:
        """One prediction job; waits up to `wait_seconds` for its end."""
        return await self._waiting(f"/api/v1/jobs/{quote(job)}", wait_seconds)

    async def job_result(self, job: str) -> Mapping[str, Any]:
        """The output of a job that succeeded, in the JSON form of the Open Inference Protocol."""
        headers = {"Accept": "application/json"}
        return await self.http.json("GET", f"/api/v1/jobs/{quote(job)}/result", headers=headers)  # type: ignore[no-any-return]

    async def cancel_job(self, job: str) -> None:
        """Cancel a waiting or running prediction."""
        await self.http.json("DELETE", f"/api/v1/jobs/{quote(job)}")

    # --- events and audit -------------------------------------------------------------------------------

    async def send_event(self, *, type: str, id: str, source: str, data: bytes) -> None:
        """Send a CloudEvent in binary mode, as an upstream system does."""
        headers = {
            "ce-specversion": "1.0", "ce-type": type, "ce-id": id, "ce-source": source, "Content-Type": "application/json",
        }  # fmt: skip
        await self.http.json("POST", "/api/v1/events", content=data, headers=headers)

    async def dead_letters(self, *, limit: int = 100, **filters: str) -> SearchPage:
        """Messages that their consumers gave up on, newest first."""
        return await self._page("/api/v1/dead-letters", {"limit": limit, **filters})

    async def dead_letter(self, id: str) -> Mapping[str, Any]:
        """One dead letter, body included."""
        return await self.http.json("GET", f"/api/v1/dead-letters/{quote(id, safe='')}")  # type: ignore[no-any-return]

    async def replay(self, id: str) -> Mapping[str, Any]:
        """Hand a dead letter to its consumer again."""
        return await self.http.json("POST", f"/api/v1/dead-letters/{quote(id, safe='')}/replay")  # type: ignore[no-any-return]

    async def audit(self, text: str = "", *, limit: int = 50, cursor: str | None = None, **filters: str) -> SearchPage:
        """Audit entries, newest first, each with its proof; `extra["checkpoint"]` is the signed head they lead to."""
        return await self._page("/api/v1/audit/events", {"q": text, "limit": limit, "cursor": cursor, **filters})

    async def text(self, path: str) -> str:
        """A plain text answer, for example the audit's checkpoint or key."""
        async with self.http.stream("GET", path) as answer:
            return (await answer.aread()).decode()

    # --- shared -----------------------------------------------------------------------------------------

    async def _page(self, path: str, params: Mapping[str, Any]) -> SearchPage:
        answer = await self.http.json("GET", path, params={k: v for k, v in params.items() if v not in (None, "")})
        extra = {name: value for name, value in answer.items() if name not in ("items", "total", "cursor")}
        return SearchPage(answer["items"], answer.get("total", len(answer["items"])), answer.get("cursor"), extra)

    async def _waiting(self, path: str, wait_seconds: int) -> Mapping[str, Any]:
        headers = {"Prefer": f"wait={wait_seconds}"} if wait_seconds else {}
        return await self.http.json("GET", path, headers=headers)  # type: ignore[no-any-return]


def _name(name: str) -> str:
    namespace, slash, rest = name.partition("/")
    if not slash or not namespace or not rest or "/" in rest:
        raise InvalidInput(f"{name!r} is not a model's name: write namespace/name")
    return f"{quote(namespace)}/{quote(rest)}"


def _repository(name: str) -> str:
    return f"/api/v1/repositories/{_name(name)}"


def _file(repository: str, path: str) -> str:
    return f"{_repository(repository)}/files/{quote(path)}"


def _commit(body: Mapping[str, Any]) -> Commit:
    names = ("revision", "parents", "branch", "message", "author", "created_at", "lineage")
    return Commit(**{name: body[name] for name in names if body.get(name) is not None})


def _digest(data: Path | bytes) -> str:
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    return sha256_of(data)
