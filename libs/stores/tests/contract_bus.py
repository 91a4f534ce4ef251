"""What every bus does. Each adapter's test module subclasses `BusContract` and gives the fixture `open_bus`."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "libs.stores.tests.contract_bus_failures",
    "libs.stores.tests.contract_bus_messages",
    "libs.stores.tests.contract_bus_work",
)

from libs.stores.tests.contract_bus_failures import FailuresContract  # noqa: E402
from libs.stores.tests.contract_bus_messages import MessagesContract  # noqa: E402
from libs.stores.tests.contract_bus_work import WorkContract  # noqa: E402


class BusContract(MessagesContract, FailuresContract, WorkContract):
    """All of it."""
