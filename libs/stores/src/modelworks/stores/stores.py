"""All four ports of one column, opened and closed together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from modelworks.kit.errors import InvalidInput
from modelworks.stores.bus.port import Bus
from modelworks.stores.documents.port import Documents
from modelworks.stores.keyvalue.port import KeyValue
from modelworks.stores.objects.port import Objects, PresignedDoor
from modelworks.stores.settings import StoresSettings


@dataclass(frozen=True)
class Stores:
    """The four ports."""

    bus: Bus
    objects: Objects
    documents: Documents
    keyvalue: KeyValue
    presigned: PresignedDoor | None = None
    """None: the object store answers presigned requests itself."""

    async def close(self) -> None:
        """Close all, the bus first: its consumers use the others."""
        for store in (self.bus, self.documents, self.objects, self.keyvalue):
            await store.close()


def open_stores(settings: StoresSettings, *, environment: str) -> Stores:
    """The column that the settings name. Makes no connection yet: adapters connect on first use.

    Raises:
        InvalidInput: the embedded column in production, or an endpoint of the real column is not set.
    """
    if settings.column == "embedded":
        if environment == "production":
            raise InvalidInput(
                "the embedded column is refused when MODELWORKS_ENVIRONMENT=production: set STORES_COLUMN=real"
            )
        return _embedded(settings)
    missing = [
        f"STORES_{name.upper()}"
        for name in ("kafka_bootstrap", "opensearch_url", "s3_endpoint", "s3_access_key", "s3_secret_key", "redis_url")
        if not _text(settings, name)
    ]
    if missing:
        raise InvalidInput(f"the real column needs {', '.join(missing)}: set them in the environment")
    return _real(settings)


@asynccontextmanager
async def opened(settings: StoresSettings, *, environment: str = "development") -> AsyncIterator[Stores]:
    """`open_stores`, closed on leaving."""
    stores = open_stores(settings, environment=environment)
    try:
        yield stores
    finally:
        await stores.close()


def _text(settings: StoresSettings, name: str) -> str:
    value = getattr(settings, name)
    return value if isinstance(value, str) else str(value.get_secret_value())


def _embedded(settings: StoresSettings) -> Stores:
    from modelworks.stores.bus.sqlite import SqliteBus
    from modelworks.stores.documents.sqlite import SqliteDocuments
    from modelworks.stores.keyvalue.embedded import EmbeddedKeyValue
    from modelworks.stores.objects.folder import FolderObjects

    objects = FolderObjects(settings.data / "objects")
    return Stores(
        bus=SqliteBus(settings.data / "bus.sqlite"),
        objects=objects,
        presigned=objects,
        documents=SqliteDocuments(settings.data / "documents.sqlite"),
        keyvalue=EmbeddedKeyValue(),
    )


def _real(settings: StoresSettings) -> Stores:
    from modelworks.stores.bus.kafka import KafkaBus
    from modelworks.stores.documents.opensearch import OpenSearchDocuments
    from modelworks.stores.keyvalue.redis import RedisKeyValue
    from modelworks.stores.objects.s3 import S3Objects

    return Stores(
        bus=KafkaBus(settings),
        objects=S3Objects(settings),
        documents=OpenSearchDocuments(settings),
        keyvalue=RedisKeyValue(settings),
    )
