"""What a test may do with a server, whoever started it."""

import random
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol, TypeVar

from tests.stack.endpoints import Endpoint
from tests.stack.errors import NotOwned, StartFailed

E_co = TypeVar("E_co", bound=Endpoint, covariant=True)

_POLL_S = 0.1
# Below the range from which Linux (32768) and macOS (49152) take ports for outgoing connections: a server that
# is down for a moment finds its port free when it comes back.
_PORTS = range(20_000, 32_000)


class Server(Protocol[E_co]):
    """One server of the stack; the same port and data from `start` to `stop`."""

    @property
    def endpoint(self) -> E_co:
        """Where it serves; an error before the first `start`."""

    @property
    def origin(self) -> str:
        """`native`, `container` or `environment`."""

    def start(self) -> None:
        """Return once it serves: started, brought back after `kill`, or resumed. Nothing happens when it serves.

        Raises:
            Unavailable: this machine cannot have it.
            StartFailed: it did not come up within its limit; nothing of it is left.
        """

    def stop(self) -> None:
        """End it and remove its data; stopping again changes nothing."""

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL); its data stays for `restart`."""

    def restart(self) -> None:
        """End it politely where it runs, and start it on the same data and port."""

    def pause(self) -> None:
        """Freeze it: connections stay open and nobody answers."""

    def resume(self) -> None: ...


class External(Server[E_co]):
    """A server that the environment names: used, never started, harmed or stopped."""

    origin = "environment"

    def __init__(self, endpoint: E_co) -> None:
        self._endpoint = endpoint

    @property
    def endpoint(self) -> E_co:
        return self._endpoint

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None:
        self._refuse("kill")

    def restart(self) -> None:
        self._refuse("restart")

    def pause(self) -> None:
        self._refuse("pause")

    def resume(self) -> None:
        self._refuse("resume")

    def _refuse(self, fault: str) -> None:
        name = self._endpoint.name
        raise NotOwned(f"cannot {fault} {name}: the environment names it, so it is not ours; unset its variables")


def free_ports(count: int) -> list[int]:
    """That many ports of the loopback address on which nothing listens now."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.choice(_PORTS)
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def wait_until_ready(endpoint: Endpoint, limit: timedelta, ended: Callable[[], str | None]) -> None:
    """Probe until the endpoint answers.

    Raises:
        StartFailed: `ended` gave a reason, or the limit passed; the last failed probe is told.
    """
    deadline = time.monotonic() + limit.total_seconds()
    while True:
        try:
            endpoint.probe()
            return
        except Exception as error:  # whatever a client raises while its server comes up
            last = f"{type(error).__name__}: {error}"
        if reason := ended():
            raise StartFailed(f"{endpoint.name} {reason}")
        if time.monotonic() > deadline:
            raise StartFailed(f"{endpoint.name} did not serve within {limit}; last answer: {last}")
        time.sleep(_POLL_S)
