"""The real adapter: Redis 6.2 or newer (GETDEL)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from modelworks.kit.errors import InvalidInput
from modelworks.stores.keyvalue.client import RedisClientKeyValue
from modelworks.stores.settings import StoresSettings

if TYPE_CHECKING:
    from redis.asyncio import Redis

_CONNECTIONS_MAX = 64


class RedisKeyValue(RedisClientKeyValue):
    """Key-value state of the suite."""

    def __init__(self, settings: StoresSettings) -> None:
        """Makes no connection yet.

        Raises:
            InvalidInput: `redis_url` is not a Redis URL.
        """
        url, timeout = settings.redis_url.get_secret_value(), settings.timeout_ms / 1000
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise InvalidInput("STORES_REDIS_URL is not a Redis URL: give redis://[:password@]host:port/0")

        async def connect() -> Redis:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff

            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS_MAX,
                timeout=timeout,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                health_check_interval=30,
                # A command that may have been done is not sent again: `add` and `take` would lie.
                retry=Retry(NoBackoff(), 0),
            )
            return Redis.from_pool(pool)

        # Never the URL itself: it holds the password.
        super().__init__(connect, where=f"at {parts.hostname or parts.path}:{parts.port or 6379}")
