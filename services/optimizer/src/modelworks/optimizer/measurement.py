"""What was measured, as frozen values that travel from the worker process into the report.

Ratios of size are original over variant (above 1: smaller); ratios of latency
are variant over original (below 1: faster), as in `optimizer.variant-built.v1`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class Value(BaseModel):
    """Frozen, closed, and free of NaN: what is in a report can be compared."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Machine(Value):
    """The processor that the figures were taken on."""

    cpu: str
    architecture: str
    cores: int
    flags: tuple[str, ...]
    """Instruction sets that decide about speed, as the kernel lists them."""
    flags_known: bool
    """False where the system does not say."""
    int8_dot: str | None
    """The instruction set with exact int8 dot products (VNNI, AMX, ARM dot product); None: there is none."""

    @property
    def saturates(self) -> bool:
        """Whether signed int8 weights may saturate: x86 without VNNI adds two products in 16 bits."""
        return self.int8_dot is None and self.architecture in ("x86_64", "AMD64", "i686")


class Size(Value):
    """Bytes on disk, external data included."""

    original_bytes: int
    variant_bytes: int
    ratio: float


class Latency(Value):
    """Paired, interleaved run times of one batch size."""

    batch: int
    threads: int
    rounds: int
    runs: int
    """Runs of each model a round; a round gives one median for each."""
    original_ms: float
    """Median over the rounds."""
    variant_ms: float
    ratio: float
    """Median of the rounds' ratios."""
    ratio_low: float
    """Lower end of the 95 % bootstrap interval of the ratio."""
    ratio_high: float
    spread: float
    """Interquartile range of the original's round medians over their median: how noisy the machine was."""
    load_average: float
    """One-minute load of the machine when the rounds began."""
    cpu_share: float
    """Processor time over wall time; far below the count of threads means that others had the processor."""


OutputKind = Literal["classes", "vectors", "values", "exact"]


class OutputAgreement(Value):
    """How alike one output of the two models is."""

    name: str
    kind: OutputKind
    """`classes`: same argmax. `vectors`: cosine of at least `threshold`. `values`: relative error of at most
    `threshold`. `exact`: equal."""
    declared: bool
    """The repository said the kind; otherwise it was guessed from name, shape and values."""
    agreement: Share
    threshold: float | None = None
    cosine_mean: float | None = None
    cosine_min: float | None = None
    difference_max: float | None = None
    """Largest absolute difference of two finite elements."""
    neighbours: Share | None = None
    """For vectors of at least 50 inputs: mean overlap of the ten nearest neighbours among the inputs."""
    rank_correlation: float | None = None
    """Likewise: Spearman's correlation of the cosines of all pairs of inputs."""


class Agreement(Value):
    """How alike the two models answer."""

    samples: int
    batch: int
    """Inputs a run: dynamic int8 scales activations over the whole batch."""
    agreement: Share
    """The lowest of the outputs."""
    cosine_mean: float | None = None
    """The lowest of the float outputs."""
    original_not_finite: int
    """Inputs on which the original answers with NaN or infinity; they count as disagreement."""
    variant_not_finite: int
    """Inputs on which only the variant does."""
    outputs: tuple[OutputAgreement, ...]


class OperatorTime(Value):
    """One kind of operator's share of a run at batch 1."""

    operator: str
    ms: float


class Profile(Value):
    """Where the time goes, by kind of operator, the longest first."""

    original: tuple[OperatorTime, ...]
    variant: tuple[OperatorTime, ...]


class Inputs(Value):
    """Where the evaluation inputs came from."""

    source: Literal["repository", "derived", "synthetic"]
    """`repository`: arrays that the repository holds. `derived`: made from the repository's own files by a declared
    rule. `synthetic`: random; agreement on them says little."""
    description: str
    samples: int


class CandidateMeasurement(Value):
    """A candidate of the pass, as the short probe saw it."""

    name: str
    facts: dict[str, str | int | float | bool]
    size_ratio: float
    latency_ratio: float | None = None
    agreement: Share | None = None
    cosine_mean: float | None = None
    chosen: bool
    refused: str | None = None
    """Why it could not be used."""


class TargetMeasurement(Value):
    """One optimised file."""

    path: str
    """Of the variant."""
    candidates: tuple[CandidateMeasurement, ...]
    inputs: Inputs
    size: Size
    latency: tuple[Latency, ...]
    agreement: Agreement
    profile: Profile
    beside_original: tuple[str, ...] = ()
    """Paths of files with the original's large tensors."""
    beside_variant: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What the measuring had to leave out or do otherwise, in sentences."""

    @property
    def chosen(self) -> CandidateMeasurement:
        """The candidate that became the variant."""
        return next(candidate for candidate in self.candidates if candidate.chosen)


class Measurement(Value):
    """Everything a worker found out."""

    targets: tuple[TargetMeasurement, ...]
    machine: Machine
    versions: dict[str, str]
    seconds: float
    """Wall time of the worker."""
    memory_bytes_peak: int
    """Highest resident set of the worker."""

    @property
    def size_ratio(self) -> float:
        """All targets together."""
        original = sum(target.size.original_bytes for target in self.targets)
        return original / sum(target.size.variant_bytes for target in self.targets)

    @property
    def latency_ratio(self) -> float:
        """The worst target at its smallest batch."""
        return max(target.latency[0].ratio for target in self.targets)

    @property
    def agreement(self) -> float:
        """The worst target."""
        return min(target.agreement.agreement for target in self.targets)
