"""What every event has: a topic, a key, and a say in how the audit log keeps it."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Audited(StrEnum):
    """How much of an event the audit log keeps."""

    FULL = "full"
    """The leaf holds the event's exact bytes."""
    DIGEST = "digest"
    """The leaf holds the envelope and the sha256 of the body: for bodies that may carry users' tensors."""
    NO = "no"
    """Not kept: internal work items whose outcome is audited instead."""


class StrictValue(BaseModel):
    """A frozen value inside an event. Unknown properties are ignored, so that a newer producer does not break us."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Event(StrictValue):
    """A fact, past tense. Subclasses set `topic` and `key_field`."""

    topic: ClassVar[str]
    """Topic and CloudEvents type: `<service>.<noun>-<past verb>.v<major>`."""
    key_field: ClassVar[str]
    """Name of the field with the aggregate's id: events of one aggregate keep their order."""
    audited: ClassVar[Audited] = Audited.FULL

    @property
    def key(self) -> str:
        """The aggregate's id; the message key on the bus and the CloudEvents subject."""
        return str(getattr(self, self.key_field))
