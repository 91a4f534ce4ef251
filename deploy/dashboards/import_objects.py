"""Imports the saved objects of this folder into OpenSearch Dashboards, and reads them back.

    python import_objects.py FOLDER        every *.ndjson in it; the address and user come from the environment

Dashboards answers 200 to an import that wrote nothing (a reference was missing), so the answer's `success` is looked
at and every object is asked for again. Standard library only: it runs in any image with a Python.
"""

# ruff: noqa: T201 - a command speaks on its standard output

from __future__ import annotations

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_WAIT_SECONDS = 120.0
_PAUSE_SECONDS = 2.0
_BULK_MAX = 100


class Refused(Exception):
    """Dashboards answered, and said no."""


class Dashboards:
    """The saved-objects API of one server."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self._url = url.rstrip("/")
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        # Every writing call needs osd-xsrf, whatever it says.
        self._headers = {"Authorization": f"Basic {token}", "osd-xsrf": "true"}

    def call(self, path: str, body: bytes, content_type: str) -> Any:
        """The JSON answer of a POST.

        Raises:
            Refused: the answer is an error that no waiting helps against.
            OSError: the server does not answer, or not yet.
        """
        headers = {**self._headers, "Content-Type": content_type}
        request = urllib.request.Request(self._url + path, data=body, headers=headers, method="POST")  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the address is the operator's
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read(2000).decode("utf-8", "replace")
            if error.code in (429, 502, 503, 504):
                raise OSError(f"{error.code}: {text}") from error
            raise Refused(f"POST {path} answered {error.code}: {text}") from error

    def import_file(self, name: str, content: bytes) -> None:
        """Import one file; objects of the same id are replaced.

        Raises:
            Refused: not all of it was taken.
        """
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        body = f"{head}Content-Type: application/ndjson\r\n\r\n".encode() + content + f"\r\n--{boundary}--\r\n".encode()
        path = "/api/saved_objects/_import?overwrite=true"
        answer = self.call(path, body, f"multipart/form-data; boundary={boundary}")
        if answer.get("success") is not True:
            raise Refused(f"{name} was not imported: {json.dumps(answer.get('errors', answer))[:2000]}")

    def missing(self, objects: Sequence[Mapping[str, str]]) -> Iterator[str]:
        """Which of these (`type` and `id`) cannot be read."""
        for start in range(0, len(objects), _BULK_MAX):
            body = json.dumps(objects[start : start + _BULK_MAX]).encode()
            for found in self.call("/api/saved_objects/_bulk_get", body, "application/json")["saved_objects"]:
                if "error" in found:
                    yield f"{found.get('type')}:{found.get('id')}"


def objects_of(content: bytes) -> list[dict[str, str]]:
    """Type and id of each object of a file; the summary that an export ends with has none and is left out."""
    lines = (json.loads(line) for line in content.decode("utf-8").splitlines() if line.strip())
    return [{"type": line["type"], "id": line["id"]} for line in lines if "type" in line and "id" in line]


def run(folder: Path, server: Dashboards, *, wait_seconds: float = _WAIT_SECONDS) -> int:
    """Import every file; returns how many objects are there now.

    Raises:
        Refused: a file is not valid, was refused, or cannot be read back.
        OSError: the server did not answer within `wait_seconds`.
    """
    files = sorted(folder.glob("*.ndjson"))
    if not files:
        raise Refused(f"there is no *.ndjson in {folder}")
    count = 0
    deadline = time.monotonic() + wait_seconds
    for file in files:
        content = file.read_bytes()
        objects = objects_of(content)
        while True:
            try:
                server.import_file(file.name, content)
                missing = list(server.missing(objects))
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise
                print(f"Dashboards does not answer yet ({error}); trying again", file=sys.stderr)
                time.sleep(_PAUSE_SECONDS)
        if missing:
            raise Refused(f"{file.name}: imported, and yet missing: {', '.join(missing)}")
        count += len(objects)
    return count


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        server = Dashboards(*(os.environ[f"DASHBOARDS_{name}"] for name in ("URL", "USER", "PASSWORD")))
        count = run(Path(sys.argv[1]), server)
    except KeyError as error:
        print(f"{error.args[0]} is not set", file=sys.stderr)
        return 1
    except (Refused, OSError, ValueError) as error:
        print(f"the dashboards were not imported: {error}", file=sys.stderr)
        return 1
    print(f"{count} saved objects are in Dashboards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
