"""Large bodies over plain blocking sockets in a worker thread.

An event loop in Python spends more on moving a chunk than the kernel does; one
thread that reads, hashes and sends a MiB at a time keeps up with the disk.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from modelworks.kit.errors import Unavailable

Progress = Callable[[int], None]
"""Told the number of bytes that were just moved; called in the worker thread."""

_CHUNK_BYTES = 1 << 20
_ANSWER_BYTES_MAX = 1 << 20


def send_file(
    url: str,
    path: Path,
    headers: Mapping[str, str],
    *,
    progress: Progress,
    stop: threading.Event,
    timeout_seconds: float,
) -> httpx.Response:
    """PUT a file; returns the answer, whatever its status.

    Raises:
        Unavailable: no answer came, or `stop` was set.
    """
    with path.open("rb") as file, _connected(url, timeout_seconds) as (connection, target):
        size = os.fstat(file.fileno()).st_size
        connection.putrequest("PUT", target, skip_accept_encoding=True)
        for name, value in {**headers, "Content-Length": str(size)}.items():
            connection.putheader(name, value)
        connection.endheaders()
        try:
            while chunk := file.read(_CHUNK_BYTES):
                if stop.is_set():
                    raise Unavailable("the upload was cancelled")
                connection.send(chunk)
                progress(len(chunk))
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses early answers before it has read everything: its answer says more than the reset.
            pass
        return _answer(connection.getresponse())


def receive_file(
    url: str,
    path: Path,
    headers: Mapping[str, str],
    *,
    progress: Progress,
    stop: threading.Event,
    timeout_seconds: float,
) -> tuple[httpx.Response, str]:
    """GET into a file that exists; returns the answer and the sha256 of what was written.

    The file is complete on disk when this returns a success.

    Raises:
        Unavailable: no answer came, it broke off, or `stop` was set.
    """
    hasher = hashlib.sha256()
    with path.open("r+b", buffering=0) as file, _connected(url, timeout_seconds) as (connection, target):
        connection.request("GET", target, headers={**headers, "Accept-Encoding": "identity"})
        answer = connection.getresponse()
        if answer.status != 200:
            return _answer(answer), ""
        buffers = [memoryview(bytearray(_CHUNK_BYTES)) for _ in range(2)]
        received, turn = 0, 0

        def absorb(data: memoryview) -> None:
            hasher.update(data)
            _write_all(file, data)

        # One buffer is hashed and written while the other is filled.
        with ThreadPoolExecutor(1, thread_name_prefix="absorb") as pool:
            absorbing: Future[None] | None = None
            while count := answer.readinto(buffers[turn]):
                if stop.is_set():
                    raise Unavailable("the download was cancelled")
                if absorbing is not None:
                    absorbing.result()
                absorbing = pool.submit(absorb, buffers[turn][:count])
                received += count
                turn = 1 - turn
                progress(count)
            if absorbing is not None:
                absorbing.result()
        announced = answer.getheader("Content-Length")
        if announced is not None and int(announced) != received:
            raise http.client.IncompleteRead(b"", int(announced) - received)
        os.fsync(file.fileno())
        return httpx.Response(200, headers=answer.getheaders()), hasher.hexdigest()


@contextmanager
def _connected(url: str, timeout_seconds: float) -> Iterator[tuple[http.client.HTTPConnection, str]]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    more: dict[str, Any] = {"timeout": timeout_seconds, "blocksize": _CHUNK_BYTES}
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            parts.hostname, parts.port, context=ssl.create_default_context(), **more
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, **more)
    try:
        yield connection, parts.path + (f"?{parts.query}" if parts.query else "")
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{url}: the transfer broke off ({type(error).__name__}: {error})") from error
    finally:
        connection.close()


def _answer(answer: http.client.HTTPResponse) -> httpx.Response:
    return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read(_ANSWER_BYTES_MAX))


def _write_all(file: Any, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]
