"""The outbox on OpenSearch and Kafka."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest
from modelworks.stores.bus.kafka import KafkaBus
from modelworks.stores.documents.opensearch import OpenSearchDocuments
from modelworks.stores.settings import StoresSettings

from tests.stack.endpoints import KafkaEndpoint, OpenSearchEndpoint
from tests.stack.server import Server

pytest.register_assert_rewrite("libs.stores.tests.contract_outbox")

from libs.stores.tests.contract_outbox import Column, OpenColumn, OutboxContract  # noqa: E402

pytestmark = pytest.mark.real


class TestOutboxReal(OutboxContract):
    @pytest.fixture
    def environment(self, kafka: Server[KafkaEndpoint], opensearch: Server[OpenSearchEndpoint]) -> dict[str, str]:
        return {
            "STORES_COLUMN": "real",
            "STORES_KAFKA_PARTITIONS": "2",
            "STORES_OPENSEARCH_PREFIX": f"outbox-{uuid.uuid4().hex[:8]}-",
            **kafka.endpoint.environment(),
            **opensearch.endpoint.environment(),
        }

    @pytest.fixture
    async def open_column(
        self, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[OpenColumn]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        settings = StoresSettings()
        opened: list[Column] = []

        def open_column() -> Column:
            bus = KafkaBus(settings, session=timedelta(seconds=3))
            opened.append(Column(OpenSearchDocuments(settings), bus))
            return opened[-1]

        yield open_column
        for column in opened:
            await column.bus.close()
            await column.documents.close()
        async with httpx.AsyncClient(base_url=settings.opensearch_url, trust_env=False) as client:
            await client.delete(f"/{settings.opensearch_prefix}*", params={"expand_wildcards": "all"})
