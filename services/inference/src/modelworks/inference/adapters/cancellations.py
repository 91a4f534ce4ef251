"""Cancelled jobs as keys that expire: cheap to look at while a batch runs."""

from __future__ import annotations

from datetime import timedelta

from modelworks.stores.keyvalue.port import KeyValue

_EXPIRES = timedelta(hours=1)


class KeyValueCancellations:
    """`inference:cancelled:<job>`."""

    def __init__(self, keyvalue: KeyValue) -> None:
        self._keyvalue = keyvalue

    async def announce(self, job: str) -> None:
        """See Cancellations."""
        await self._keyvalue.set(_key(job), b"1", expires=_EXPIRES)

    async def announced(self, job: str) -> bool:
        """See Cancellations."""
        return await self._keyvalue.get(_key(job)) is not None


def _key(job: str) -> str:
    return f"inference:cancelled:{job}"
