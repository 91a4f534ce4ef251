"""HTTP: parse, ask whether it is allowed, call the handler, render."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from modelworks.kit.errors import InvalidInput, TooLarge
from modelworks.kit.http import Authenticated, authenticated
from modelworks.kit.logging import get_logger
from modelworks.registry.access import READ, WRITE, Access
from modelworks.registry.domain import OMITTED, Expected, Kind, RefKind, Repository
from modelworks.registry.handlers import Handlers
from modelworks.registry.ports import Find, Order
from modelworks.registry.ranges import not_modified, wanted_range
from modelworks.registry.representations import (
    ANY_ERROR,
    BlobView,
    CommitPage,
    CommitView,
    NewCommit,
    NewRef,
    NewRepository,
    RefView,
    RepositoryPage,
    RepositoryView,
    RevisionDetail,
    committed_view,
    log_view,
    problems,
    repository_view,
    revision_json,
)
from modelworks.registry.settings import RegistrySettings
from modelworks.registry.transfers import Transfers
from pydantic import TypeAdapter
from starlette.requests import ClientDisconnect

PREFIX = "/api/v1/repositories"
_LARGE_BODY_BYTES = 64 * 1024
"""JSON above this is parsed in a thread."""
_JSON: TypeAdapter[Any] = TypeAdapter(Any)
_REPOSITORY = "/{namespace}/{name}"

log = get_logger("registry")

Limit = Annotated[int, Query(ge=1, le=1000, description="Most items; the server may give fewer, with a cursor.")]


def _operation_id(route: APIRoute) -> str:
    return route.name


def routers(*, handlers: Handlers, transfers: Transfers, access: Access, settings: RegistrySettings) -> list[APIRouter]:
    """All routes of the registry."""
    return [
        _repositories(handlers, access, settings),
        _commits(handlers, access, settings),
        _refs(handlers, access, settings),
        _bytes(handlers, transfers, access),
    ]


def _repositories(handlers: Handlers, access: Access, settings: RegistrySettings) -> APIRouter:
    routes = APIRouter(
        prefix=PREFIX,
        tags=["repositories"],
        responses=ANY_ERROR,
        generate_unique_id_function=_operation_id,
        route_class=_bounded(settings.body_bytes_max),
    )

    @routes.post("", status_code=201, responses=problems(400, 409))
    async def create_repository(body: NewRepository, principal: Authenticated) -> RepositoryView:
        """Create a repository, owned by the caller."""
        access.require_create(principal, body.name, private=body.private)
        made = await handlers.create(
            body.name, kind=body.kind, private=body.private, description=body.description, actor=principal.id
        )
        log.info("repository.created", repository=made.name, private=made.private, principal=principal.id)
        return repository_view(made)

    @routes.get("", responses=problems(400))
    async def search_repositories(
        principal: Authenticated,
        q: Annotated[str, Query(max_length=500, description="Words of the name, the description and the card.")] = "",
        kind: Kind | None = None,
        namespace: Annotated[str | None, Query(max_length=96)] = None,
        owner: Annotated[str | None, Query(max_length=200)] = None,
        tag: Annotated[
            list[str] | None, Query(max_length=20, description="May be repeated: all must be there.")
        ] = None,
        library: Annotated[str | None, Query(max_length=100)] = None,
        task: Annotated[str | None, Query(max_length=100)] = None,
        license: Annotated[str | None, Query(max_length=100)] = None,
        sort: Annotated[Order | None, Query(description="Default: relevance with `q`, else -updated.")] = None,
        limit: Limit = 50,
        cursor: Annotated[str | None, Query(max_length=2000)] = None,
    ) -> RepositoryPage:
        """Repositories that the caller may read, by words and filters."""
        find = Find(
            text=q, kind=kind, namespace=namespace, owner=owner, tags=tuple(tag or ()), library=library, task=task,
            license=license, order=sort or ("relevance" if q.strip() else "-updated"), limit=limit, cursor=cursor,
        )  # fmt: skip
        found = await handlers.search(find, reader=access.reader(principal))
        return RepositoryPage(
            items=[repository_view(each) for each in found.repositories], total=found.total, cursor=found.cursor
        )

    @routes.get(_REPOSITORY, responses=problems(404))
    async def get_repository(namespace: str, name: str, principal: Authenticated) -> RepositoryView:
        """A repository."""
        return repository_view(await access.require(principal, READ, f"{namespace}/{name}"))

    return routes


def _commits(handlers: Handlers, access: Access, settings: RegistrySettings) -> APIRouter:
    routes = APIRouter(
        prefix=PREFIX + _REPOSITORY,
        tags=["commits"],
        responses=ANY_ERROR,
        generate_unique_id_function=_operation_id,
        route_class=_bounded(settings.body_bytes_max),
    )

    @routes.post(
        "/commits", status_code=201, response_model_exclude_defaults=True,
        responses={200: {"model": CommitView, "description": "Nothing to change, or answered before."}, **problems(400, 404, 409, 412, 413)},
    )  # fmt: skip
    async def create_commit(
        namespace: str, name: str, body: NewCommit, principal: Authenticated, response: Response
    ) -> CommitView:
        """Commit uploaded blobs to paths, and delete paths, on a branch."""
        repository = await access.require(principal, WRITE, f"{namespace}/{name}")
        committed = await handlers.commit(repository.name, body.command(), actor=principal.id)
        log.info(
            "revision.committed" if committed.created else "revision.unchanged",
            repository=repository.name, revision=committed.revision, branch=body.branch, principal=principal.id,
        )  # fmt: skip
        response.status_code = 201 if committed.created else 200
        return committed_view(repository.name, body.branch, committed)

    @routes.get("/commits", response_model_exclude_defaults=True, responses=problems(400, 404))
    async def list_commits(
        namespace: str,
        name: str,
        principal: Authenticated,
        ref: Annotated[str, Query(max_length=220)] = "main",
        limit: Limit = 50,
        cursor: Annotated[str | None, Query(max_length=100)] = None,
    ) -> CommitPage:
        """The log: commits from a ref backwards along first parents."""
        repository = await access.require(principal, READ, f"{namespace}/{name}")
        return log_view(repository.name, await handlers.log(repository, ref, limit=limit, cursor=cursor))

    @routes.get("/revisions/{ref:path}", response_model=RevisionDetail, responses=problems(404, 500))
    async def get_revision(namespace: str, name: str, ref: str, principal: Authenticated) -> Response:
        """What a branch, tag or commit id points to, with all its files."""
        repository = await access.require(principal, READ, f"{namespace}/{name}")
        view = await handlers.revision(repository, ref)
        # Thousands of files take their time to write down; other requests go on meanwhile.
        content = await asyncio.to_thread(revision_json, repository.name, view)
        return Response(content, media_type="application/json")

    return routes


def _refs(handlers: Handlers, access: Access, settings: RegistrySettings) -> APIRouter:
    routes = APIRouter(
        prefix=PREFIX + _REPOSITORY,
        tags=["refs"],
        responses=ANY_ERROR,
        generate_unique_id_function=_operation_id,
        route_class=_bounded(settings.body_bytes_max),
    )

    @routes.get("/refs", responses=problems(404))
    async def list_refs(namespace: str, name: str, principal: Authenticated) -> list[RefView]:
        """All branches and tags, by kind and name."""
        repository = await access.require(principal, READ, f"{namespace}/{name}")
        return [RefView(kind=ref.kind, name=ref.name, revision=ref.revision) for ref in repository.refs]

    @routes.put(
        "/refs/{kind}/{ref:path}",
        responses={201: {"model": RefView, "description": "The ref was made."}, **problems(400, 404, 412, 413)},
    )
    async def set_ref(
        namespace: str, name: str, kind: RefKind, ref: str, body: NewRef, principal: Authenticated, response: Response
    ) -> RefView:
        """Make or move a branch or tag, by compare-and-set."""
        repository = await access.require(principal, WRITE, f"{namespace}/{name}")
        moved, made = await handlers.set_ref(
            repository.name, kind, ref, body.revision, expected=body.expectation(), actor=principal.id
        )
        log.info(
            "ref.set", repository=repository.name, kind=kind, ref=ref, revision=moved.revision, principal=principal.id
        )
        response.status_code = 201 if made else 200
        return RefView(kind=moved.kind, name=moved.name, revision=moved.revision)

    @routes.delete("/refs/{kind}/{ref:path}", status_code=204, responses=problems(400, 404, 409, 412))
    async def delete_ref(
        namespace: str,
        name: str,
        kind: RefKind,
        ref: str,
        principal: Authenticated,
        expected: Annotated[
            str | None, Query(pattern="^[0-9a-f]{40}$", description="Where it must be, else 412.")
        ] = None,
    ) -> None:
        """Delete a branch or tag; its commits stay."""
        repository = await access.require(principal, WRITE, f"{namespace}/{name}")
        condition: Expected = OMITTED if expected is None else expected
        await handlers.delete_ref(repository.name, kind, ref, expected=condition, actor=principal.id)
        log.info("ref.deleted", repository=repository.name, kind=kind, ref=ref, principal=principal.id)

    return routes


def _bytes(handlers: Handlers, transfers: Transfers, access: Access) -> APIRouter:
    routes = APIRouter(
        prefix=PREFIX + _REPOSITORY, tags=["bytes"], responses=ANY_ERROR, generate_unique_id_function=_operation_id
    )

    @routes.put(
        "/blobs/{sha256}", status_code=201, openapi_extra=_RAW_BODY,
        responses={200: {"model": BlobView, "description": "It was there before."}, **problems(400, 404, 413)},
    )  # fmt: skip
    async def put_blob(
        namespace: str, name: str, sha256: str, request: Request, principal: Authenticated, response: Response
    ) -> BlobView:
        """Upload a blob. Its digest is checked while it streams; nothing of a refused one is kept."""
        repository = await access.require(principal, WRITE, f"{namespace}/{name}")
        uploaded = await transfers.upload(
            repository, sha256, _body_of(request), announced_bytes=_content_length(request), actor=principal.id
        )
        log.info("blob.stored", repository=repository.name, sha256=sha256, size_bytes=uploaded.size_bytes)
        response.status_code = 201 if uploaded.created else 200
        return BlobView(sha256=uploaded.sha256, size_bytes=uploaded.size_bytes)

    async def blob(namespace: str, name: str, sha256: str, request: Request, principal: Authenticated) -> Response:
        repository = await access.require(principal, READ, f"{namespace}/{name}")
        size_bytes = await transfers.size(repository, sha256)
        return await _send(transfers, request, repository, sha256, size_bytes, {})

    async def file(
        namespace: str,
        name: str,
        path: str,
        request: Request,
        principal: Authenticated,
        ref: Annotated[str, Query(max_length=220)] = "main",
    ) -> Response:
        repository = await access.require(principal, READ, f"{namespace}/{name}")
        revision, found = await handlers.locate(repository, path, ref)
        headers = {"X-Modelworks-Revision": revision}
        return await _send(transfers, request, repository, found.sha256, found.size_bytes, headers)

    for place, endpoint, what in (("/blobs/{sha256}", blob, "blob"), ("/files/{path:path}", file, "file")):
        routes.add_api_route(
            place, endpoint, methods=["GET"], name=f"get_{what}", response_class=StreamingResponse, responses=_SENT,
            description="Its bytes, whole (verified while they are sent; cut off if damaged) or one range of them.",
        )  # fmt: skip
        routes.add_api_route(
            place, endpoint, methods=["HEAD"], name=f"head_{what}", response_class=Response, responses=_SENT,
            description="Whether it is there, its size and digest.",
        )  # fmt: skip
    return routes


_RAW_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True, "description": "The raw bytes.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}  # fmt: skip
_OCTETS: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_SENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "All bytes; ETag is the quoted sha256.", "content": _OCTETS},
    206: {"description": "The range that was asked for.", "content": _OCTETS},
    304: {"description": "The caller's copy (If-None-Match) is the same."},
    **problems(400, 404, 416, 500),
}


async def _send(
    transfers: Transfers,
    request: Request,
    repository: Repository,
    sha256: str,
    size_bytes: int,
    headers: dict[str, str],
) -> Response:
    """Immutable bytes, as the request's conditions and range ask."""
    etag = f'"{sha256}"'
    headers |= {
        "ETag": etag, "Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff",
        # RFC 9530: of the whole, whatever part is sent.
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
    }  # fmt: skip
    if not_modified(request.headers, etag):
        return Response(status_code=304, headers=headers)
    part = wanted_range(request.headers, size_bytes=size_bytes, etag=etag) if request.method == "GET" else None
    length = size_bytes if part is None else part.length
    headers |= {"Content-Length": str(length), "Content-Type": "application/octet-stream"}
    if request.method == "HEAD":
        return Response(headers=headers)
    if part is None:
        return StreamingResponse(await transfers.whole(repository, sha256, size_bytes), headers=headers)
    chunks = await transfers.part(repository, sha256, size_bytes, start=part.start, length=part.length)
    return StreamingResponse(chunks, status_code=206, headers={**headers, "Content-Range": part.content_range})


async def _body_of(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise ConnectionError("the client closed the connection") from error


def _content_length(request: Request) -> int | None:
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _bounded(bytes_max: int) -> type[APIRoute]:
    """A route class that reads no body of a stranger, and none above the bound."""

    class BoundedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def bounded(request: Request) -> Response:
                await authenticated(request)
                await _read_body(request, bytes_max)
                return await handle(request)

            return bounded

    return BoundedRoute


async def _read_body(request: Request, bytes_max: int) -> None:
    """Read the body where FastAPI will look for it."""
    parts: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > bytes_max:
            raise TooLarge(
                f"the body has over {bytes_max} bytes (REGISTRY_BODY_BYTES_MAX): divide the commit",
                limit_bytes=bytes_max,
            )
        parts.append(chunk)
    body = b"".join(parts)
    if b"\\ud" in body.lower():
        # FastAPI's parser lets half a surrogate pair through, which nothing behind it can store or send.
        try:
            _JSON.validate_json(body)
        except ValueError as error:
            raise InvalidInput(f"the body is not JSON: {error}") from error
    request._body = body
    if len(body) > _LARGE_BODY_BYTES:
        with suppress(ValueError, RecursionError):  # said by FastAPI, in its own words, when it parses again
            request._json = await asyncio.to_thread(json.loads, body)
