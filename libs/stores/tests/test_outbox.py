"""The outbox on the embedded column."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from modelworks.stores.bus.sqlite import SqliteBus
from modelworks.stores.documents.sqlite import SqliteDocuments

pytest.register_assert_rewrite("libs.stores.tests.contract_outbox")

from libs.stores.tests.contract_outbox import Column, OpenColumn, OutboxContract  # noqa: E402


class TestOutboxEmbedded(OutboxContract):
    @pytest.fixture
    def environment(self, tmp_path: Path) -> dict[str, str]:
        return {"STORES_COLUMN": "embedded", "STORES_DATA": str(tmp_path)}

    @pytest.fixture
    async def open_column(self, tmp_path: Path) -> AsyncIterator[OpenColumn]:
        opened: list[Column] = []

        def open_column() -> Column:
            bus, documents = SqliteBus(tmp_path / "bus.sqlite"), SqliteDocuments(tmp_path / "documents.sqlite")
            opened.append(Column(documents, bus))
            return opened[-1]

        yield open_column
        for column in opened:
            await column.bus.close()
            await column.documents.close()
