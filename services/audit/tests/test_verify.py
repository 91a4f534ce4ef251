"""The offline verifier accepts what the audit answers, and names everything that was changed in it."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from modelworks.audit.ports import Question
from modelworks.audit.tlog.note import Signer, VerificationError, generate_key
from modelworks.audit.tlog.tiles import Bundle, Tile, encode_entries
from modelworks.audit.verify import verify_log, verify_search_answer, verify_whole_log
from modelworks.events import AccessDenied, FileChange, PredictionRequested, RevisionCommitted, TensorValue

Make = Callable[..., list[Any]]


@pytest.fixture
async def answer(bench: Any, candidates: Make, denial: AccessDenied) -> dict[str, Any]:
    await bench.sequencer().append(candidates(0, 300))
    await bench.sequencer().append(candidates(events=[denial], actor="mallory"))
    found = await bench.auditing.search(Question(limit=20), None)
    return json.loads(json.dumps(found))


async def test_every_hit_of_an_answer_verifies(bench: Any, answer: dict[str, Any]):
    assert len(answer["items"]) == 20
    assert verify_search_answer(answer, bench.signer.verifier.vkey) == 20


async def test_empty_answer_verifies_against_its_checkpoint(bench: Any):
    await bench.sequencer().start()

    found = await bench.auditing.search(Question(actor="nobody"), None)

    assert verify_search_answer(found, bench.signer.verifier.vkey) == 0


def _flip(text: str) -> str:
    raw = bytearray(base64.b64decode(text))
    raw[len(raw) // 2] ^= 1
    return base64.b64encode(raw).decode()


TAMPERINGS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another actor": lambda a: a["items"][0].update(actor="alice"),
    "another outcome": lambda a: a["items"][0].update(outcome="success"),
    "another resource": lambda a: a["items"][0].update(resource="acme/other"),
    "another time": lambda a: a["items"][0].update(time="2026-01-31T12:00:01.000000Z"),
    "another message": lambda a: a["items"][0].update(message="nothing happened"),
    "another reason": lambda a: a["items"][0]["data"].update(reason="rate-limited"),
    "no data": lambda a: a["items"][0].pop("data"),
    "another type": lambda a: a["items"][0].update(type="auth.token-issued.v1"),
    "another index": lambda a: a["items"][0].update(index=0),
    "another leaf": lambda a: a["items"][0].update(leaf=a["items"][1]["leaf"]),
    "a flipped bit in the leaf": lambda a: a["items"][0].update(leaf=_flip(a["items"][0]["leaf"])),
    "no leaf": lambda a: a["items"][0].pop("leaf"),
    "a leaf that is not base64": lambda a: a["items"][0].update(leaf="!!"),
    "no proof": lambda a: a["items"][0].update(proof=None),
    "a shorter proof": lambda a: a["items"][0]["proof"]["hashes"].pop(),
    "a proof of another tree": lambda a: a["items"][0]["proof"].update(size=7),
    "a hash that is none": lambda a: a["items"][0]["proof"]["hashes"].append("00"),
    "hashes that are no text": lambda a: a["items"][0]["proof"].update(hashes=[1]),
    "an invented hit": lambda a: a["items"].append({**copy.deepcopy(a["items"][0]), "index": 5}),
    "a body that is not the event's": lambda a: a["items"][0].update(body=base64.b64encode(b"{}").decode()),
    "no checkpoint": lambda a: a.pop("checkpoint"),
    "an empty checkpoint": lambda a: a.update(checkpoint=""),
    "an unsigned checkpoint": lambda a: a.update(checkpoint=a["checkpoint"].split("\n\n")[0] + "\n"),
    "a larger checkpoint": lambda a: a.update(checkpoint=a["checkpoint"].replace("\n301\n", "\n302\n")),
    "no items": lambda a: a.pop("items"),
}


@pytest.mark.parametrize("tamper", TAMPERINGS.values(), ids=TAMPERINGS)
async def test_altered_answer_is_refused(bench: Any, answer: dict[str, Any], tamper: Callable[..., Any]):
    tamper(answer)

    with pytest.raises(VerificationError):
        verify_search_answer(answer, bench.signer.verifier.vkey)


async def test_answer_signed_by_another_key_is_refused(answer: dict[str, Any]):
    with pytest.raises(VerificationError, match="not signed by"):
        verify_search_answer(answer, Signer(generate_key("test/audit")).verifier.vkey)


async def test_data_of_a_request_that_is_kept_as_a_digest_cannot_be_invented(bench: Any, candidates: Make):
    tensor = TensorValue(name="x", datatype="FP32", shape=[1], data=[1])
    await bench.sequencer().append(candidates(events=[PredictionRequested(model="acme/m", inputs=[tensor])]))
    found = await bench.auditing.search(Question(), None)

    assert verify_search_answer(found, bench.signer.verifier.vkey) == 1
    found["items"][0]["data"] = {"model": "acme/other"}
    with pytest.raises(VerificationError, match="data that the leaf does not hold"):
        verify_search_answer(found, bench.signer.verifier.vkey)


async def test_hit_whose_body_lies_beside_the_log_carries_it_and_verifies(bench: Any, candidates: Make):
    event = RevisionCommitted(
        repository="acme/filetype", revision="a" * 40, branch="main", parents=[], message="big", changes_total=256,
        changes=[FileChange(path=f"{n:03d}/" + "x" * 900, change="deleted") for n in range(256)],
    )  # fmt: skip
    some = candidates(events=[event])
    await bench.sequencer().append(some)
    found = await bench.auditing.search(Question(), None)
    entry = await bench.auditing.entry(0)

    assert verify_search_answer(found, bench.signer.verifier.vkey) == 1
    assert verify_search_answer({"items": [entry], "checkpoint": entry["checkpoint"]}, bench.signer.verifier.vkey) == 1
    found["items"][0]["data"]["message"] = "small"
    with pytest.raises(VerificationError, match="'data'"):
        verify_search_answer(found, bench.signer.verifier.vkey)


async def test_whole_log_verifies_from_its_files_and_from_its_entries(bench: Any, answer: dict[str, Any]):
    vkey = bench.signer.verifier.vkey

    report = await verify_log(bench.fetch, vkey)

    async def entries(start: int, end: int) -> list[dict[str, Any]]:
        return [await bench.auditing.entry(index) for index in range(start, end)]

    by_entries = await verify_whole_log(await bench.auditing.checkpoint(), vkey, entries)
    assert (report.size, report.origin) == (301, "test/audit")
    assert by_entries == {"origin": report.origin, "size": 301, "root": report.root, "checkpoint": report.checkpoint}


async def _swap_entries(bench: Any) -> None:
    from modelworks.audit.tlog.tiles import decode_entries

    entries = decode_entries(await bench.log.read(Bundle(0)))
    entries[3], entries[4] = entries[4], entries[3]
    await bench.log.write(Bundle(0), encode_entries(entries))


async def _cut_bundle(bench: Any) -> None:
    await bench.log.write(Bundle(0), (await bench.log.read(Bundle(0)))[:-1])


async def _short_bundle(bench: Any) -> None:
    await bench.log.write(Bundle(1, 45), encode_entries([]))


async def _altered_tile(bench: Any) -> None:
    data = await bench.log.read(Tile(0, 0))
    await bench.log.write(Tile(0, 0), data[:32] + bytes([data[32] ^ 1]) + data[33:])


async def _altered_upper_tile(bench: Any) -> None:
    await bench.log.write(Tile(1, 0, 1), b"\x00" * 32)


async def _foreign_entry(bench: Any) -> None:
    from modelworks.audit.tlog.tiles import decode_entries

    entries = decode_entries(await bench.log.read(Bundle(1, 45)))
    await bench.log.write(Bundle(1, 45), encode_entries([*entries[:-1], b"not a leaf"]))


@pytest.mark.parametrize(
    "tamper", [_swap_entries, _cut_bundle, _short_bundle, _altered_tile, _altered_upper_tile, _foreign_entry]
)
@pytest.mark.usefixtures("answer")
async def test_altered_log_is_refused(bench: Any, tamper: Callable[..., Any]):
    await tamper(bench)

    with pytest.raises(VerificationError):
        await verify_log(bench.fetch, bench.signer.verifier.vkey)


async def test_log_that_continues_an_earlier_checkpoint_verifies_and_a_fork_or_rollback_does_not(
    bench: Any, candidates: Make
):
    vkey, sequencer = bench.signer.verifier.vkey, bench.sequencer()
    await sequencer.append(candidates(0, 10))
    earlier = await bench.auditing.checkpoint()
    await sequencer.append(candidates(10, 300))
    later = await bench.auditing.checkpoint()

    assert (await verify_log(bench.fetch, vkey, earlier=earlier)).size == 300
    assert (await verify_log(bench.fetch, vkey, earlier=later)).size == 300
    # A fork: the same key signs another history.
    for key in [info.key async for info in bench.stores.objects.list("audit/")]:
        await bench.stores.objects.delete(key)
    await bench.sequencer().append(candidates(50, 70))
    with pytest.raises(VerificationError, match="not those that were signed earlier"):
        await verify_log(bench.fetch, vkey, earlier=earlier)
    with pytest.raises(VerificationError, match="shrank from 300 to 20"):
        await verify_log(bench.fetch, vkey, earlier=later)
