"""Read the rows of a data source as fields, and keep what is wrong with them.

Knows files and their formats; knows nothing about prompts, templates or splits.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from pydantic import JsonValue

from modelmill.spec.errors import DataError

Fields: TypeAlias = dict[str, JsonValue]
"""One row, as its file has it."""

PROBLEMS_SHOWN: Final = 20
"""A source that is wrong everywhere is understood from its first rows."""

ROW_LIMIT_BYTES: Final = 16 * 2**20


class Table:
    """The rows of a source: iterate over it, refuse what is wrong, then check it.

    Iterating gives the number of each good row, 0-based over the whole source, and its fields;
    what cannot be read as fields is refused on the way.
    """

    def __init__(self, files: Sequence[Path], asked: str) -> None:
        """Read nothing yet.

        Args:
            files: in the order of their rows.
            asked: how the user calls the source, for messages.
        """
        self._files = tuple(files)
        self._asked = asked
        self._rows = 0
        self._problems: list[str] = []

    def __iter__(self) -> Iterator[tuple[int, Fields]]:
        """Read row by row."""
        for path in self._files:
            for number, line in _lines(path):
                self._rows += 1
                try:
                    fields = _fields(line)
                except ValueError as error:
                    self.refuse(number, str(error))
                else:
                    yield number, fields

    def refuse(self, number: int, reason: str) -> None:
        """Note that a row cannot be used."""
        self._problems.append(f"row {number + 1}: {reason}")

    def check(self, needs: str) -> None:
        """Make sure that there were rows and that none was refused.

        Args:
            needs: what a row has to hold.

        Raises:
            DataError: with the numbers of the rows that are wrong and why.
        """
        fix = f"one JSON object a line, UTF-8, {needs}"
        if self._problems:
            raise DataError(_listed(self._problems, self._rows), at=self._asked, fix=fix)
        if not self._rows:
            raise DataError("There are no rows", at=self._asked, fix=fix)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            if line.strip():
                yield number, line


def _fields(line: bytes) -> Fields:
    if len(line) > ROW_LIMIT_BYTES:
        msg = f"longer than {ROW_LIMIT_BYTES // 2**20} MiB"
        raise ValueError(msg)
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"not UTF-8 at byte {error.start}"
        raise ValueError(msg) from None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        msg = f"not JSON: {error.msg} at column {error.colno}"
        raise ValueError(msg) from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(value, dict):
        msg = f"a JSON {type(value).__name__}, not an object"
        raise ValueError(msg)
    return value


def _unique(pairs: list[tuple[str, JsonValue]]) -> Fields:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field stands twice")
    return fields


def _no_constant(name: str) -> JsonValue:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _listed(problems: Sequence[str], rows: int) -> str:
    shown = "\n".join(f"  {each}" for each in problems[:PROBLEMS_SHOWN])
    more = len(problems) - PROBLEMS_SHOWN
    tail = f"\n  and {more} more" if more > 0 else ""
    return f"{len(problems)} of {rows} rows are wrong\n{shown}{tail}"
