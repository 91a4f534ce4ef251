"""A presigned request of the embedded column works on the suite's own door, for whoever has it, until it expires."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from modelworks.client.demo.suite import SuiteProcess
from modelworks.stores.objects.folder import FolderObjects

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


async def test_presigned_request_needs_no_token_and_serves_one_object(embedded: SuiteProcess, tmp_path: Path) -> None:
    # The same folder, so the same signing key as the suite's.
    objects = FolderObjects(embedded.data / "stores" / "objects", base_url=f"{embedded.url}/objects")
    put = await objects.presign("PUT", "test/one", expires=timedelta(minutes=1))
    get = await objects.presign("GET", "test/one", expires=timedelta(minutes=1))
    await objects.close()

    async with httpx.AsyncClient() as http:
        stored = await http.put(put.url, content=b"some bytes", headers=dict(put.headers))
        read = await http.get(get.url, headers=dict(get.headers))
        other = await http.get(get.url.replace("test/one", "test/two"))
        unsigned = await http.get(get.url.partition("?")[0])

    assert stored.status_code in (200, 201)
    assert read.content == b"some bytes"
    assert other.status_code == unsigned.status_code == 401 or other.status_code == unsigned.status_code == 403
