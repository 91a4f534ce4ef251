"""`deploy/Dockerfile` as stages of instructions, for the tests that hold it to the members and run its install steps."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.repo.sources import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


@dataclass(frozen=True)
class Instruction:
    """One instruction: its word and the rest, continuation lines joined."""

    word: str
    rest: str

    @property
    def flags(self) -> Mapping[str, str]:
        """`--from=x` at its front; of a repeated flag the last."""
        return dict(re.findall(r"--(\w+)=(\S+)", self.rest[: self.rest.find(self.arguments) or len(self.rest)]))

    @property
    def mounts(self) -> Sequence[Mapping[str, str]]:
        """The `--mount` flags of a RUN."""
        found = re.findall(r"--mount=(\S+)", self.rest)
        return [dict(part.split("=", 1) for part in mount.split(",")) for mount in found]

    @property
    def arguments(self) -> str:
        """Without the flags at its front."""
        return re.sub(r"^(--\S+\s+)*", "", self.rest)

    @property
    def words(self) -> Sequence[str]:
        """The list of an instruction in exec form.

        Raises:
            ValueError: it is in shell form.
        """
        found: Sequence[str] = json.loads(self.arguments)
        return found


@dataclass
class Stage:
    """What stands between one FROM and the next."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[Instruction]:
        return [item for item in self.instructions if item.word == word]


def stages() -> dict[str, Stage]:
    """All stages by name, in order."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if not word:
            continue
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found[name] = Stage(name, base)
        elif current is not None:
            current.instructions.append(Instruction(word, " ".join(rest.split())))
    return found


def chain(name: str) -> list[Stage]:
    """The stage and those it is built from, the first first."""
    every = stages()
    found = [every[name]]
    while found[0].base in every:
        found.insert(0, every[found[0].base])
    return found
