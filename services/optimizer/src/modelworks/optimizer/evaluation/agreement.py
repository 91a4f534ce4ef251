"""How alike two models answer, output by output, on the same inputs.

What "alike" means depends on what an output is: the repository may say it;
else it is guessed, and the report says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from modelworks.optimizer.evaluation.inputs import InputSet
from modelworks.optimizer.evaluation.session import Array, Runnable
from modelworks.optimizer.measurement import Agreement, OutputAgreement, OutputKind
from modelworks.optimizer.passes import WorkError

COSINE_ALIKE = 0.98
"""A vector output agrees from this cosine on: int8 sentence embeddings that keep their ranking lie above it."""
RELATIVE_ERROR_ALIKE = 0.05
"""Values that are no direction agree up to this relative error."""

SAMPLES_MIN = 64
"""Inputs that are compared whatever the time."""

_NEIGHBOURS = 10
_NEIGHBOUR_SAMPLES_MIN = 50
_CLASS_NAMES = ("logit", "prob", "label", "class", "score")
_VECTOR_NAMES = ("embedding", "pooler", "hidden", "feature", "vector", "state")

Reference = Sequence[Sequence[Any]]
"""The original's outputs, batch by batch."""

Tick = Callable[[float], None]
"""Told the share that is done."""


def answers(
    model: Runnable,
    inputs: InputSet,
    *,
    samples: int,
    batch: int,
    bytes_max: int,
    seconds_max: float = math.inf,
    tick: Tick = lambda _: None,
) -> Reference:
    """The model's outputs on the first samples: on all `samples`, or on as many, but `SAMPLES_MIN`, as the time allows.

    Raises:
        WorkError: the model fails on them, or their outputs need more than `bytes_max`.
    """
    collected: list[Sequence[Any]] = []
    size = 0
    step = 1 if inputs.whole else batch
    started = time.perf_counter()
    for start in range(0, samples, step):
        if start >= SAMPLES_MIN and time.perf_counter() - started > seconds_max:
            break
        outputs = model.run(inputs.feed(start, min(step, samples - start)))
        size += sum(output.nbytes for output in outputs if isinstance(output, np.ndarray))
        if size > bytes_max:
            raise WorkError(
                "outputs-too-large",
                f"{model.path.name}: outputs of {start + step} of {samples} inputs have {size} bytes, at most {bytes_max} "
                "are compared: evaluate on fewer inputs",
            )
        collected.append(outputs)
        tick(min(1.0, (start + step) / samples))
    return collected


def compare(
    original: Reference,
    variant: Reference,
    *,
    names: Sequence[str],
    declared: Mapping[str, OutputKind],
    samples: int,
    batch: int,
    whole: bool,
) -> Agreement:
    """The agreement of two models' answers to the same inputs."""
    outputs: list[OutputAgreement] = []
    bad_original = np.zeros(samples, dtype=bool)
    bad_variant = np.zeros(samples, dtype=bool)
    for number, name in enumerate(names):
        left = _joined([outputs_of[number] for outputs_of in original], samples, whole=whole)
        right = _joined([outputs_of[number] for outputs_of in variant], samples, whole=whole)
        if left is None or right is None:
            continue
        left_bad, right_bad = _not_finite(left), _not_finite(right)
        bad_original |= left_bad
        bad_variant |= right_bad & ~left_bad
        outputs.append(_compare_output(name, left, right, declared.get(name), left_bad | right_bad))
    if not outputs:
        raise WorkError("evaluation-failed", "no output of the model is a tensor with one row for each input")
    means = [output.cosine_mean for output in outputs if output.cosine_mean is not None]
    return Agreement(
        samples=samples,
        batch=1 if whole else batch,
        agreement=min(output.agreement for output in outputs),
        cosine_mean=min(means) if means else None,
        original_not_finite=int(bad_original.sum()),
        variant_not_finite=int(bad_variant.sum()),
        outputs=tuple(outputs),
    )


def _joined(parts: Sequence[Any], samples: int, *, whole: bool) -> list[Array] | None:
    """One array a sample, or None when the output has no row for each."""
    rows: list[Array] = []
    for part in parts:
        array = np.asarray(part)
        if whole:
            rows.append(array)
        elif array.ndim == 0:
            return None
        else:
            # A row of texts is a plain str otherwise.
            rows.extend(np.asarray(row, dtype=array.dtype) for row in array)
    return rows if len(rows) == samples else None


def _not_finite(rows: Sequence[Array]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.array([row.dtype.kind == "f" and not bool(np.isfinite(row).all()) for row in rows])


def _compare_output(
    name: str,
    left: Sequence[Array],
    right: Sequence[Array],
    declared: OutputKind | None,
    bad: np.ndarray[Any, np.dtype[np.bool_]],
) -> OutputAgreement:
    kind = declared or guess_kind(name, left)
    same_shape = all(one.shape == other.shape for one, other in zip(left, right, strict=True))
    usable = [index for index in range(len(left)) if not bad[index] and left[index].shape == right[index].shape]
    pairs = [(left[index], right[index]) for index in usable]
    numeric = left[0].dtype.kind == "f" and same_shape
    cosines = [_cosine(one, other) for one, other in pairs] if numeric and left[0].size > 1 else []
    agreed, threshold = _agreed(kind, pairs, cosines)
    return OutputAgreement(
        name=name,
        kind=kind,
        declared=declared is not None,
        agreement=agreed / len(left),
        threshold=threshold,
        cosine_mean=_rounded(np.mean(cosines)) if cosines else None,
        cosine_min=_rounded(np.min(cosines)) if cosines else None,
        difference_max=max((float(np.abs(one - other).max()) for one, other in pairs if one.size), default=None)
        if numeric
        else None,
        **(_likeness(pairs) if kind == "vectors" and numeric else {}),
    )


def _agreed(
    kind: OutputKind, pairs: Sequence[tuple[Array, Array]], cosines: Sequence[float]
) -> tuple[float, float | None]:
    """How many inputs agree (for classes at several positions: by their share), and the threshold."""
    if kind == "classes":
        return float(sum(np.mean(one.argmax(-1) == other.argmax(-1)) for one, other in pairs)), None
    if kind == "vectors" and cosines:
        return float(sum(cosine >= COSINE_ALIKE for cosine in cosines)), COSINE_ALIKE
    if kind in ("vectors", "values"):
        return float(sum(_relative_error(*pair) <= RELATIVE_ERROR_ALIKE for pair in pairs)), RELATIVE_ERROR_ALIKE
    return float(sum(np.array_equal(one, other) for one, other in pairs)), None


def guess_kind(name: str, rows: Sequence[Array]) -> OutputKind:
    """What an output probably is, from its name, type, shape and values."""
    first = rows[0]
    if first.dtype.kind != "f":
        return "exact"
    if first.size <= 1:
        return "values"
    lower = name.lower()
    if any(word in lower for word in _VECTOR_NAMES):
        return "vectors"
    if any(word in lower for word in _CLASS_NAMES) or _are_probabilities(rows):
        return "classes"
    return "vectors"


def _are_probabilities(rows: Sequence[Array]) -> bool:
    return all(bool((row >= -1e-6).all()) and bool(np.allclose(row.sum(-1), 1, atol=1e-3)) for row in rows[:32])


def _cosine(one: Array, other: Array) -> float:
    left, right = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    if norms == 0:
        # Two zero vectors are alike; one zero vector is like no other.
        return 1.0 if not left.any() and not right.any() else 0.0
    return float(np.clip(left @ right / norms, -1, 1))


def _relative_error(one: Array, other: Array) -> float:
    left, right = one.astype(np.float64), other.astype(np.float64)
    scale = float(np.linalg.norm(left))
    error = float(np.linalg.norm(left - right))
    if scale == 0:
        return 0.0 if error == 0 else math.inf
    return error / scale


def _likeness(pairs: Sequence[tuple[Array, Array]]) -> dict[str, float]:
    """Whether the vectors lie alike among themselves: nearest neighbours, and the order of all cosines."""
    if len(pairs) < _NEIGHBOUR_SAMPLES_MIN or pairs[0][0].ndim != 1:
        return {}
    left, right = (_cosines(np.stack([pair[side] for pair in pairs])) for side in (0, 1))
    shared = [len(set(one) & set(other)) for one, other in zip(_nearest(left), _nearest(right), strict=True)]
    above = np.triu_indices(len(pairs), k=1)
    return {
        "neighbours": _rounded(np.mean(shared) / _NEIGHBOURS),
        "rank_correlation": _rounded(_spearman(left[above], right[above])),
    }


def _cosines(vectors: Array) -> Array:
    unit = vectors.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return np.asarray(unit @ unit.T)


def _nearest(cosines: Array) -> list[list[int]]:
    similar = cosines.copy()
    np.fill_diagonal(similar, -np.inf)
    return [list(row) for row in np.argpartition(-similar, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS].tolist()]


def _spearman(one: Array, other: Array) -> float:
    """Correlation of the ranks; 0 where one side does not vary. Equal floats are too rare to average their ranks."""
    left, right = (values.argsort().argsort().astype(np.float64) for values in (one, other))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(left, right)[0, 1])


def _rounded(value: Any) -> float:
    return round(float(value), 6)
