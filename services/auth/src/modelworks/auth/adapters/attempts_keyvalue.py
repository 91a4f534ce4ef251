"""Failed logins, counted for a minute in the key-value store."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from datetime import timedelta
from ipaddress import IPv6Address, ip_address

from modelworks.auth.settings import AuthSettings
from modelworks.kit.errors import RateLimited, StoreUnavailable
from modelworks.kit.logging import get_logger
from modelworks.stores import KeyValue

_WINDOW = timedelta(minutes=1)
_KNOWN_FOR = timedelta(hours=12)
_KNOWN_RENEWED_SECONDS = 3600.0
_KNOWN_MAX = 10_000
_ASKING_MAX = 32
"""Questions at once: a flood waits here, and does not use up the store's connections, which would let it in uncounted."""

log = get_logger("attempts")


class KeyValueAttempts:
    """See `ports.Attempts`."""

    def __init__(self, keyvalue: KeyValue, settings: AuthSettings) -> None:
        self._keyvalue = keyvalue
        self._pair_max = settings.failures_per_minute_max
        self._address_max = settings.address_failures_per_minute_max
        self._client_max = settings.client_failures_per_minute_max
        # What was told to the store lately, so that each token does not cost it a write.
        self._told: OrderedDict[str, float] = OrderedDict()
        self._asking = asyncio.Semaphore(_ASKING_MAX)

    async def admit(self, client_id: str, address: str) -> None:
        pair, source, client = _keys(client_id, address)
        try:
            async with self._asking:
                pairs, sources, clients = [int(await self._keyvalue.get(key) or 0) for key in (pair, source, client)]
                crowded = sources >= self._address_max or clients >= self._client_max
                stranger = crowded and await self._keyvalue.get(_known(client_id, address)) is None
        except StoreUnavailable as error:
            log.warning("attempts.not-counted", error=error.message)
            return
        if pairs >= self._pair_max or stranger:
            seconds = int(_WINDOW.total_seconds())
            raise RateLimited(f"too many failed logins: wait {seconds} s", retry_after_seconds=seconds)

    async def failed(self, client_id: str, address: str) -> None:
        try:
            async with self._asking:
                for key in _keys(client_id, address):
                    await self._keyvalue.increment(key, expires=_WINDOW)
        except StoreUnavailable as error:
            log.warning("attempts.not-counted", error=error.message)

    async def succeeded(self, client_id: str, address: str) -> None:
        key, now = _known(client_id, address), time.monotonic()
        if now - self._told.get(key, float("-inf")) < _KNOWN_RENEWED_SECONDS:
            return
        try:
            await self._keyvalue.set(key, b"1", expires=_KNOWN_FOR)
        except StoreUnavailable as error:
            log.warning("attempts.not-counted", error=error.message)
            return
        self._told[key] = now
        self._told.move_to_end(key)
        while len(self._told) > _KNOWN_MAX:
            self._told.popitem(last=False)


def _keys(client_id: str, address: str) -> tuple[str, str, str]:
    source = _network(address)
    return f"auth:failed:{client_id}@{source}", f"auth:failed-from:{source}", f"auth:failed-as:{client_id}"


def _known(client_id: str, address: str) -> str:
    return f"auth:known:{client_id}@{_network(address)}"


def _network(address: str) -> str:
    """The address as it is counted: of IPv6 the first 64 bits, since one subscriber has them all."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:100]
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return parsed.exploded[:19]
    return str(parsed)
