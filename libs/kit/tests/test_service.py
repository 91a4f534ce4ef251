"""A service as a process: it starts with one clear line or not at all, and stops without cutting anybody off."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from modelworks.kit.errors import ModelworksError
from modelworks.kit.service import listen

PROBE = """
    import asyncio, contextlib, sys
    from fastapi import APIRouter
    from modelworks.kit.errors import ModelworksError, StoreUnavailable
    from modelworks.kit.http import create_app, ignore_refusal
    from modelworks.kit.service import Service, run_service, serve, listen, run_until_stopped, settings_or_exit
    from modelworks.kit.settings import Settings
    from pydantic import Field
    from pydantic_settings import SettingsConfigDict

    def say(text):
        print(text, flush=True)

    class ProbeSettings(Settings):
        model_config = SettingsConfigDict(env_prefix="PROBE_", frozen=True, extra="ignore", hide_input_in_errors=True)
        size_bytes: int = Field(1, ge=1, le=10, description="")

    def context(name, *, enter=None):
        @contextlib.asynccontextmanager
        async def run():
            say(f"enter {name}")
            if enter:
                await enter()
            try:
                yield
            finally:
                say(f"leave {name}")
        return run

    router = APIRouter()

    @router.get("/slow")
    async def slow():
        say("slow began")
        await asyncio.sleep(0.6)
        say("slow ended")
        return {"done": True}

    @router.get("/endless")
    async def endless():
        say("endless began")
        await asyncio.Event().wait()

    def build(platform, **options):
        app = create_app("probe", platform, routers=[router], record=ignore_refusal)
        return Service("probe", app, context("probe", **options))
"""
MAIN = "run_service('probe', settings_or_exit('probe', ProbeSettings), build)"


class Process:
    """A Python process whose lines can be waited for."""

    def __init__(self, folder: Path, script: str, **environment: str) -> None:
        (folder / "probe.py").write_text(textwrap.dedent(PROBE) + "\n" + textwrap.dedent(script))
        self.out = folder / "out.txt"
        self.err = folder / "err.txt"
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        settings = {"MODELWORKS_ISSUER": "http://127.0.0.1:1", "MODELWORKS_LOG_FORMAT": "json", **environment}
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self._popen = subprocess.Popen(
                [sys.executable, str(folder / "probe.py")], stdout=out, stderr=err, env=inherited | settings
            )

    def lines(self) -> list[str]:
        return self.out.read_text().splitlines()

    def wait_for(self, line: str, *, within: float = 20) -> None:
        deadline = time.monotonic() + within
        while line not in self.lines():
            assert self._popen.poll() is None or line in self.lines(), self.err.read_text()
            assert time.monotonic() < deadline, f"no {line!r} within {within} s: {self.err.read_text()}"
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def exit_code(self, *, within: float = 20) -> int:
        return self._popen.wait(within)

    def stop(self) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def launch(script: str = MAIN, **environment: str) -> Process:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Process(folder, script, **environment))
        return started[-1]

    yield launch
    for process in started:
        process.stop()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def begin_request(port: int, path: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n".encode())
    return sock


def answer_of(sock: socket.socket) -> bytes:
    with sock:
        return b"".join(iter(lambda: sock.recv(65536), b""))


# --- starting


def test_port_in_use_is_one_clear_line_and_exit_1(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        process = start(MODELWORKS_PORT=str(port), MODELWORKS_LOG_LEVEL="error")

        assert process.exit_code() == 1
    [line] = process.err.read_text().splitlines()
    assert re.match(rf"probe: cannot listen on 127.0.0.1:{port}: .*in use.*--port", line)
    assert process.lines() == []


def test_address_that_is_not_ours_is_a_clear_error() -> None:
    with pytest.raises(ModelworksError, match=r"cannot listen on 192\.0\.2\.1:0"):
        listen("192.0.2.1", 0)


def test_name_that_is_no_address_is_a_clear_error() -> None:
    with pytest.raises(ModelworksError, match=r"cannot listen on no-such-host\.invalid:0"):
        listen("no-such-host.invalid", 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_0_takes_a_free_one(host: str) -> None:
    with listen(host, 0) as sock:
        assert sock.getsockname()[1] > 0


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"MODELWORKS_ISSUER": ""}, "probe: MODELWORKS_ISSUER is not set"),
        ({"MODELWORKS_PORT": "many"}, "probe: MODELWORKS_PORT: Input should be a valid integer"),
        ({"PROBE_SIZE_BYTES": "11"}, "probe: PROBE_SIZE_BYTES: Input should be less than or equal to 10"),
    ],
    ids=str,
)
def test_wrong_setting_is_one_clear_line_and_exit_1(start: Start, environment: dict[str, str], text: str) -> None:
    process = start(MODELWORKS_LOG_LEVEL="error", **{"MODELWORKS_PORT": "0", **environment})

    assert process.exit_code() == 1
    [line] = process.err.read_text().splitlines()
    assert line.startswith(text)


def test_start_that_fails_is_one_clear_line_and_exit_1_and_leaves_what_was_entered(start: Start) -> None:
    script = """
        async def fail():
            raise StoreUnavailable("documents at http://127.0.0.1:9200 do not answer: start them")

        def build_two(platform):
            global first
            first = build(platform)
            return Service("probe", first.app, both)

        @contextlib.asynccontextmanager
        async def both():
            async with first.run(), context("second", enter=fail)():
                yield

        run_service("probe", ProbeSettings(), build_two)
    """
    process = start(script, MODELWORKS_PORT="0", MODELWORKS_LOG_LEVEL="error")

    assert process.exit_code() == 1
    assert process.err.read_text().splitlines() == ["documents at http://127.0.0.1:9200 do not answer: start them"]
    assert process.lines() == ["enter probe", "enter second", "leave probe"]


def test_start_prints_the_settings(start: Start) -> None:
    process = start(MODELWORKS_PORT="0")
    process.wait_for("enter probe")
    process.signal(signal.SIGTERM)

    assert process.exit_code() == 0
    assert '"size_bytes": 1' in process.err.read_text()


# --- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_the_request_under_way_finish_before_services_are_left(start: Start, number: int) -> None:
    port = free_port()
    process = start(MODELWORKS_PORT=str(port))
    process.wait_for("enter probe")
    request = begin_request(port, "/slow")
    process.wait_for("slow began")

    process.signal(number)

    assert answer_of(request).endswith(b'{"done":true}')
    assert process.exit_code() == 0
    assert process.lines() == ["enter probe", "slow began", "slow ended", "leave probe"]


def test_new_requests_are_not_taken_while_stopping(start: Start) -> None:
    port = free_port()
    process = start(MODELWORKS_PORT=str(port))
    process.wait_for("enter probe")
    request = begin_request(port, "/slow")
    process.wait_for("slow began")
    process.signal(signal.SIGTERM)

    deadline = time.monotonic() + 5
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5)
        except httpx.TransportError:
            break
        assert time.monotonic() < deadline, "the door is still open"
    assert answer_of(request).endswith(b'{"done":true}')


MANY = """
    from modelworks.kit.logging import configure_logging
    from modelworks.kit.platform import make_platform
    from modelworks.kit.settings import PlatformSettings

    configure_logging()
    platform = make_platform(PlatformSettings(), process="probe")
    app = build(platform).app
    services = [Service(name, app, context(name)) for name in ("a", "b", "c")]
    sock = listen("127.0.0.1", PlatformSettings().port)
    run_until_stopped(lambda: serve(app, sock, services=services, drain_seconds_max=DRAIN, on_ready=lambda: say("ready")))
"""


def test_services_are_left_in_the_opposite_order_of_their_start(start: Start) -> None:
    process = start(MANY.replace("DRAIN", "5"), MODELWORKS_PORT="0")
    process.wait_for("ready")

    process.signal(signal.SIGTERM)

    assert process.exit_code() == 0
    assert process.lines() == ["enter a", "enter b", "enter c", "ready", "leave c", "leave b", "leave a"]


def test_request_that_does_not_end_is_cut_off_after_the_drain_time(start: Start) -> None:
    port = free_port()
    process = start(MANY.replace("DRAIN", "1"), MODELWORKS_PORT=str(port))
    process.wait_for("ready")
    with begin_request(port, "/endless"):
        process.wait_for("endless began")
        began = time.monotonic()
        process.signal(signal.SIGTERM)

        assert process.exit_code() == 0
    assert 0.9 < time.monotonic() - began < 8
    assert process.lines()[-3:] == ["leave c", "leave b", "leave a"]


def test_second_signal_does_not_wait_for_requests(start: Start) -> None:
    port = free_port()
    process = start(MANY.replace("DRAIN", "600"), MODELWORKS_PORT=str(port))
    process.wait_for("ready")
    with begin_request(port, "/endless"):
        process.wait_for("endless began")
        process.signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.exit_code(within=1)

        process.signal(signal.SIGINT)

        assert process.exit_code(within=10) == 0
    assert process.lines()[-3:] == ["leave c", "leave b", "leave a"]


def test_signal_while_starting_cancels_the_start_and_leaves_what_was_entered(start: Start) -> None:
    script = MANY.replace("DRAIN", "5").replace(
        "context(name)) for",
        "context(name, enter=asyncio.Event().wait if name == 'b' else None)) for",
    )
    process = start(script, MODELWORKS_PORT="0")
    process.wait_for("enter b")

    process.signal(signal.SIGTERM)

    assert process.exit_code() == 0
    assert process.lines() == ["enter a", "enter b", "leave a"]


def test_door_is_open_while_services_start(start: Start) -> None:
    """Services ask each other through the door for keys and models while they start."""
    port = free_port()
    script = """
        import httpx
        from modelworks.kit.settings import PlatformSettings

        async def ask():
            async with httpx.AsyncClient() as http:
                answer = await http.get(f"http://127.0.0.1:{PlatformSettings().port}/healthz")
            say(f"asked {answer.status_code}")

        run_service("probe", ProbeSettings(), lambda platform: build(platform, enter=ask))
    """
    process = start(script, MODELWORKS_PORT=str(port))

    process.wait_for("asked 200")
