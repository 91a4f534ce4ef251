"""What the two models are compared on: the repository's own arrays, its own files, or, failing both, noise.

A sample is one input of the model, a batch of one. Whatever the source, the
report says which it was and how many samples there are.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from modelworks.optimizer.evaluation.session import Array, Runnable, TensorSpec
from modelworks.optimizer.evaluation.synthetic import synthetic_samples
from modelworks.optimizer.manifest import FileBytes
from modelworks.optimizer.measurement import Inputs

# An array's declared size is checked before it is unpacked: a few kilobytes of zip can hold gigabytes.
_UNPACKED_BYTES_MAX = 1 << 30


class Unusable(Exception):
    """These inputs do not fit the model; the text is for the report's notes."""


@dataclass(frozen=True)
class InputSet:
    """Samples of every input, aligned."""

    arrays: Mapping[str, Array]
    """`[samples, ...]`, or `[samples, 1-or-more, ...]` where `whole` is set."""
    whole: bool
    """Each sample is a complete feed (the model's first dimension is no open batch)."""
    about: Inputs

    @property
    def samples(self) -> int:
        return self.about.samples

    def feed(self, start: int, count: int) -> dict[str, Array]:
        """Samples `start` to `start + count`; `count` is 1 when the samples are whole feeds."""
        if self.whole:
            return {name: np.ascontiguousarray(array[start]) for name, array in self.arrays.items()}
        return {name: np.ascontiguousarray(array[start : start + count]) for name, array in self.arrays.items()}

    def repeated(self, start: int, count: int) -> dict[str, Array]:
        """As `feed`, going round when the samples end: for timing."""
        chosen = [(start + number) % self.samples for number in range(count)]
        return {name: np.ascontiguousarray(array[chosen]) for name, array in self.arrays.items()}


def find_inputs(
    model: Runnable,
    *,
    arrays: Sequence[Path],
    files: Sequence[Path],
    declared: Mapping[str, FileBytes],
    samples_max: int,
    root: Path,
) -> tuple[InputSet, tuple[str, ...]]:
    """The best inputs there are, and notes on why better ones could not be used.

    Args:
        arrays: `.npz` files of the repository, tried in order.
        files: the repository's own files, for declared inputs.
        root: folder that paths are shown relative to.
    """
    notes: list[str] = []
    for path in arrays:
        try:
            return from_npz(model, path, samples_max=samples_max, shown=str(path.relative_to(root))), tuple(notes)
        except Unusable as error:
            notes.append(f"{path.relative_to(root)} was not used: {error}.")
    if declared:
        try:
            return from_files(model, files, declared, samples_max=samples_max), tuple(notes)
        except Unusable as error:
            notes.append(f"Inputs could not be derived from the repository's files: {error}.")
    sample_arrays = synthetic_samples(model, count=min(samples_max, 64))
    about = Inputs(
        source="synthetic", samples=min(samples_max, 64), description="random numbers of the declared types and shapes"
    )
    return InputSet(sample_arrays, whole=not model.batchable, about=about), tuple(notes)


def from_npz(
    model: Runnable, path: Path, *, samples_max: int, shown: str, unpacked_bytes_max: int = _UNPACKED_BYTES_MAX
) -> InputSet:
    """Arrays of an `.npz` file, one for each input by name, samples along the first axis.

    Raises:
        Unusable: not an `.npz`, an input is missing, or a type or shape does not fit.
    """
    found: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > unpacked_bytes_max:
            raise Unusable(f"it unpacks to {unpacked} bytes, at most {unpacked_bytes_max} allowed")
        with np.load(path, allow_pickle=False) as bundle:
            missing = [spec.name for spec in model.inputs if spec.name not in bundle.files]
            if missing:
                has = ", ".join(bundle.files[:20]) or "nothing"
                raise Unusable(f"it has no array for input {', '.join(missing)} (it has: {has})")
            for spec in model.inputs:
                found[spec.name] = bundle[spec.name]
    except (OSError, ValueError, zipfile.BadZipFile, KeyError, EOFError) as error:
        raise Unusable(f"it cannot be read as .npz: {error}") from error
    return _aligned(model, found, "repository", shown, samples_max)


def from_files(
    model: Runnable, files: Sequence[Path], declared: Mapping[str, FileBytes], *, samples_max: int
) -> InputSet:
    """Each file one sample, by the rule that the repository declares.

    Raises:
        Unusable: an input has no rule, there are no files, or the result does not fit.
    """
    missing = [spec.name for spec in model.inputs if spec.name not in declared]
    if missing:
        raise Unusable(f"input {', '.join(missing)} has no declaration")
    contents = [path.read_bytes() for path in files[:samples_max]]
    if not contents:
        raise Unusable("the repository holds no files to make them from")
    found = {
        spec.name: np.array([tokens(content, declared[spec.name]) for content in contents]).astype(spec.dtype)
        for spec in model.inputs
    }
    return _aligned(model, found, "derived", "the first and last bytes of the repository's files", samples_max)


def tokens(content: bytes, rule: FileBytes) -> list[int]:
    """The first and last bytes of a file as numbers, padded on the inner side, as byte models want them."""
    block = max(rule.block_bytes, rule.first, rule.last)
    head, tail = content[:block], content[-block:]
    if rule.strip:
        head, tail = head.lstrip(), tail.rstrip()
    first, last = list(head[: rule.first]), list(tail[-rule.last :]) if rule.last else []
    return first + [rule.padding] * (rule.first - len(first)) + [rule.padding] * (rule.last - len(last)) + last


def _aligned(model: Runnable, found: Mapping[str, Array], source: Any, shown: str, samples_max: int) -> InputSet:
    arrays: dict[str, Array] = {}
    whole = not model.batchable
    for spec in model.inputs:
        arrays[spec.name] = _fitted(found[spec.name], spec, whole=whole)
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise Unusable(f"the arrays have different numbers of samples: {counts}")
    total = next(iter(counts.values()))
    if total == 0:
        raise Unusable("it holds no samples")
    # The order of a set may well be by class, and not all of it may be used.
    samples = min(total, samples_max)
    chosen = np.random.default_rng(0).permutation(total)[:samples]
    arrays = {name: array[chosen] for name, array in arrays.items()}
    return InputSet(arrays, whole=whole, about=Inputs(source=source, description=shown, samples=samples))


def _fitted(array: Array, spec: TensorSpec, *, whole: bool) -> Array:
    """The array with samples along the first axis, in the input's type and shape."""
    if whole and array.ndim == len(spec.shape) and array.ndim > 0:
        fixed = spec.shape[0]
        if isinstance(fixed, int) and len(array) % fixed == 0:
            array = array.reshape(-1, fixed, *array.shape[1:])
    wanted = spec.shape if whole else spec.shape[1:]
    sizes = array.shape[1:]
    fits = len(sizes) == len(wanted) and all(
        not isinstance(want, int) or want == size for want, size in zip(wanted, sizes, strict=True)
    )
    if array.ndim == 0 or not fits:
        raise Unusable(f"array {spec.name!r} is {array.dtype.name} {list(array.shape)}, the model wants {spec}")
    if array.dtype == spec.dtype:
        return array
    if spec.dtype.kind == "O" and array.dtype.kind in "US":
        return array.astype(object)
    # Another width of the same kind is a slip of the writer; another kind is another thing.
    if array.dtype.kind not in "iu" or spec.dtype.kind not in "iu":
        if array.dtype.kind != "f" or spec.dtype.kind != "f":
            raise Unusable(f"array {spec.name!r} is {array.dtype.name}, the model wants {spec}")
        return array.astype(spec.dtype)
    info = np.iinfo(spec.dtype)
    if array.size and (array.min() < info.min or array.max() > info.max):
        raise Unusable(f"array {spec.name!r} has values outside {spec.dtype.name}")
    return array.astype(spec.dtype)
