"""The models of this worker: which is served under a name, switched in one step, closed when nobody needs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from modelworks.inference.engine.errors import ModelNotReady, ModelUnknown
from modelworks.inference.engine.messages import Array, TensorSpec, size_bytes
from modelworks.inference.engine.session import Session
from modelworks.inference.engine.statistics import Statistics
from modelworks.inference.engine.v2 import InferBody
from modelworks.kit.errors import InvalidInput, NotFound, TooLarge

_REVISION_PREFIX_MIN = 7
"""Shortest part of a commit id that names a version; git's habit."""


@dataclass(eq=False, slots=True)
class LoadedModel:
    """One revision of a model in memory."""

    name: str
    ref: str
    revision: str
    sha256: str
    session: Session
    max_batch: int
    """Rows of one batch; 1 when the model has no batch dimension."""
    max_delay_seconds: float
    """Longest wait for companions."""
    load_ms: float
    pinned: bool = False
    """Never unloaded to make room."""
    statistics: Statistics = field(default_factory=Statistics)
    last_used: float = field(default_factory=time.monotonic)
    outstanding: int = 0
    """Requests that wait or run."""
    retired: bool = False

    @property
    def memory_bytes(self) -> int:
        """What loading it took, measured."""
        return self.session.memory_bytes

    @property
    def batched(self) -> bool:
        """Rows of different requests may share a run."""
        return self.session.batchable and self.max_batch > 1

    @property
    def sole_input(self) -> TensorSpec | None:
        """The input of a model that has exactly one."""
        return self.session.inputs[0] if len(self.session.inputs) == 1 else None

    def acquire(self) -> None:
        """A request needs the model."""
        self.outstanding += 1
        self.last_used = time.monotonic()

    def release(self) -> None:
        """It no longer does."""
        self.outstanding -= 1
        if self.retired and self.outstanding == 0:
            self.session.close()

    def retire(self) -> None:
        """Close as soon as the last request has left."""
        self.retired = True
        if self.outstanding == 0:
            self.session.close()

    def answers_to(self, version: str) -> bool:
        """Whether a caller who names this version means the loaded one: its commit, a prefix of it, or its ref."""
        return version in (self.revision, self.ref) or (
            len(version) >= _REVISION_PREFIX_MIN and self.revision.startswith(version)
        )

    def checked(self, body: InferBody, *, rows_max: int) -> tuple[Mapping[str, Array], int, tuple[str, ...], int]:
        """Inputs, rows, wanted outputs and input bytes of a request that this model can run.

        Raises:
            InvalidInput: a tensor is missing, unknown, or of another type or shape than the model declares.
            TooLarge: more than `rows_max` rows.
        """
        given = {tensor.name: tensor for tensor in body.inputs}
        declared = self.session.inputs
        if len(given) != len(declared) or any(spec.name not in given for spec in declared):
            raise InvalidInput(
                f"model {self.name} takes inputs {', '.join(repr(spec.name) for spec in declared)}; "
                f"the request has {', '.join(repr(name) for name in given)}"
            )
        rows, size = 1, 0
        arrays: dict[str, Array] = {}
        for number, spec in enumerate(declared):
            tensor = given[spec.name]
            shape = tensor.array.shape
            if tensor.datatype != spec.datatype:
                raise InvalidInput(
                    f"input {spec.name!r} of model {self.name} is {spec.datatype}, the request has {tensor.datatype}"
                )
            if len(shape) != len(spec.shape) or any(
                want not in (-1, have) for want, have in zip(spec.shape, shape, strict=True)
            ):
                raise InvalidInput(
                    f"input {spec.name!r} of model {self.name} has shape {list(spec.shape)} (-1: any), "
                    f"the request has {list(shape)}"
                )
            if self.session.batchable:
                if number and shape[0] != rows:
                    raise InvalidInput(f"inputs have different batch sizes: {rows} and {shape[0]} ({spec.name!r})")
                rows = shape[0]
            arrays[spec.name] = tensor.array
            size += size_bytes(tensor.array)
        if rows < 1:
            raise InvalidInput("the batch dimension is 0: send at least one row")
        if rows > rows_max:
            raise TooLarge(f"{rows} rows in one request, at most {rows_max} allowed: split it, or queue several jobs")
        return arrays, rows, self._wanted(body), size

    def _wanted(self, body: InferBody) -> tuple[str, ...]:
        declared = tuple(spec.name for spec in self.session.outputs)
        if not body.outputs:
            return declared
        for wish in body.outputs:
            if wish.name not in declared:
                known = ", ".join(repr(name) for name in declared)
                raise InvalidInput(f"model {self.name} has no output {wish.name!r}; it has {known}")
        return tuple(wish.name for wish in body.outputs)


def _nobody(_: str) -> None: ...


class Models:
    """Name to loaded model, and the names that should be loaded and are not."""

    def __init__(self) -> None:
        self._serving: dict[str, LoadedModel] = {}
        self._missing: dict[str, tuple[str, bool]] = {}
        self.complete = False
        """The deployments were read once: a name that is not here is not deployed."""
        self.on_miss: Callable[[str], None] = _nobody
        """Told when a caller asks for a deployed model that is not loaded."""

    def get(self, name: str, version: str = "") -> LoadedModel:
        """The model that serves `name`.

        Args:
            version: a commit, a prefix of one, or a ref; empty takes what is deployed.

        Raises:
            ModelUnknown: nothing is deployed under the name.
            ModelNotReady: it is deployed, and this worker has not loaded it.
            NotFound: another version is deployed.
        """
        model = self._serving.get(name)
        if model is None:
            known = self._missing.get(name)
            if known is None and not self.complete:
                raise ModelNotReady(f"model {name!r} is not ready: this worker has just started")
            if known is None:
                raise ModelUnknown(f"model {name!r} is not deployed: POST /api/v1/deployments first")
            self.on_miss(name)
            why, failed = known
            raise ModelNotReady(f"model {name!r} is not ready: {why}", failed=failed)
        if version and not model.answers_to(version):
            raise NotFound(f"model {name!r} is deployed at {model.ref} ({model.revision}), not at {version!r}")
        return model

    def peek(self, name: str) -> LoadedModel | None:
        """The model that serves `name`, if one does; nobody is told."""
        return self._serving.get(name)

    def serve(self, model: LoadedModel) -> LoadedModel | None:
        """From now on requests go to `model`; returns the one before, which the caller retires."""
        old = self._serving.get(model.name)
        self._serving[model.name] = model
        self._missing.pop(model.name, None)
        return old

    def withdraw(self, name: str) -> LoadedModel | None:
        """Stop serving a name; returns what served it, which the caller retires."""
        self._missing.pop(name, None)
        return self._serving.pop(name, None)

    def expect(self, name: str, why: str, *, failed: bool = False) -> None:
        """The name is deployed and not loaded; callers are told why."""
        if name not in self._serving:
            self._missing[name] = (why, failed)

    def all(self) -> list[LoadedModel]:
        """What is served, by name."""
        return [self._serving[name] for name in sorted(self._serving)]

    def missing(self) -> Mapping[str, str]:
        """Deployed names that are not loaded, and why."""
        return {name: why for name, (why, _) in sorted(self._missing.items())}

    def memory_bytes(self) -> int:
        """Of all that is served."""
        return sum(model.memory_bytes for model in self._serving.values())
