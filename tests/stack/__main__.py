"""The command for people: `python -m tests.stack up | fetch | doctor`."""

import argparse
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tests.stack import artifacts
from tests.stack.artifacts import say
from tests.stack.containers import docker_answers
from tests.stack.endpoints import Endpoint, KafkaEndpoint, MinioEndpoint, OpenSearchEndpoint, RedisEndpoint
from tests.stack.errors import StackError, Unavailable
from tests.stack.native.kafka import KafkaServer
from tests.stack.native.minio import MinioServer
from tests.stack.native.opensearch import OpenSearchServer
from tests.stack.native.redis import RedisServer
from tests.stack.stack import Stack

_SERVERS = (KafkaServer, OpenSearchServer, MinioServer, RedisServer)
_ENDPOINTS: tuple[type[Endpoint], ...] = (KafkaEndpoint, OpenSearchEndpoint, MinioEndpoint, RedisEndpoint)


def up(env_file: Path | None) -> int:
    """Start everything natively, print the endpoints and stay until Ctrl-C or SIGTERM."""
    asked_to_end = threading.Event()

    def interrupt(*_: object) -> NoReturn:
        asked_to_end.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    stack = Stack(native_only=True)
    started = time.monotonic()
    try:
        say("starting kafka, opensearch, minio and redis")
        stack.start()
        lines = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in stack.environment().items())
        print(lines, end="", flush=True)
        if env_file:
            _write_secret(env_file, lines)
        say(f"all serve after {time.monotonic() - started:.1f} s; Ctrl-C ends them and removes their data")
        asked_to_end.wait()
    except KeyboardInterrupt:
        say("stopping")
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stack.stop()
        if env_file:
            env_file.unlink(missing_ok=True)
    return 0


def _write_secret(path: Path, text: str) -> None:
    """Write for the owner's eyes only: the lines carry the passwords of this start."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def fetch() -> int:
    """Fill the cache for all four and say what could not be had."""
    failed = 0
    for server in _SERVERS:
        try:
            server.fetch()
            say(f"{server.name}: ready to start")
        except Unavailable as error:
            failed += 1
            say(f"{server.name}: {error}")
    return 1 if failed else 0


def doctor() -> int:
    """Print what is present and what is missing, and where the tests would take each server from."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("cache", lambda: str(artifacts.cache_folder())),
        ("docker engine", lambda: "answers, used by the tests" if docker_answers() else "none, native is used"),
        ("java for kafka", lambda: artifacts.java(17)),
        ("java for opensearch", lambda: artifacts.java(21, compiler=True)),
        ("kafka", lambda: _describe(artifacts.jars("kafka"))),
        ("opensearch", lambda: _describe(artifacts.jars("opensearch"))),
        ("minio", lambda: _describe(artifacts.minio())),
        ("redis", lambda: artifacts.redis_server(install=False)),
    ]
    healthy = True
    for name, check in checks:
        try:
            print(f"ok       {name}: {check()}")
        except Unavailable as error:
            healthy = False
            print(f"missing  {name}: {error}")
    for endpoint in _ENDPOINTS:
        if endpoint.from_environment():
            print(f"note     {endpoint.name}: the environment names one, the tests use that")
    return 0 if healthy else 1


def _describe(artifact: artifacts.Artifact) -> str:
    if reason := artifact.missing():
        raise Unavailable(reason)
    return str(artifact.path) if artifact.present else f"not fetched yet, `{artifact.tool}` will"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stack", description="The real servers, natively.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="fill the cache, start nothing")
    commands.add_parser("doctor", help="say what is present and what is missing")
    start = commands.add_parser("up", help="start everything and stay until Ctrl-C")
    start.add_argument("--env-file", type=Path, help="also write the lines here (mode 0600), removed at the end")
    arguments = parser.parse_args()
    try:
        if arguments.command == "up":
            return up(arguments.env_file)
        return fetch() if arguments.command == "fetch" else doctor()
    except StackError as error:
        say(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
