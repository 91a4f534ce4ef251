"""The pinned programs of the real servers: found in the user's cache, fetched into it once.

Whatever is fetched appears under its final name in one rename, under a lock, so that an interrupted or a second
run never meets a half of it. The name carries the version: another pin is another folder.
"""

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from xml.etree import ElementTree

from tests.stack.errors import Unavailable

MINIO_VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
"""The last commit of the community edition."""

_POMS = Path(__file__).with_name("poms")
_HEARTBEAT = timedelta(seconds=5)
_FETCH_LIMIT = timedelta(minutes=20)
_TAIL_LINES = 15


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "modelworks"


def say(message: str) -> None:
    """One line of progress for whoever waits."""
    print(f"stack: {message}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Artifact:
    """One program, or one folder of jars, in the cache."""

    name: str
    path: Path
    tool: str
    """The program that fetches it."""
    hint: str
    """How to get that tool."""
    commands: Callable[[Path], tuple[Sequence[str], dict[str, str]]]
    """The command, with its additions to the environment, that fills a given folder."""

    @property
    def present(self) -> bool:
        return self.path.exists()

    def missing(self) -> str | None:
        """Why it can neither be used nor fetched, None when it can."""
        if self.present or shutil.which(self.tool):
            return None
        return f"{self.name} is not in {self.path.parent} and `{self.tool}` is not on PATH: {self.hint}"

    def fetch(self) -> Path:
        """Its path, fetched first where it is missing.

        Raises:
            Unavailable: the tool is missing or failed, for example without a network.
        """
        if self.present:
            return self.path
        with _lock(self.path):
            if self.present:  # another run was faster
                return self.path
            if reason := self.missing():
                raise Unavailable(reason)
            for leftover in self.path.parent.glob(f".{self.path.name}-*"):
                shutil.rmtree(leftover)  # of a run that was killed; the lock says that nobody uses it
            staging = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=self.path.parent))
            try:
                command, environment = self.commands(staging)
                _run(command, f"fetching {self.name} with {self.tool}", environment)
                staging.chmod(0o755)
                staging.rename(self.path)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        return self.path


def jars(server: str) -> Artifact:
    """The jars that `poms/<server>/pom.xml` names, with everything they need at run time."""
    pom = _POMS / server / "pom.xml"
    content = pom.read_bytes()
    version = ElementTree.fromstring(content).findtext("version")

    def commands(folder: Path) -> tuple[Sequence[str], dict[str, str]]:
        options = ["--batch-mode", "--no-transfer-progress", "--strict-checksums", "--file", str(pom)]
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
        return ["mvn", *options, *goal], {}

    return Artifact(
        name=f"{server} {version}",
        path=cache_folder() / f"{server}-{version}-{hashlib.sha256(content).hexdigest()[:8]}",
        tool="mvn",
        hint="install Maven (`apt-get install maven`)",
        commands=commands,
    )


def minio() -> Artifact:
    """The folder with the `minio` program."""

    def commands(folder: Path) -> tuple[Sequence[str], dict[str, str]]:
        return ["go", "install", f"github.com/minio/minio@{MINIO_VERSION}"], {"GOBIN": str(folder)}

    return Artifact(
        name=f"minio {MINIO_VERSION}",
        path=cache_folder() / f"minio-{MINIO_VERSION}",
        tool="go",
        hint="install Go 1.24 or newer",
        commands=commands,
    )


def redis_server(*, install: bool = True) -> str:
    """The system's `redis-server`; as root in CI it is installed where missing, unless `install` is false.

    Raises:
        Unavailable: with the command to install it.
    """
    if found := shutil.which("redis-server"):
        return found
    if not install or os.environ.get("CI") != "true" or os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Unavailable("redis-server is not on PATH: `apt-get install redis-server`")
    cache_folder().mkdir(parents=True, exist_ok=True)
    with _lock(cache_folder() / "redis-server"):
        if not shutil.which("redis-server"):
            quiet = {"DEBIAN_FRONTEND": "noninteractive"}
            _run(["apt-get", "update"], "apt-get update", quiet)
            _run(["apt-get", "install", "--yes", "--no-install-recommends", "redis-server"], "installing Redis", quiet)
            # The package may start a server of its own on the default port; ours have their own ports.
            _run(["service", "redis-server", "stop"], "stopping the package's own Redis", {})
    return shutil.which("redis-server") or "redis-server"


@functools.cache
def java(minimum: int, *, compiler: bool = False) -> str:
    """The first Java of at least that version: `JAVA_HOME*`, `JDK*_HOME`, PATH, then the system's.

    With `compiler` a bare runtime does not count, because a source file is to be launched.

    Raises:
        Unavailable: with what was looked at.
    """
    seen = []
    for candidate in _javas():
        version = _java_version(candidate)
        lacks_compiler = compiler and not candidate.resolve().with_name("javac").exists()
        if version >= minimum and not lacks_compiler:
            return str(candidate)
        seen.append(f"{candidate} ({version or 'does not run'}{', no compiler' if lacks_compiler else ''})")
    kind = "JDK" if compiler else "Java"
    found = ", ".join(seen) or "none"
    raise Unavailable(
        f"{kind} {minimum} or newer is needed, found: {found}. "
        f"Install one (for example Eclipse Temurin) and set JAVA_HOME or JDK{minimum}_HOME to it."
    )


def _javas() -> Iterator[Path]:
    homes = [value for name, value in sorted(os.environ.items()) if re.fullmatch(r"JAVA_HOME\w*|JDK\w*_HOME", name)]
    on_path = shutil.which("java")
    system = sorted(path for root in ("/usr/lib/jvm", "/opt") for path in Path(root).glob("*/bin/java"))
    mac = sorted(Path("/Library/Java/JavaVirtualMachines").glob("*/Contents/Home/bin/java"))
    candidates = [*(Path(home, "bin", "java") for home in homes), *([Path(on_path)] if on_path else []), *system, *mac]
    seen = set()
    for candidate in candidates:
        if candidate.exists() and candidate.resolve() not in seen:
            seen.add(candidate.resolve())
            yield candidate


def _java_version(program: Path) -> int:
    """The feature release, 0 when the program does not run."""
    try:
        answer = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(r'version "(?:1\.)?(\d+)', answer.stderr)
    return int(match[1]) if match else 0


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One holder a machine for what will be at `path`; the kernel frees it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that makes {path.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str], what: str, environment: dict[str, str]) -> None:
    """Run to the end with a line of progress every few seconds; the output is shown only on failure."""
    started = time.monotonic()
    say(what)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(_HEARTBEAT.total_seconds())
                except subprocess.TimeoutExpired:
                    elapsed = time.monotonic() - started
                    if elapsed > _FETCH_LIMIT.total_seconds():
                        raise Unavailable(f"{what} took more than {_FETCH_LIMIT}") from None
                    say(f"{what}: {elapsed:.0f} s")
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            output.seek(0)
            tail = "\n".join(output.read().splitlines()[-_TAIL_LINES:])
            raise Unavailable(f"{what} failed ({' '.join(command)}):\n{tail}")
    say(f"{what}: done in {time.monotonic() - started:.1f} s")
