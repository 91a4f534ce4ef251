"""What audit announces."""

from __future__ import annotations

from typing import Annotated, ClassVar

from modelworks.events.event import Audited, Event
from modelworks.events.values import Sha256
from pydantic import Field


class CheckpointSigned(Event):
    """The log grew and its new head was signed. Not audited itself: the log would never rest."""

    topic: ClassVar[str] = "audit.checkpoint-signed.v1"
    key_field: ClassVar[str] = "origin"
    audited: ClassVar[Audited] = Audited.NO

    origin: Annotated[str, Field(min_length=1, max_length=200)]
    size: Annotated[int, Field(ge=0)]
    """Number of leaves."""
    root: Sha256
