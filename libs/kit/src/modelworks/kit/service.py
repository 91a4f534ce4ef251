"""A service as a value, and the loop that runs one or several of them behind one listening socket."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import uvicorn
from modelworks.kit.errors import ModelworksError
from modelworks.kit.http import Check
from modelworks.kit.logging import configure_logging, get_logger
from modelworks.kit.platform import Platform, make_platform
from modelworks.kit.settings import PlatformSettings, S, Settings, explain, load_settings
from pydantic import ValidationError
from starlette.types import ASGIApp

log = get_logger("service")


@asynccontextmanager
async def nothing_to_run() -> AsyncIterator[None]:
    """For a service without consumers or background tasks."""
    yield


@dataclass(frozen=True)
class Service:
    """One service, composed and ready to run."""

    name: str
    app: ASGIApp
    run: Callable[[], AbstractAsyncContextManager[None]] = nothing_to_run
    """Opens what the service needs and starts its consumers; on leaving, drains and closes them."""
    checks: Mapping[str, Check] = field(default_factory=dict)
    """What its readiness asks, by name."""


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        ModelworksError: the port is in use, or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise ModelworksError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another with --port (0 takes a free one)"
        ) from error
    sock.setblocking(False)
    return sock


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: when to stop is decided by `serve`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    app: ASGIApp,
    sock: socket.socket,
    *,
    services: Sequence[Service],
    drain_seconds_max: int = 15,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Run services until SIGTERM or SIGINT; then stop taking requests, finish those under way, drain consumers.

    The services' `run` contexts are entered in order and left in the opposite one. A signal while they are starting
    cancels the start; a second signal while requests are being finished cuts them off.
    """
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", server_header=False, date_header=False,
        timeout_graceful_shutdown=drain_seconds_max, timeout_keep_alive=30, h11_max_incomplete_event_size=64 * 1024,
        # A caller's X-Forwarded-For is believed by the service that says whom it trusts (auth), never here.
        proxy_headers=False,
    )  # fmt: skip
    server = _Server(config)
    stop = asyncio.Event()
    starting = asyncio.current_task()

    def on_signal() -> None:
        server.force_exit = stop.is_set()
        stop.set()
        if starting is not None:
            starting.cancel()

    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, on_signal)
    listening = asyncio.create_task(server.serve(sockets=[sock]), name="http")
    try:
        # The door opens first: services ask each other (keys, models) through it while they start.
        while not (server.started or listening.done()):  # noqa: ASYNC110 - uvicorn offers no event
            await asyncio.sleep(0.005)
        async with AsyncExitStack() as stack:
            for service in services:
                await stack.enter_async_context(service.run())
                log.info("service.started", service=service.name)
            starting = None
            # What was imported and built stays for good: full passes over it cost 40 to 130 ms each.
            gc.collect()
            gc.freeze()
            on_ready()
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({stopping, listening}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            server.should_exit = True
            await listening
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        log.info("service.start-cancelled")
    finally:
        server.should_exit = True
        await asyncio.gather(listening, return_exceptions=True)


def settings_or_exit(name: str, kind: type[S]) -> S:
    """The settings from the environment; exits 1 with one line when variables are missing or wrong."""
    try:
        return load_settings(kind)
    except ModelworksError as error:
        _exit(name, error.message)


def _exit(name: str, message: str) -> NoReturn:
    print(f"{name}: {message}", file=sys.stderr)  # noqa: T201 - a user's mistake gets a line, not a traceback
    sys.exit(1)


def run_service(name: str, settings: Settings, build: Callable[[Platform], Service]) -> None:
    """The `main` of a service in a process of its own; exits 1 with one clear line when it cannot start.

    `build` is called inside the event loop's thread before the loop runs; it must not do I/O.
    """
    shared = settings_or_exit(name, PlatformSettings)
    configure_logging(level=shared.log_level, style=shared.log_format)
    log.info("service.settings", service=name, **shared.public(), **settings.public())
    try:
        platform = make_platform(shared, process=name)
        service = build(platform)
        sock = listen(shared.host, shared.port)
    except ValidationError as error:
        _exit(name, explain(error))
    except (ModelworksError, ValueError) as error:
        _exit(name, str(error))
    run_until_stopped(lambda: serve(service.app, sock, services=[service]))


def run_until_stopped(main: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run the event loop (uvloop where it is installed); a ModelworksError ends the process with one line."""
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    try:
        with runner:
            runner.run(main())
    except ModelworksError as error:
        print(error.message, file=sys.stderr)  # noqa: T201
        sys.exit(1)
