"""The bus contract on Kafka, and what only this adapter promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from modelworks.stores.bus.kafka import KafkaBus
from modelworks.stores.settings import StoresSettings

from tests.stack.endpoints import KafkaEndpoint
from tests.stack.server import Server

pytest.register_assert_rewrite("libs.stores.tests.contract_bus")

from libs.stores.tests.contract_bus import BusContract, OpenBus  # noqa: E402

pytestmark = pytest.mark.real


@pytest.fixture
def settings(kafka: Server[KafkaEndpoint]) -> StoresSettings:
    return StoresSettings(column="real", kafka_bootstrap=kafka.endpoint.bootstrap, kafka_partitions=4)


@pytest.fixture
async def open_bus(settings: StoresSettings) -> AsyncIterator[OpenBus]:
    opened: list[KafkaBus] = []

    def open_bus(*, drain: timedelta = timedelta(seconds=10)) -> KafkaBus:
        opened.append(KafkaBus(settings, drain=drain, session=timedelta(seconds=3)))
        return opened[-1]

    yield open_bus
    for bus in opened:
        await bus.close()


class TestKafkaBus(BusContract):
    """The contract."""
