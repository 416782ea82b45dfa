"""What readers of tables share: a row as fields, refusals, and how far a file may unfold."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from pydantic import JsonValue

Fields: TypeAlias = dict[str, JsonValue]
"""One row, as its file has it."""

ROW_LIMIT_BYTES: Final = 16 * 2**20

UNPACKED_RATIO: Final = 200
"""Text packs to a fifth, repetitive rows to a fiftieth; gzip's limit is a thousandth."""
UNPACKED_ALWAYS_BYTES: Final = 64 * 2**20
"""So much is harmless whatever it was packed to."""
UNPACKED_LIMIT_BYTES: Final = 8 * 2**30
"""Of one source; all of its rows are held in memory."""


@dataclass(frozen=True)
class Refused:
    """A row that cannot be read as fields."""

    reason: str


class Unreadable(ValueError):
    """A file, or the rest of one, that cannot be read at all."""


Reading: TypeAlias = Iterator[tuple[int, Fields | Refused]]
"""Numbers within the file, from 0, and what stands there."""


class Unpacked:
    """Counts what the compressed files of one source have become."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._packed_bytes = 0
        self._unpacked_bytes = 0

    def opens(self, path: Path) -> None:
        """Take a file's own size into account."""
        self._packed_bytes += path.stat().st_size

    def add(self, count: int) -> None:
        """Take bytes into account, before they are kept.

        Raises:
            Unreadable: they are more than rows of such files ever become.
        """
        self.expect(count)
        self._unpacked_bytes += count

    def expect(self, count: int) -> None:
        """Refuse bytes that would be too many, without taking them into account yet.

        Raises:
            Unreadable: as for `add`.
        """
        by_ratio = max(UNPACKED_ALWAYS_BYTES, UNPACKED_RATIO * self._packed_bytes)
        limit_bytes = min(by_ratio, UNPACKED_LIMIT_BYTES)
        if self._unpacked_bytes + count > limit_bytes:
            msg = (
                f"unpacks to more than {limit_bytes / 2**20:,.0f} MiB from "
                f"{self._packed_bytes / 2**20:,.1f} MiB; unpack it yourself if it is what you want"
            )
            raise Unreadable(msg)
