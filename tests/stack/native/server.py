"""What the four native servers share: one guarded process on a port and a folder that it keeps."""

import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from tests.stack.endpoints import Endpoint
from tests.stack.errors import StackError, StartFailed
from tests.stack.process import Guarded
from tests.stack.server import wait_until_ready

E = TypeVar("E", bound=Endpoint)

_PREPARE_LIMIT = timedelta(seconds=60)
_STOP_LIMIT = timedelta(seconds=15)
_KILL_LIMIT = timedelta(seconds=10)


class NativeServer(ABC, Generic[E]):
    """Starts, ends and brings back one program; a subclass says which, and how it is told its port and folder."""

    name: ClassVar[str]
    start_limit: ClassVar[timedelta] = timedelta(seconds=90)
    origin = "native"

    def __init__(self) -> None:
        self._guarded: Guarded | None = None
        self._endpoint: E | None = None
        self._paused = False

    @staticmethod
    @abstractmethod
    def fetch() -> None:
        """Make everything it needs present, or raise Unavailable."""

    @abstractmethod
    def configure(self, folder: Path) -> E:
        """Choose ports and credentials and write the configuration; called once."""

    @abstractmethod
    def command(self, folder: Path) -> Sequence[str]:
        """What runs the server; the same at every restart."""

    def preparation(self, folder: Path) -> Sequence[str] | None:
        """A command that has to succeed once before the first start."""
        return None

    def process_environment(self) -> Mapping[str, str]:
        """Additions to the environment of the process: the place for secrets that a command line would show."""
        return {}

    @property
    def endpoint(self) -> E:
        if self._endpoint is None:
            raise StackError(f"{self.name} has no endpoint before it is started")
        return self._endpoint

    @property
    def pid(self) -> int | None:
        """Of the server's process, None while it is down."""
        return self._guarded.pid if self._guarded else None

    @property
    def folder(self) -> Path | None:
        """Its data, configuration and log; None before `start` and after `stop`."""
        return self._guarded.folder if self._guarded else None

    def start(self) -> None:
        if self._paused:
            self.resume()
        if self.pid is not None:
            return
        try:
            guarded = self._guarded or self._prepare()
            guarded.run(self.command(guarded.folder), self.process_environment())
            self._await_ready(guarded)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        guarded, self._guarded, self._endpoint = self._guarded, None, None
        if guarded is not None:
            self._end(guarded)
            guarded.close()

    def kill(self) -> None:
        guarded = self._running()
        guarded.signal(signal.SIGKILL)
        guarded.wait(_KILL_LIMIT)
        self._paused = False

    def restart(self) -> None:
        self._end(self._running())
        self.start()

    def pause(self) -> None:
        self._running().signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        self._running().signal(signal.SIGCONT)
        self._paused = False

    def _running(self) -> Guarded:
        if self._guarded is None:
            raise StackError(f"{self.name} is not started")
        return self._guarded

    def _prepare(self) -> Guarded:
        self.fetch()
        guarded = self._guarded = Guarded(self.name)
        self._endpoint = self.configure(guarded.folder)
        if preparation := self.preparation(guarded.folder):
            guarded.run(preparation)
            if (code := guarded.wait(_PREPARE_LIMIT)) != 0:
                outcome = "did not finish" if code is None else f"exited with {code}"
                raise StartFailed(f"{self.name}: {' '.join(preparation)} {outcome}:\n{guarded.tail()}")
        return guarded

    def _await_ready(self, guarded: Guarded) -> None:
        try:
            wait_until_ready(
                self.endpoint, self.start_limit, lambda: "ended by itself" if guarded.pid is None else None
            )
        except StartFailed as error:
            raise StartFailed(f"{error}. The end of its log:\n{guarded.tail()}") from None

    def _end(self, guarded: Guarded) -> None:
        """Ask, then insist; a frozen process is woken first, since it cannot hear the request."""
        if guarded.pid is None:
            return
        guarded.signal(signal.SIGTERM)
        guarded.signal(signal.SIGCONT)
        self._paused = False
        if guarded.wait(_STOP_LIMIT) is None:
            guarded.signal(signal.SIGKILL)
            guarded.wait(_KILL_LIMIT)
