"""When keys are published, sign and retire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from modelworks.auth.keyring import KeyRing, Schedule, SigningKey, begin, due, rotate, tidy
from modelworks.events import KeyRotated
from modelworks.kit.errors import Conflict

START = datetime(2026, 1, 1, tzinfo=UTC)
SCHEDULE = Schedule(rotate_every=timedelta(days=30), lead=timedelta(minutes=10), keep=timedelta(minutes=20))


def key(name: str, created_at: datetime = START) -> SigningKey:
    private = {"kty": "EC", "crv": "P-256", "x": name, "y": name, "d": f"private part of {name}"}
    return SigningKey(id=name, private=private, created_at=created_at)


def first_ring() -> KeyRing:
    ring, _ = begin(key("a"), key("b"), now=START)
    return ring


def ids(ring: KeyRing) -> list[str]:
    return [each.id for each in ring.published]


def test_first_key_signs_at_once_with_its_successor_published() -> None:
    ring, events = begin(key("a"), key("b"), now=START)

    assert ids(ring) == ["a", "b"]
    assert (ring.current.id, ring.current.signs_from) == ("a", START)
    assert events == [KeyRotated(key_id="a", retired=[])]


def test_successor_signs_and_the_stopped_key_still_verifies() -> None:
    later = START + timedelta(days=30)

    ring, events = rotate(first_ring(), key("c", later), SCHEDULE, now=later)

    assert ids(ring) == ["b", "c", "a"]
    assert ring.current.signs_from == ring.previous[0].stopped_at == later
    assert events == [KeyRotated(key_id="b", retired=[])]


def test_key_signs_only_after_it_was_published_for_the_lead() -> None:
    later = START + timedelta(days=1)
    ring, _ = rotate(first_ring(), key("c", later), SCHEDULE, now=later)
    almost = later + timedelta(minutes=9, seconds=59)
    with pytest.raises(Conflict, match="rotate in 2 s") as refused:
        rotate(ring, key("d", almost), SCHEDULE, now=almost)
    assert refused.value.data == {"retry_after_seconds": 2}

    ring, _ = rotate(ring, key("d"), SCHEDULE, now=later + timedelta(minutes=10))

    assert ring.current.id == "c"


def test_second_key_may_sign_at_once_since_it_was_published_with_the_first() -> None:
    ring, _ = rotate(first_ring(), key("c"), SCHEDULE, now=START)

    assert ids(ring) == ["b", "c", "a"]


def test_stopped_key_retires_when_its_last_token_is_dead_and_not_before() -> None:
    stopped_at = START + timedelta(days=1)
    ring, _ = rotate(first_ring(), key("c", stopped_at), SCHEDULE, now=stopped_at)

    assert tidy(ring, SCHEDULE, now=stopped_at + timedelta(minutes=19, seconds=59)) == (ring, [])

    tidied, events = tidy(ring, SCHEDULE, now=stopped_at + timedelta(minutes=20))
    assert ids(tidied) == ["b", "c"]
    assert events == [KeyRotated(key_id="b", retired=["a"])]


def test_rotation_retires_what_has_had_its_time() -> None:
    second = START + timedelta(days=1)
    third = START + timedelta(days=2)
    ring, _ = rotate(first_ring(), key("c", second), SCHEDULE, now=second)

    ring, events = rotate(ring, key("d", third), SCHEDULE, now=third)

    assert ids(ring) == ["c", "d", "b"]
    assert events == [KeyRotated(key_id="c", retired=["a"])]


def test_emergency_withdraws_all_earlier_keys_and_waits_for_nobody() -> None:
    second = START + timedelta(minutes=10)
    ring, _ = rotate(first_ring(), key("c", second), SCHEDULE, now=second)

    ring, events = rotate(ring, key("d", second), SCHEDULE, now=second, emergency=True)

    assert ids(ring) == ["c", "d"]
    assert events == [KeyRotated(key_id="c", retired=["b", "a"])]


def test_rotation_is_due_by_age_of_the_current_key() -> None:
    ring = first_ring()

    assert not due(ring, SCHEDULE, now=START + timedelta(days=29, hours=23))
    assert due(ring, SCHEDULE, now=START + timedelta(days=30))


def test_rotation_is_not_due_before_the_successor_is_known() -> None:
    hasty = Schedule(rotate_every=timedelta(minutes=1), lead=timedelta(minutes=10), keep=timedelta(minutes=20))
    later = START + timedelta(minutes=1)
    ring, _ = rotate(first_ring(), key("c", later), hasty, now=later)

    assert not due(ring, hasty, now=later + timedelta(minutes=9))
    assert due(ring, hasty, now=later + timedelta(minutes=10))


def test_public_key_holds_nothing_private_and_names_its_algorithm() -> None:
    assert key("a").public() == {
        "kty": "EC", "crv": "P-256", "x": "a", "y": "a", "kid": "a", "use": "sig", "alg": "ES256",
    }  # fmt: skip


def test_private_key_is_not_shown_in_logs() -> None:
    assert "private part" not in repr(first_ring())
