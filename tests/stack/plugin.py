"""The servers as pytest fixtures: `kafka`, `opensearch`, `minio`, `redis_server`, and `stack` for all four.

They live for the whole session and start when the first test asks, each on its own. A test may kill or pause one:
it is brought back before the next test. Run them in one process: under xdist each worker has a session, and so a
stack, of its own.

What cannot be had here skips the test with the reason on a laptop and fails it in CI (`CI=true`) or with
`MODELWORKS_REQUIRE_STACK=1`.
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import NoReturn

import pytest

from tests.stack.endpoints import KafkaEndpoint, MinioEndpoint, OpenSearchEndpoint, RedisEndpoint
from tests.stack.errors import NotOwned, Unavailable
from tests.stack.server import Server
from tests.stack.stack import Name, Stack

FIXTURES = frozenset({"kafka", "opensearch", "minio", "redis_server", "stack"})
_STACK = pytest.StashKey[Stack]()


def required() -> bool:
    """Whether a missing server is a failure."""
    return os.environ.get("CI") == "true" or os.environ.get("MODELWORKS_REQUIRE_STACK") == "1"


def unavailable(reason: str) -> NoReturn:
    if required():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let a server's start take its time: the first test's limit must not count a download, which has its own."""
    if not config.pluginmanager.hasplugin("timeout"):
        return
    limit = float(config.getini("timeout") or 0)
    for item in items:
        needs_server = not FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
        if needs_server and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(limit, func_only=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    try:
        return (yield)
    except NotOwned as error:
        unavailable(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    result = yield
    if stack := item.config.stash.get(_STACK, None):
        stack.heal()
    return result


@pytest.fixture(scope="session")
def _servers(pytestconfig: pytest.Config) -> Iterator[Stack]:
    servers = pytestconfig.stash[_STACK] = Stack()
    yield servers
    del pytestconfig.stash[_STACK]
    servers.stop()


def _start(config: pytest.Config, servers: Stack, *names: Name) -> None:
    capture = config.pluginmanager.getplugin("capturemanager")
    # A download takes minutes; its progress must reach the terminal.
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        try:
            servers.start(*names)
        except Unavailable as error:
            unavailable(str(error))


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config, _servers: Stack) -> Server[KafkaEndpoint]:
    _start(pytestconfig, _servers, "kafka")
    return _servers.kafka


@pytest.fixture(scope="session")
def opensearch(pytestconfig: pytest.Config, _servers: Stack) -> Server[OpenSearchEndpoint]:
    _start(pytestconfig, _servers, "opensearch")
    return _servers.opensearch


@pytest.fixture(scope="session")
def minio(pytestconfig: pytest.Config, _servers: Stack) -> Server[MinioEndpoint]:
    _start(pytestconfig, _servers, "minio")
    return _servers.minio


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config, _servers: Stack) -> Server[RedisEndpoint]:
    _start(pytestconfig, _servers, "redis")
    return _servers.redis


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config, _servers: Stack) -> Stack:
    _start(pytestconfig, _servers)
    return _servers
