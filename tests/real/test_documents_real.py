"""The document contract on OpenSearch, and what only a server can do: be away, come back, and be looked into."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import httpx
import pytest
from modelworks.kit.errors import InvalidInput, StoreUnavailable, VersionConflict
from modelworks.stores import Documents, Field, FieldType, Filter, Query, Schema
from modelworks.stores.documents.opensearch import OpenSearchDocuments
from modelworks.stores.settings import StoresSettings

pytest.register_assert_rewrite("libs.stores.tests.contract_documents")

from libs.stores.tests.contract_documents import DocumentsContract, OpenDocuments  # noqa: E402
from libs.stores.tests.contract_documents_search import FIELDS  # noqa: E402
from tests.stack.endpoints import OpenSearchEndpoint  # noqa: E402
from tests.stack.server import Server  # noqa: E402

pytestmark = pytest.mark.real


@pytest.fixture
def collection() -> str:
    return f"t-{uuid.uuid4().hex}"


@pytest.fixture
def settings(opensearch: Server[OpenSearchEndpoint]) -> StoresSettings:
    return StoresSettings(column="real", opensearch_url=opensearch.endpoint.url, opensearch_prefix="test-")


@pytest.fixture
async def open_documents(settings: StoresSettings) -> AsyncIterator[OpenDocuments]:
    opened: list[OpenSearchDocuments] = []

    def open_documents() -> OpenSearchDocuments:
        opened.append(OpenSearchDocuments(settings))
        return opened[-1]

    yield open_documents
    for documents in opened:
        await documents.close()
    async with httpx.AsyncClient(base_url=settings.opensearch_url, trust_env=False) as client:
        # Each test has its own index: thousands of them would fill the node.
        await client.delete("/test-*", params={"expand_wildcards": "all"})


@pytest.fixture
async def documents(open_documents: OpenDocuments, collection: str) -> Documents:
    documents = open_documents()
    await documents.ensure(Schema(collection, FIELDS))
    return documents


class TestOpenSearchDocuments(DocumentsContract):
    pass


async def test_a_person_finds_the_fields_under_their_own_names(
    documents: Documents, settings: StoresSettings, collection: str
) -> None:
    body = {"status": "open", "card": {"license": "MIT"}, "created_at": "2026-01-01T00:00:00.123456Z", "hidden": 1}
    await documents.save(collection, "a", body, expected=None)
    await documents.refresh(collection)

    async with httpx.AsyncClient(base_url=settings.opensearch_url, trust_env=False) as client:
        found = await client.get(
            f"/test-{collection}/_search", params={"q": "card.license:MIT AND created_at:2026-01-01"}
        )
        hidden = await client.get(f"/test-{collection}/_search", params={"q": "hidden:1"})
        index = await client.get(f"/_alias/test-{collection}")

    (hit,) = found.json()["hits"]["hits"]
    assert hit["_source"]["status"] == "open"
    assert hidden.json()["hits"]["hits"] == []
    assert list(index.json()) == [f"test-{collection}-000001"]


async def test_a_collection_that_was_deleted_is_not_made_by_a_save(
    documents: Documents, settings: StoresSettings, collection: str
) -> None:
    saved = await documents.save(collection, "a", {"status": "x"}, expected=None)
    async with httpx.AsyncClient(base_url=settings.opensearch_url, trust_env=False) as client:
        (await client.delete(f"/test-{collection}-000001")).raise_for_status()

        with pytest.raises((InvalidInput, VersionConflict)):
            await documents.save(collection, "a", {"status": "y"}, expected=saved.version)
        with pytest.raises(InvalidInput, match="ensure"):
            await documents.save(collection, "b", {}, expected=None)
        left = await client.get(f"/test-{collection}")

    assert left.status_code == 404


async def test_fields_whose_adding_was_broken_off_are_added_by_the_next_who_asks(
    open_documents: OpenDocuments, settings: StoresSettings, collection: str
) -> None:
    """A process that died between the mapping and the documents leaves a mapping with a field nobody was indexed by."""
    documents = open_documents()
    await documents.ensure(Schema(collection, (Field("status", FieldType.KEYWORD),)))
    await documents.create_many(collection, [(f"d{n}", {"status": "x", "n": n}) for n in range(250)])
    async with httpx.AsyncClient(base_url=settings.opensearch_url, trust_env=False) as client:
        broken_off = {"properties": {"n": {"type": "long"}}, "_meta": {"indexed": ["status"]}}
        (await client.put(f"/test-{collection}/_mapping", json=broken_off)).raise_for_status()

    await open_documents().ensure(Schema(collection, (Field("n", FieldType.INTEGER),)))
    await documents.refresh(collection)

    page = await open_documents().search(collection, Query(filters=(Filter("n", "gte", 200),), limit=1))
    assert page.total == 50


async def test_a_server_that_is_down_at_the_start_is_told_and_used_when_it_comes(
    opensearch: Server[OpenSearchEndpoint], open_documents: OpenDocuments, collection: str
) -> None:
    documents = open_documents()
    opensearch.kill()
    for attempt in (
        documents.check(),
        documents.ensure(Schema(collection, FIELDS)),
        documents.get(collection, "a"),
        documents.save(collection, "a", {}, expected=None),
        documents.search(collection, Query()),
    ):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="is it up"):
            await attempt
        assert time.monotonic() - began < 5

    await asyncio.to_thread(opensearch.restart)

    await documents.check()
    await documents.ensure(Schema(collection, FIELDS))
    await documents.save(collection, "a", {"status": "x"}, expected=None)


async def test_what_was_saved_survives_a_power_cut(
    opensearch: Server[OpenSearchEndpoint], documents: Documents, collection: str, eventually: object
) -> None:
    saved = await documents.save(collection, "a", {"status": "x"}, expected=None)
    opensearch.kill()
    with pytest.raises(StoreUnavailable):
        await documents.save(collection, "a", {"status": "y"}, expected=saved.version)

    await asyncio.to_thread(opensearch.restart)

    read = await documents.get(collection, "a")
    assert read is not None
    assert read.body == {"status": "x"}
    # Another primary may hold it now, but the version that was read still names the same write.
    await documents.save(collection, "a", {"status": "z"}, expected=read.version)


async def test_a_server_that_does_not_answer_is_given_up_in_time(
    opensearch: Server[OpenSearchEndpoint], settings: StoresSettings, collection: str
) -> None:
    documents = OpenSearchDocuments(settings.model_copy(update={"timeout_ms": 2_000}))
    await documents.ensure(Schema(collection, FIELDS))
    opensearch.pause()

    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="did not answer"):
        await documents.get(collection, "a")
    waited = time.monotonic() - began
    opensearch.resume()

    assert waited < 5
    await documents.check()
    await documents.close()


@pytest.mark.parametrize("url", ["", "127.0.0.1:9200", "ftp://x", "http://user:hunter2@127.0.0.1:9200"])
def test_what_is_no_opensearch_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="STORES_OPENSEARCH_URL") as refused:
        OpenSearchDocuments(StoresSettings(opensearch_url=url))

    assert "hunter2" not in str(refused.value)
