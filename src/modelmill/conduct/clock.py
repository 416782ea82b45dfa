"""The time, as records tell it, and how long what they tell can be believed."""

from datetime import UTC, datetime, timedelta
from typing import Final

YOUNG: Final = timedelta(minutes=2)
"""Progress is told every 15 s; who has been silent for longer has died without a word."""


def is_young(time: str) -> bool:
    """Tell whether what was told then can still be believed."""
    return datetime.now(UTC) - datetime.fromisoformat(time) < YOUNG


def now() -> str:
    """Write the time as events do: UTC, ISO 8601, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
