"""Documents in OpenSearch: an index a collection, behind an alias, each save conditional on what was read.

A version is `<sequence number>:<primary term>` of the document's last write. Reads by id are real-time; searches see
a save within a second. Nothing is sent twice: a save whose answer was lost may have been made.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import urlsplit

from modelworks.kit.errors import InvalidInput, ModelworksError, StoreUnavailable, TooLarge, VersionConflict
from modelworks.stores.documents.fields import Fields, check_collection, check_id, check_schema, encode, merge
from modelworks.stores.documents.opensearch_index import (
    BODY,
    ID,
    TOTAL,
    document_text,
    fields_of,
    index_body,
    mapping_body,
    search_body,
    sort_key,
)
from modelworks.stores.documents.port import Document, Hit, Page, Query, Schema, Version
from modelworks.stores.documents.queries import check_query
from modelworks.stores.settings import StoresSettings
from opensearchpy import AsyncOpenSearch
from opensearchpy.exceptions import ConnectionError as NoConnection
from opensearchpy.exceptions import OpenSearchException, TransportError

_CONNECTIONS_MAX = 32
_BULK_DOCUMENTS = 500
_BULK_BYTES = 8 * 1024 * 1024
_FIELDS_SECONDS = 30.0
_VERSION = re.compile(r"(\d{1,18}):(\d{1,18})", re.ASCII)


class OpenSearchDocuments:
    """The real document store."""

    def __init__(self, settings: StoresSettings) -> None:
        """Makes no connection yet.

        Raises:
            InvalidInput: the URL is not an http(s) URL without credentials.
        """
        parts = urlsplit(settings.opensearch_url)
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
            raise InvalidInput("STORES_OPENSEARCH_URL is not a URL like https://host:9200, without credentials")
        self._settings = settings
        self._prefix = settings.opensearch_prefix
        self._where = settings.opensearch_url
        self._connection: AsyncOpenSearch | None = None
        self._closed = False
        # With when they were read: another process may add fields, and what is saved here must be found by them.
        self._fields: dict[str, tuple[Fields, float]] = {}
        # It logs each conflict and each missing document as a warning, and outages with tracebacks: what fails is told
        # to the caller, once.
        logging.getLogger("opensearch").addFilter(_is_error)

    async def ensure(self, schema: Schema) -> None:
        wanted = check_schema(schema)
        collection, alias = schema.collection, self._alias(schema.collection)
        mapping = await self._mapping(collection)
        if mapping is None:
            await self._create(alias, wanted)
            mapping = await self._mapping(collection)
        if mapping is None:
            raise StoreUnavailable(f"index {alias} of {self._where} was made and is gone again")
        stored, indexed = fields_of(mapping)
        merged = merge(collection, stored, wanted)
        if merged != stored:
            with self._errors(collection):
                known = {path: kind for path, kind in merged.items() if path in indexed}
                await self._client.indices.put_mapping(index=alias, body=mapping_body(merged, indexed=known))
        self._fields[collection] = merged, time.monotonic()
        if set(merged) - indexed:
            # Also what another process began and did not end.
            await self._index_again(collection, merged)
            with self._errors(collection):
                await self._client.indices.put_mapping(index=alias, body=mapping_body(merged, indexed=merged))

    async def get(self, collection: str, id: str) -> Document | None:
        check_id(id)
        await self._known(collection)
        with self._errors(collection):
            # By `mget`, since an id like `..` does not survive in a URL.
            answer = await self._client.mget(
                index=self._alias(collection), body={"docs": [{"_id": id}]}, params={"_source_includes": BODY}
            )
        (found,) = answer["docs"]
        if "error" in found:
            self._refuse(collection, 404, found["error"])
        return _document(found) if found.get("found") else None

    async def save(self, collection: str, id: str, body: Mapping[str, Any], *, expected: Version | None) -> Document:
        check_id(id)
        fields = await self._known(collection)
        text = encode(body)
        stored = json.loads(text)
        action: dict[str, Any] = {"_id": id, "require_alias": True}
        kind = "create" if expected is None else "index"
        if expected is not None:
            action |= self._condition(collection, id, expected)
        lines = f"{json.dumps({kind: action})}\n{document_text(fields, id, text, stored)}\n"
        (item,) = await self._bulk(collection, lines)
        if item["status"] == 409:
            raise self._conflict(collection, id, exists=expected is None)
        if "error" in item:
            self._refuse(collection, item["status"], item["error"])
        return Document(id, stored, f"{item['_seq_no']}:{item['_primary_term']}")

    async def create_many(self, collection: str, documents: Sequence[tuple[str, Mapping[str, Any]]]) -> Sequence[str]:
        fields = await self._known(collection)
        for id, _ in documents:
            check_id(id)
        existed: list[str] = []
        for lines in _batches(fields, documents):
            for item in await self._bulk(collection, lines):
                if item["status"] == 409:
                    existed.append(item["_id"])
                elif "error" in item:
                    self._refuse(collection, item["status"], item["error"])
        return existed

    async def delete(self, collection: str, id: str, *, expected: Version) -> None:
        check_id(id)
        await self._known(collection)
        action = {"delete": {"_id": id, "require_alias": True, **self._condition(collection, id, expected)}}
        (item,) = await self._bulk(collection, json.dumps(action) + "\n")
        if item["status"] in (404, 409) and item.get("error", {}).get("type") != "index_not_found_exception":
            raise self._conflict(collection, id)
        if "error" in item:
            self._refuse(collection, item["status"], item["error"])

    async def search(self, collection: str, query: Query, *, facets: Sequence[str] = ()) -> Page:
        fields = await self._known(collection)
        checked = check_query(collection, fields, query, facets)
        with self._errors(collection):
            answer = await self._client.search(index=self._alias(collection), body=search_body(fields, checked))
        found = answer["hits"]["hits"]
        shown = found[: checked.limit]
        counts = answer.get("aggregations", {})
        total = counts[TOTAL]["doc_count"] if TOTAL in counts else answer["hits"]["total"]["value"]
        cursor = None
        if len(found) > checked.limit:
            cursor = checked.cursor(sort_key(fields, checked, shown[-1]), shown[-1]["_id"])
        return Page(
            hits=[Hit(_document(hit), hit["_score"] if checked.words else None) for hit in shown],
            total=total,
            cursor=cursor,
            facets={
                path: {bucket["key"]: bucket["doc_count"] for bucket in counts[f"facet:{path}"]["buckets"]}
                for path in facets
            },
        )

    async def refresh(self, collection: str) -> None:
        await self._known(collection)
        with self._errors(collection):
            await self._client.indices.refresh(index=self._alias(collection))

    async def check(self) -> None:
        with self._errors(""):
            # Not red: all primary shards can be read and written.
            health = await self._client.cluster.health()
        if health["status"] == "red":
            raise StoreUnavailable(f"OpenSearch at {self._where} has shards that are not there (status red)")

    async def close(self) -> None:
        self._closed = True
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    @property
    def _client(self) -> Any:
        if self._closed:
            raise StoreUnavailable(f"document store at {self._where} was closed")
        if self._connection is None:
            settings = self._settings
            password = settings.opensearch_password.get_secret_value()
            self._connection = AsyncOpenSearch(
                hosts=[settings.opensearch_url],
                http_auth=(settings.opensearch_user, password) if settings.opensearch_user else None,
                timeout=settings.timeout_ms / 1000,
                maxsize=_CONNECTIONS_MAX,
                max_retries=0,
                retry_on_timeout=False,
                retry_on_status=(),
            )
        return self._connection

    def _alias(self, collection: str) -> str:
        return self._prefix + check_collection(collection)

    async def _known(self, collection: str) -> Fields:
        """The collection's fields, from memory or from its mapping."""
        fields, read_at = self._fields.get(collection, ({}, float("-inf")))
        if time.monotonic() - read_at < _FIELDS_SECONDS:
            return fields
        mapping = await self._mapping(collection)
        if mapping is None:
            self._fields.pop(collection, None)
            raise InvalidInput(f"collection {collection!r} was not made yet: call ensure with its schema first")
        fields = fields_of(mapping)[0]
        self._fields[collection] = fields, time.monotonic()
        return fields

    async def _mapping(self, collection: str) -> Mapping[str, Any] | None:
        """The mapping of the newest index behind the alias, None when there is none."""
        alias = self._alias(collection)
        with self._errors(collection):
            try:
                answer = await self._client.indices.get_mapping(index=alias)
            except TransportError as error:
                if error.status_code == 404:
                    return None
                raise
        newest: Mapping[str, Any] = answer[max(answer)]["mappings"]
        return newest

    async def _create(self, alias: str, fields: Fields) -> None:
        with self._errors(alias):
            try:
                await self._client.indices.create(index=f"{alias}-000001", body=index_body(alias, fields))
            except TransportError as error:
                # Another process was first: its fields are merged with ours by the caller.
                if error.error != "resource_already_exists_exception":
                    raise

    async def _index_again(self, collection: str, fields: Fields) -> None:
        """Write each document as it is, so that fields that are new are found in it."""
        async for hits in self._every(collection):
            lines = []
            for hit in hits:
                condition = {"if_seq_no": hit["_seq_no"], "if_primary_term": hit["_primary_term"]}
                body = hit["_source"]["@document"]["body"]
                text = encode(body)
                try:
                    indexed = document_text(fields, hit["_id"], text, body)
                except InvalidInput as error:
                    raise InvalidInput(f"document {hit['_id']!r} of {collection} does not fit: {error}") from error
                action = {"index": {"_id": hit["_id"], "require_alias": True, **condition}}
                lines.append(f"{json.dumps(action)}\n{indexed}\n")
            for item in await self._bulk(collection, "".join(lines)):
                # 409: saved or deleted since, by a process that knows at least as much.
                if "error" in item and item["status"] != 409:
                    self._refuse(collection, item["status"], item["error"])

    async def _every(self, collection: str) -> AsyncIterator[Sequence[Mapping[str, Any]]]:
        await self.refresh(collection)
        body: dict[str, Any] = {"size": 100, "sort": [{ID: "asc"}], "seq_no_primary_term": True, "_source": [BODY]}
        while True:
            with self._errors(collection):
                answer = await self._client.search(index=self._alias(collection), body=body)
            hits = answer["hits"]["hits"]
            if not hits:
                return
            yield hits
            body["search_after"] = hits[-1]["sort"]

    async def _bulk(self, collection: str, lines: str) -> Sequence[Mapping[str, Any]]:
        """The outcome of each line, in order."""
        with self._errors(collection):
            answer = await self._client.bulk(index=self._alias(collection), body=lines.encode())
        return [next(iter(item.values())) for item in answer["items"]]

    def _condition(self, collection: str, id: str, expected: Version) -> dict[str, int]:
        match = _VERSION.fullmatch(expected)
        if match is None:
            raise self._conflict(collection, id)
        return {"if_seq_no": int(match[1]), "if_primary_term": int(match[2])}

    @staticmethod
    def _conflict(collection: str, id: str, *, exists: bool = False) -> VersionConflict:
        if exists:
            return VersionConflict(f"{collection} {id!r} exists already: read it, then save what you read")
        return VersionConflict(f"{collection} {id!r} was changed or deleted by somebody else: read it again and retry")

    @contextmanager
    def _errors(self, collection: str) -> Iterator[None]:
        """The library's errors in the port's words."""
        try:
            yield
        except NoConnection as error:
            # The library's text repeats the request, not its credentials; its kind says enough.
            raise StoreUnavailable(
                f"OpenSearch at {self._where} did not answer ({type(error).__name__}): is it up?"
            ) from error
        except TransportError as error:
            status = error.status_code if isinstance(error.status_code, int) else 500
            reason = error.info.get("error", {}) if isinstance(error.info, dict) else {}
            self._refuse(collection, status, reason if isinstance(reason, dict) else {"reason": reason})
        except OpenSearchException as error:
            raise StoreUnavailable(f"OpenSearch at {self._where} failed: {type(error).__name__}") from error

    def _refuse(self, collection: str, status: int, error: Mapping[str, Any]) -> NoReturn:
        kind, reason = str(error.get("type", "")), str(error.get("reason", ""))[:300]
        refused: ModelworksError
        if kind == "index_not_found_exception":
            self._fields.pop(collection, None)
            refused = InvalidInput(f"collection {collection!r} was not made yet: call ensure with its schema first")
        elif status == 400:
            refused = InvalidInput(f"OpenSearch refuses this for {collection}: {reason}")
        elif status == 413:
            refused = TooLarge(f"OpenSearch refuses this for {collection} as too large: {reason}")
        elif status == 409:
            refused = VersionConflict(f"{collection} was changed by somebody else: {reason}")
        elif status in (401, 403) and "block" not in kind:
            refused = StoreUnavailable(
                f"OpenSearch at {self._where} refused our credentials ({status}): check STORES_OPENSEARCH_USER and _PASSWORD"
            )
        else:
            refused = StoreUnavailable(f"OpenSearch at {self._where} answered {status} {kind}: {reason}")
        raise refused


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _document(found: Mapping[str, Any]) -> Document:
    version = f"{found['_seq_no']}:{found['_primary_term']}"
    return Document(found["_id"], found["_source"]["@document"]["body"], version)


def _batches(fields: Fields, documents: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Bulk requests, bounded in number and bytes."""
    lines: list[str] = []
    size = 0
    for id, body in documents:
        text = encode(body)
        line = f"{json.dumps({'create': {'_id': id, 'require_alias': True}})}\n{document_text(fields, id, text, json.loads(text))}\n"
        if lines and (len(lines) >= _BULK_DOCUMENTS or size + len(line) > _BULK_BYTES):
            yield "".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if lines:
        yield "".join(lines)
