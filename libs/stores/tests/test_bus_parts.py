"""The pure parts that both adapters are built on: the watermark and the window."""

from __future__ import annotations

import random

from modelworks.stores.bus.watermark import AHEAD_MAX, Watermark
from modelworks.stores.bus.window import Window


def test_the_position_is_the_first_unfinished_offset() -> None:
    mark = Watermark(10)
    for offset in range(10, 15):
        assert mark.begin(offset)

    mark.finish(11)
    mark.finish(13)
    assert mark.position == 10
    mark.finish(10)
    assert mark.position == 12
    mark.finish(12)
    mark.finish(14)

    assert mark.position == 15
    assert mark.metadata == ""


def test_finished_offsets_above_the_position_survive_a_commit() -> None:
    mark = Watermark(10)
    for offset in range(10, 20):
        mark.begin(offset)
    for offset in (12, 15, 19):
        mark.finish(offset)

    again = Watermark(mark.position, mark.metadata)

    assert again.finished_ahead == 3
    assert [offset for offset in range(10, 20) if again.begin(offset)] == [10, 11, 13, 14, 16, 17, 18]
    for offset in (10, 11, 13, 14, 16, 17, 18):
        again.finish(offset)
    assert again.position == 20


def test_offsets_that_do_not_exist_are_passed() -> None:
    mark = Watermark(0)
    assert mark.begin(5)
    assert mark.begin(9)
    assert mark.position <= 5

    mark.finish(5)
    assert mark.position == 9
    mark.finish(9)

    assert mark.position == 10


def test_metadata_that_is_not_ours_finishes_nothing() -> None:
    for text in ("", "not base64!", "ü"):
        mark = Watermark(3, text)

        assert mark.position == 3
        assert mark.begin(3)


def test_metadata_fits_beside_a_committed_offset() -> None:
    mark = Watermark(0)
    for offset in range(AHEAD_MAX):
        assert mark.room(offset)
        mark.begin(offset)
    assert not mark.room(AHEAD_MAX)

    for offset in range(1, AHEAD_MAX):
        mark.finish(offset)

    assert len(mark.metadata) <= 4096


def test_any_order_of_finishing_ends_at_the_end() -> None:
    chance = random.Random(7)
    for _ in range(50):
        offsets = sorted(chance.sample(range(1000), 200))
        mark = Watermark(offsets[0])
        for offset in offsets:
            mark.begin(offset)
        unfinished = set(offsets)
        for offset in chance.sample(offsets, 200):
            mark.finish(offset)
            unfinished.discard(offset)
            assert mark.position == min(unfinished, default=offsets[-1] + 1)
            again = Watermark(mark.position, mark.metadata)
            assert {one for one in offsets if one >= mark.position and again.begin(one)} == unfinished


def test_a_window_runs_one_of_a_key_and_no_more_than_its_bound() -> None:
    window: Window[str] = Window(running_max=2)
    for key, item in [("a", "a1"), ("a", "a2"), ("b", "b1"), ("c", "c1")]:
        window.offer(key, item)

    assert window.take() == ("a", "a1")
    assert window.take() == ("b", "b1")
    assert window.take() is None
    window.finish("a")

    assert window.take() == ("c", "c1")
    window.finish("c")
    assert window.take() == ("a", "a2")
    window.finish("a")
    window.finish("b")
    assert len(window) == 0


def test_a_window_forgets_what_waits_and_keeps_what_runs() -> None:
    window: Window[str] = Window(running_max=1)
    for key, item in [("a", "a1"), ("a", "a2"), ("b", "b1"), ("b", "b2")]:
        window.offer(key, item)
    assert window.take() == ("a", "a1")

    assert sorted(window.clear()) == ["a2", "b1", "b2"]

    assert len(window) == 1
    window.offer("a", "a3")
    window.offer("b", "b3")
    assert window.take() is None
    window.finish("a")
    assert window.take() == ("b", "b3")
    window.finish("b")
    assert window.take() == ("a", "a3")
    window.finish("a")
    assert len(window) == 0


def test_a_window_is_bounded() -> None:
    window: Window[int] = Window(running_max=1)

    while not window.full:
        window.offer(len(window), 0)

    assert len(window) == window.size_max
