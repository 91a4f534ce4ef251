"""The same log on the real servers: conditional writes of S3, searches that are a second late, groups of Kafka."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from modelworks.audit.adapters.index_documents import SCHEMA, DocumentIndex
from modelworks.audit.adapters.log_objects import ObjectLog
from modelworks.audit.app import build
from modelworks.audit.domain import Fenced
from modelworks.audit.sequencer import Sequencer
from modelworks.audit.settings import AuditSettings
from modelworks.audit.tlog.note import Signer, generate_key
from modelworks.audit.verify import verify_log, verify_search_answer
from modelworks.kit.platform import Platform
from modelworks.stores.settings import StoresSettings
from modelworks.stores.stores import Stores, open_stores

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

SIGNER_KEY = generate_key("test/audit")
Make = Callable[..., list[Any]]


@pytest.fixture
async def real(stack: Any) -> AsyncIterator[Stores]:
    """The real column, with an index and a bucket of its own."""
    own = uuid.uuid4().hex[:12]
    given = {name.removeprefix("STORES_").lower(): value for name, value in stack.environment().items()}
    settings = StoresSettings(**{**given, "opensearch_prefix": f"t{own}-", "s3_bucket": f"t{own}"})
    stores = open_stores(settings, environment="production")
    yield stores
    await stores.close()


def sequencer(stores: Stores, *, window: int = 1000) -> Sequencer:
    async def announce(_: Any) -> None:
        """Nobody listens."""

    return Sequencer(
        log=ObjectLog(stores.objects), index=DocumentIndex(stores.documents), signer=Signer(SIGNER_KEY),
        announce=announce, window=window, bytes_max=2**23,
    )  # fmt: skip


async def whole(stores: Stores) -> tuple[int, list[str]]:
    """The verified log together with its documents: its size, and the ids of its events."""
    index, documents, cursor = DocumentIndex(stores.documents), [], None
    await stores.documents.refresh(SCHEMA.collection)
    while True:
        page, cursor = await index.page(cursor=cursor, limit=500)
        documents += [each.body for each in page]
        if cursor is None:
            break
    report = await verify_log(
        lambda path: stores.objects.read(f"audit/{path}"), Signer(SIGNER_KEY).verifier.vkey, documents=documents
    )
    return report.size, [each["event"]["id"] for each in documents]


async def test_log_on_s3_and_opensearch_verifies_and_drops_duplicates(real: Stores, candidates: Make):
    await DocumentIndex(real.documents).ensure()
    for at in range(0, 900, 300):
        await sequencer(real, window=256).append(candidates(at, at + 300))
    late = sequencer(real, window=256)
    await real.documents.refresh(SCHEMA.collection)

    added = await late.append(candidates(0, 905))

    assert added == 5
    size, ids = await whole(real)
    assert (size, sorted(ids)) == (905, sorted(f"event-{n}" for n in range(905)))


async def test_of_two_writers_on_s3_one_is_fenced(real: Stores, candidates: Make):
    """INVARIANT: S3's conditional writes hold what the sequencer rests on."""
    await DocumentIndex(real.documents).ensure()
    writers = [sequencer(real), sequencer(real)]
    turns = random.Random(7)
    fenced = 0

    async def write(writer: Sequencer, at: int) -> None:
        nonlocal fenced
        while True:
            try:
                await writer.append(candidates(at, at + 5))
                return
            except Fenced:
                fenced += 1
                await asyncio.sleep(turns.random() / 20)

    await asyncio.gather(*(write(writers[number % 2], number * 4) for number in range(12)))

    size, ids = await whole(real)
    assert size == len(set(ids)) == 12 * 4 + 1
    assert fenced > 0


async def test_service_on_all_real_servers_finds_a_refusal_by_actor_and_reason(
    real: Stores, platform: Platform, issuer: Any, message: Any, denial: Any, eventually: Any
):
    run = uuid.uuid4().hex[:8]
    refusal = denial.model_copy(update={"principal": f"mallory-{run}"})
    published = [message(n, source=f"/tests/{run}") for n in range(50)]
    published.append(message(50, refusal, f"mallory-{run}", source=f"/tests/{run}"))
    service = build(real, AuditSettings(signing_key=SIGNER_KEY, lease_ms=1000), platform)
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(app=service.app), base_url="http://audit.test",
        headers=issuer.headers("ada", "auditor"),
    )  # fmt: skip

    async def found() -> Any:
        answer = await client.get("/api/v1/audit/events", params={"q": f"mallory-{run} policy-denied"})
        return answer.json() if answer.status_code == 200 and answer.json()["items"] else None

    async with service.run(), client:
        await real.bus.publish([*published, *published])
        answer = await eventually(found, within=60)
        ours = await client.get("/api/v1/audit/events", params={"q": run, "limit": 200})

    assert verify_search_answer(answer, Signer(SIGNER_KEY).verifier.vkey) == 1
    assert answer["items"][0]["outcome"] == "denied"
    assert len({item["id"] for item in ours.json()["items"]}) == len(ours.json()["items"])
