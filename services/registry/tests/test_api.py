from __future__ import annotations

import hashlib

from .conftest import ROOT, Hub


async def test_a_file_comes_back_as_it_was_committed(hub: Hub) -> None:
    await hub.create()
    data = b"weights" * 1000

    revision = await hub.committed({"weights/model.bin": data}, expected=None)

    answer = await hub.get("acme/magika/files/weights/model.bin")
    assert answer.status_code == 200
    assert answer.content == data
    assert answer.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    assert answer.headers["x-modelworks-revision"] == revision
