"""What the service tells its worker process, and what the worker answers: JSON, one line each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from modelworks.optimizer.manifest import FileBytes
from modelworks.optimizer.measurement import Measurement, OutputKind, Value
from modelworks.optimizer.recipe import Rules
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class Effort(Value):
    """How much measuring a job may do."""

    threads: int = Field(1, ge=1, le=256)
    """Threads inside an operator while timing."""
    threads_compare: int = Field(0, ge=0, le=256)
    """Threads while answers are compared, which nobody times; 0 takes one a core."""
    batches: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (1, 8)
    rounds: int = Field(15, ge=5, le=1000)
    """Rounds of paired timing a batch size."""
    seconds_max: float = Field(4.0, gt=0, le=3600)
    """Wall time of the rounds of one batch size."""
    samples_max: int = Field(600, ge=1, le=100_000)
    """Inputs to compare answers on."""
    seconds_compare_max: float = Field(20.0, gt=0, le=86_400)
    """Wall time of each model's answers; when it is over, those answered so far (64 at least) are compared."""
    probe_samples: int = Field(32, ge=1, le=10_000)
    """Inputs for choosing among a pass's candidates."""
    output_bytes_max: int = Field(512 * 1024 * 1024, ge=1024)
    """Outputs that are kept for the comparison."""


class Order(BaseModel):
    """One job for a worker. Paths are relative to `folder`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    """Holds `source/` with the revision's files; the worker writes `variant/`."""
    targets: tuple[str, ...]
    pass_name: str
    options: dict[str, Any]
    rules: Rules
    arrays: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    inputs: dict[str, FileBytes] = Field(default_factory=dict)
    outputs: dict[str, OutputKind] = Field(default_factory=dict)
    effort: Effort = Effort()
    memory_bytes_max: int


class Progressed(Value):
    """The worker is at some share of a stage."""

    type: Literal["progress"] = "progress"
    stage: str
    progress: float
    """0 to 1, of this stage."""


class Finished(Value):
    """The worker is done; variants lie in `variant/`."""

    type: Literal["finished"] = "finished"
    measurement: Measurement


class Refused(Value):
    """The worker cannot do it."""

    type: Literal["refused"] = "refused"
    code: str
    message: str


Answer = Progressed | Finished | Refused

ANSWER: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(discriminator="type")])
"""Reads a line of the worker's."""
