"""Random inputs of a model's declared types and shapes, seeded, and inside the vocabulary where one can be seen."""

from __future__ import annotations

import numpy as np
from modelworks.optimizer.evaluation.session import Array, Runnable, TensorSpec

# For open dimensions that are no batch: long enough for windows and kernels of common models, short enough to be quick.
_OPEN_SIZE = 16
_IMAGE_SIZE = 64
_INTEGERS_BELOW = 100


def synthetic_samples(model: Runnable, *, count: int) -> dict[str, Array]:
    """`count` samples of each input; integers that index a table stay inside it."""
    rng = np.random.default_rng(0)
    bounds = model.bounds
    return {
        spec.name: _random(rng, spec, _shape(spec, count, batched=model.batchable), bounds.get(spec.name))
        for spec in model.inputs
    }


def _shape(spec: TensorSpec, count: int, *, batched: bool) -> tuple[int, ...]:
    inner = spec.shape[1:] if batched else spec.shape
    image = len(spec.shape) == 4 and spec.dtype.kind == "f"
    open_size = _IMAGE_SIZE if image else _OPEN_SIZE
    sizes = [size if isinstance(size, int) else open_size for size in inner]
    if not batched and sizes and not isinstance(spec.shape[0], int):
        sizes[0] = 1
    if image and batched and not isinstance(spec.shape[1], int):
        sizes[0] = 3
    return (count, *sizes)


def _random(rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...], below: int | None) -> Array:
    kind = spec.dtype.kind
    if kind == "f":
        return rng.standard_normal(shape).astype(spec.dtype)
    if kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if kind == "O":
        return np.full(shape, "text", dtype=object)
    name = spec.name.lower()
    if "mask" in name:
        return np.ones(shape, dtype=spec.dtype)
    if "type" in name:
        return np.zeros(shape, dtype=spec.dtype)
    return rng.integers(0, min(below or _INTEGERS_BELOW, np.iinfo(spec.dtype).max), shape).astype(spec.dtype)
