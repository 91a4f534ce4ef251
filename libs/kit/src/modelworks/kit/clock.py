"""Time is passed in, so that tests need not wait."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""The current time, with time zone."""


def utc_now() -> datetime:
    """The system's clock."""
    return datetime.now(UTC)
