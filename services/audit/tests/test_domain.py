"""Leaves, documents and plans: pure."""

from __future__ import annotations

import base64
import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from modelworks.audit.domain import (
    TOPICS,
    LogDamaged,
    candidate,
    chunks,
    decode_plan,
    encode_plan,
    fresh,
)
from modelworks.audit.entry import LEAF_BYTES_MAX, EntryError, decode_leaf, encode_leaf, parse_object
from modelworks.audit.record import KINDS, document, document_id
from modelworks.events import (
    ALL,
    BY_TOPIC,
    Audited,
    Envelope,
    EnvelopeError,
    FileChange,
    PredictionRequested,
    RevisionCommitted,
    TensorValue,
)
from modelworks.stores.outbox import message_of

EXAMPLES = Path(__file__).parents[3] / "contracts" / "events"
NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def headers(type_: str, **more: str) -> dict[str, str]:
    return {
        "ce_specversion": "1.0", "ce_id": "e1", "ce_source": "/services/x", "ce_type": type_, "ce_subject": "thing",
        "ce_time": "2026-01-31T12:00:00Z", "ce_actor": "alice", **more,
    }  # fmt: skip


def make(type_: str, body: bytes, **more: str) -> Any:
    return candidate(headers(type_, **more), body, at="3:17", published_at=NOON)


def test_what_is_audited_is_what_the_events_say():
    assert set(TOPICS) == {event.topic for event in ALL if event.audited is not Audited.NO}


def test_every_audited_type_has_words_of_its_own():
    assert set(KINDS) == set(TOPICS)


@pytest.mark.parametrize("topic", TOPICS)
def test_leaf_of_every_type_comes_back_and_becomes_a_document(topic: str):
    body = (EXAMPLES / topic / "valid" / "full.json").read_bytes()
    found = make(topic, body)

    entry = decode_leaf(found.leaf)
    said = document(7, found.leaf, entry)

    assert entry == found.entry
    assert said["event"]["index"] == 7
    assert base64.b64decode(said["leaf"]) == found.leaf
    assert said["outcome"] in ("success", "failure", "denied")
    assert said["message"].startswith("alice ")
    json.dumps(said, allow_nan=False)
    if BY_TOPIC[topic].audited is Audited.FULL:
        assert entry.body == body
        assert said["data"] == json.loads(body)


def test_leaf_holds_the_exact_bytes_that_were_produced():
    body = b'{ "client" :\t"c1", "roles": [ ] }'
    found = make("auth.client-created.v1", body)

    assert found.leaf.endswith(b"\n" + body)


def test_leaf_and_document_of_an_upstream_request_never_hold_its_tensors():
    secret = [17, 4711, 42]
    event = PredictionRequested(
        model="acme/filetype", inputs=[TensorValue(name="bytes", datatype="INT32", shape=[3], data=secret)]
    )
    message = message_of(Envelope(event=event, id="e1", source="/up", time=NOON, actor="pipeline-7"))
    found = candidate(message.headers, message.value, at="0:0", published_at=NOON)

    said = document(0, found.leaf, found.entry)

    assert found.entry.kept == "digest"
    assert b"4711" not in found.leaf
    assert "4711" not in json.dumps(said)
    assert "data" not in said
    assert said["resource"]["name"] == "acme/filetype"
    assert said["event"]["sha256"] == found.entry.sha256


def test_body_that_does_not_fit_a_leaf_stays_beside_the_log():
    event = RevisionCommitted(
        repository="acme/filetype", revision="a" * 40, branch="main", parents=[], message="big", changes_total=256,
        changes=[FileChange(path=f"{n:03d}/" + "x" * 900, change="deleted") for n in range(256)],
    )  # fmt: skip
    message = message_of(Envelope(event=event, id="e1", source="/services/registry", time=NOON))
    found = candidate(message.headers, message.value, at="0:0", published_at=NOON)

    said = document(0, found.leaf, decode_leaf(found.leaf), message.value)

    assert found.entry.kept == "stored"
    assert len(found.leaf) < 1000
    assert found.body == message.value
    assert said["data"]["changes_total"] == 256


def test_leaf_may_have_exactly_the_most_bytes_that_a_bundle_takes():
    empty = len(make("auth.client-deleted.v1", b'{"client":"c","x":""}').leaf)
    # The size's own digits grow by three on the way from two to five.
    room = LEAF_BYTES_MAX - empty - 3
    fits = make("auth.client-deleted.v1", b'{"client":"c","x":"' + b"y" * room + b'"}')
    over = make("auth.client-deleted.v1", b'{"client":"c","x":"' + b"y" * (room + 1) + b'"}')

    assert (len(fits.leaf), fits.entry.kept) == (LEAF_BYTES_MAX, "full")
    assert over.entry.kept == "stored"


def test_refusal_is_found_by_actor_reason_and_resource(denial: Any):
    message = message_of(Envelope(event=denial, id="e1", source="/services/registry", time=NOON, actor="mallory"))
    found = candidate(message.headers, message.value, at="0:0", published_at=NOON)

    said = document(0, found.leaf, found.entry)

    assert said["outcome"] == "denied"
    assert said["status_detail"] == "policy-denied"
    assert said["resource"] == {"name": "acme/filetype", "type": "repository"}
    for word in ("mallory", "policy-denied", "repository:write", "acme/filetype", "roles: consumer"):
        assert word in said["text"]


def test_event_without_a_time_gets_the_time_of_its_arrival():
    given = headers("auth.client-deleted.v1")
    del given["ce_time"]

    found = candidate(given, b'{"client":"c"}', at="0:0", published_at=NOON)

    assert found.entry.time == "2026-01-31T12:00:00Z"
    assert document(0, found.leaf, found.entry)["time_dt"] == "2026-01-31T12:00:00.000000Z"


BAD_BODIES = {
    "no JSON": b"{",
    "infinity in a property nobody reads": b'{"client":"c","x":Infinity}',
    "half of a surrogate pair": b'{"client":"c","x":"\\ud800"}',
    "half of a surrogate pair as a name": b'{"client":"c","\\ud800":1}',
    "a number of a thousand digits": b'{"client":"c","x":' + b"9" * 1000 + b"}",
    "a thousand brackets": b'{"client":"c","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not UTF-8": b'{"client":"\xff"}',
    "another schema": b'{"name":"c"}',
    "a list": b"[]",
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_body_that_some_reader_would_choke_on_is_refused_before_the_log_is_touched(body: bytes):
    with pytest.raises((EntryError, EnvelopeError)):
        make("auth.client-deleted.v1", body)


@pytest.mark.parametrize(
    "change",
    [
        {"ce_time": "yesterday"},
        {"ce_time": "0001-01-01T00:00:00+14:00"},
        {"ce_actor": "\ud800"},
        {"ce_type": "x.y-z.v1"},
    ],
)
def test_envelope_that_cannot_be_kept_is_refused(change: dict[str, str]):
    with pytest.raises((EntryError, EnvelopeError)):
        make("auth.client-deleted.v1", b'{"client":"c"}', **change)


def test_event_that_is_not_audited_is_refused():
    body = (EXAMPLES / "inference.prediction-queued-bulk.v1" / "valid" / "full.json").read_bytes()

    with pytest.raises(EntryError, match="not audited"):
        make("inference.prediction-queued-bulk.v1", body)


LEAVES = {
    "nothing": b"",
    "no body": b'{"v":1}',
    "another version": b'{"v":2}\n{}',
    "no envelope": b"hello\nworld",
    "a list": b"[]\n",
    "a tail on the body": make("auth.client-deleted.v1", b'{"client":"c"}').leaf + b" ",
    "another body": make("auth.client-deleted.v1", b'{"client":"c"}').leaf.replace(b'"c"}', b'"d"}'),
    "a body that is not kept": make("ingest.prediction-requested.v1", b'{"model":"a/b"}').leaf + b"{}",
}


@pytest.mark.parametrize("leaf", LEAVES.values(), ids=LEAVES)
def test_bytes_that_are_no_leaf_are_refused(leaf: bytes):
    with pytest.raises(EntryError):
        decode_leaf(leaf)


def test_same_event_delivered_again_has_the_same_key_and_a_changed_one_has_not():
    first = make("auth.client-deleted.v1", b'{"client":"c"}').entry
    redelivered = candidate(headers("auth.client-deleted.v1"), b'{"client":"c"}', at="9:99", published_at=NOON).entry
    changed = make("auth.client-deleted.v1", b'{"client":"d"}').entry
    foreign = make("auth.client-deleted.v1", b'{"client":"c"}', ce_source="/elsewhere").entry

    assert redelivered.key == first.key
    assert changed.key != first.key
    assert foreign.key != first.key


def test_duplicates_in_a_batch_and_known_events_are_dropped_in_order(candidates: Any):
    some = candidates(0, 4)

    kept = fresh([some[0], some[1], some[0], some[2], some[3]], known=[some[2].entry.key])

    assert kept == [some[0], some[1], some[3]]


def test_steps_are_bounded_by_bytes_and_never_empty(candidates: Any):
    some = candidates(0, 10)
    each = len(some[0].leaf)

    assert [len(step) for step in chunks(some, bytes_max=3 * each)] == [3, 3, 3, 1]
    assert [len(step) for step in chunks(some, bytes_max=1)] == [1] * 10
    assert list(chunks([], bytes_max=1)) == []


def test_plan_comes_back_and_a_foreign_or_damaged_one_is_refused(candidates: Any):
    leaves = [each.leaf for each in candidates(0, 3)]
    plan = encode_plan(41, leaves)

    assert decode_plan(41, plan) == leaves
    for start, data in ((42, plan), (41, plan[:-1]), (41, plan[:8]), (41, b"")):
        with pytest.raises(LogDamaged):
            decode_plan(start, data)


def test_document_ids_sort_as_numbers():
    assert sorted([document_id(10), document_id(9), document_id(100)]) == [
        document_id(9),
        document_id(10),
        document_id(100),
    ]


def test_entry_encodes_to_one_canonical_line():
    entry = make("auth.client-deleted.v1", b'{"client":"c"}', ce_actor="Zoë").entry

    line = encode_leaf(entry).split(b"\n")[0]

    assert json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == line
    assert (
        dataclasses.replace(entry, trace="00-x").trace in encode_leaf(dataclasses.replace(entry, trace="00-x")).decode()
    )


@pytest.mark.parametrize("raw", [b"1", b"null", b'"x"', b"NaN", b'{"a":NaN}', b'{"a":1e999}'])
def test_only_objects_that_every_reader_takes_are_parsed(raw: bytes):
    with pytest.raises(EntryError):
        parse_object(raw)
