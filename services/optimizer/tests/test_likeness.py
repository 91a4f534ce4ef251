"""Whether two sets of vectors lie alike among themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from modelworks.optimizer.evaluation.agreement import compare
from modelworks.optimizer.measurement import OutputAgreement


def likeness(one: Any, other: Any) -> OutputAgreement:
    found = compare(
        [[row[None]] for row in one], [[row[None]] for row in other], names=["embedding"], declared={}, samples=len(one),
        batch=1, whole=False,
    )  # fmt: skip
    return found.outputs[0]


def vectors(count: int = 60) -> Any:
    return np.random.default_rng(1).standard_normal((count, 16)).astype(np.float32)


def test_turned_vectors_keep_neighbours_and_order_though_no_cosine_survives() -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((16, 16)))

    found = likeness(vectors(), (vectors() @ turn).astype(np.float32))

    assert found.cosine_mean is not None
    assert found.cosine_mean < 0.5
    assert found.neighbours == 1.0
    assert found.rank_correlation == pytest.approx(1.0, abs=1e-6)


def test_shuffled_vectors_lose_both() -> None:
    found = likeness(vectors(), vectors()[::-1])

    assert found.neighbours is not None
    assert found.neighbours < 0.4
    assert found.rank_correlation is not None
    assert abs(found.rank_correlation) < 0.1


def test_rank_correlation_is_spearmans() -> None:
    """Of the order alone: squeezing the cosines changes nothing, unlike Pearson's. Checked against its definition."""
    one, other = vectors(), vectors() + 0.5 * np.random.default_rng(3).standard_normal((60, 16)).astype(np.float32)

    def ranks(rows: Any) -> Any:
        unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        values = [unit[i] @ unit[j] for i in range(60) for j in range(i + 1, 60)]
        return np.array([sorted(values).index(value) for value in values], dtype=np.float64)

    squares = ((ranks(one) - ranks(other)) ** 2).sum()
    pairs = 60 * 59 // 2

    found = likeness(one, other)

    assert found.rank_correlation == pytest.approx(1 - 6 * squares / (pairs * (pairs**2 - 1)), abs=1e-5)


def test_vectors_that_do_not_vary_have_no_order() -> None:
    assert likeness(vectors(), np.ones((60, 16), np.float32)).rank_correlation == 0.0


def test_few_vectors_say_nothing_about_neighbours() -> None:
    found = likeness(vectors(49), vectors(49))

    assert (found.neighbours, found.rank_correlation) == (None, None)
