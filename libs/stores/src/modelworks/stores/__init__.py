"""The four ports to the outside, and two adapters for each: embedded (one process, durable on disk) and real servers.

A service asks for a port and never learns which adapter it got. Both columns
pass the same contract suites (`libs/stores/tests/contract_*.py`).
"""

from modelworks.stores.bus.port import (
    Bus,
    Consumer,
    DeadLetter,
    Delivery,
    Lag,
    Message,
    PermanentFailure,
    RetryPolicy,
    Subscription,
)
from modelworks.stores.documents.port import (
    Document,
    Documents,
    Field,
    FieldType,
    Filter,
    Hit,
    Page,
    Query,
    Schema,
    Sort,
    Version,
)
from modelworks.stores.keyvalue.port import KeyValue, Lock
from modelworks.stores.objects.port import ObjectInfo, Objects, Part, PresignedRequest

__all__ = [
    "Bus",
    "Consumer",
    "DeadLetter",
    "Delivery",
    "Document",
    "Documents",
    "Field",
    "FieldType",
    "Filter",
    "Hit",
    "KeyValue",
    "Lag",
    "Lock",
    "Message",
    "ObjectInfo",
    "Objects",
    "Page",
    "Part",
    "PermanentFailure",
    "PresignedRequest",
    "Query",
    "RetryPolicy",
    "Schema",
    "Sort",
    "Subscription",
    "Version",
]
