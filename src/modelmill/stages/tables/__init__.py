"""Read the rows of a data source as fields, and keep what is wrong with them.

Knows files and their formats; knows nothing about prompts, templates or splits.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from modelmill.spec.errors import DataError
from modelmill.spec.sources import TABLE_NAMES, TableKind, table_kind, tables_among
from modelmill.stages.tables.limits import Fields, Reading, Refused, Unpacked, Unreadable
from modelmill.stages.tables.lines import read_csv, read_jsonl, read_text, read_tsv

__all__ = ["PROBLEMS_SHOWN", "Fields", "Table", "table_of"]

PROBLEMS_SHOWN: Final = 20
"""A source that is wrong everywhere is understood from its first rows."""


def _read_parquet(path: Path, unpacked: Unpacked) -> Reading:
    """Load pyarrow only for who has such a file."""
    from modelmill.stages.tables.parquet import read_parquet

    return read_parquet(path, unpacked)


Reader: TypeAlias = Callable[[Path, Unpacked], Reading]

_READERS: Final[Mapping[TableKind, Reader]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": _read_parquet,
    "text": read_text,
}
_SHAPES: Final[Mapping[TableKind, str]] = {
    "jsonl": "one JSON object a line, UTF-8",
    "csv": "UTF-8, a header that names every column once, and as many fields in every row",
    "tsv": "UTF-8, a header that names every column once, and as many fields in every row",
    "parquet": "columns of text, numbers, times, or lists and structures of these",
    "text": "UTF-8, texts with empty lines between them",
}


def table_of(folder: Path, asked: str) -> "Table":
    """Find the files of rows in a folder, in the order of their names.

    Args:
        folder: what the source was pulled into.
        asked: how the user calls the source, for messages.

    Raises:
        DataError: there are none, or they are of more than one format.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    chosen = tables_among(str(path) for path in files)
    kinds = {path: chosen[str(path)] for path in files if str(path) in chosen}
    others = [path.name for path in files if path not in kinds]
    if not kinds:
        names = ", ".join(others[:5])
        raise DataError(
            f"There are no files of rows ({names})", at=asked, fix=f"name them {TABLE_NAMES}"
        )
    if len(set(kinds.values())) > 1:
        raise DataError(
            f"The files are of more than one format ({', '.join(sorted(set(kinds.values())))})",
            at=asked,
            fix="keep one format in a folder, or name a file",
        )
    left_out = f"left out {', '.join(others)}: not named as rows" if others else ""
    return Table(list(kinds), asked, left_out)


class Table:
    """The rows of a source: iterate over it, refuse what is wrong, then check it.

    Iterating gives the number of each good row, 0-based over the whole source, and its fields;
    what cannot be read as fields is refused on the way.
    """

    def __init__(self, files: Sequence[Path], asked: str, note: str = "") -> None:
        """Read nothing yet.

        Args:
            files: of one format, in the order of their rows.
            asked: how the user calls the source, for messages.
            note: what the user must know about the choice of files.
        """
        self.note = note
        self.size = 0
        """Numbers that are taken so far: those of rows, and of empty lines before one."""
        self._files = tuple(files)
        self._asked = asked
        self._starts: list[int] = []
        self._rows = self._refused = self._unreadable = 0
        self._problems: list[str] = []

    def __iter__(self) -> Iterator[tuple[int, Fields]]:
        """Read row by row."""
        unpacked = Unpacked()
        for path in self._files:
            start = self.size
            self._starts.append(start)
            kind = table_kind(path.name)
            assert kind is not None
            try:
                for number, found in _READERS[kind](path, unpacked):
                    self._rows += 1
                    self.size = start + number + 1
                    if isinstance(found, Refused):
                        self.refuse(start + number, found.reason)
                    else:
                        yield start + number, found
            except Unreadable as error:
                self._unreadable += 1
                self._note(f"{path.name} {error}")

    def refuse(self, number: int, reason: str) -> None:
        """Note that a row cannot be used."""
        self._refused += 1
        file = bisect_right(self._starts, number) - 1
        row = f"row {number - self._starts[file] + 1}"
        many = len(self._files) > 1
        self._note(f"{self._files[file].name} {row}: {reason}" if many else f"{row}: {reason}")

    def check(self, needs: str) -> None:
        """Make sure that there were rows and that none was refused.

        Args:
            needs: what a row has to hold.

        Raises:
            DataError: with the rows and files that are wrong, and why.
        """
        kind = table_kind(self._files[0].name)
        assert kind is not None
        fix = f"{_SHAPES[kind]}, {needs}"
        if self._problems:
            raise DataError(self._words(), at=self._asked, fix=fix)
        if not self._rows:
            raise DataError("There are no rows", at=self._asked, fix=fix)

    def _note(self, problem: str) -> None:
        if len(self._problems) < PROBLEMS_SHOWN:
            self._problems.append(problem)

    def _words(self) -> str:
        counts = [
            f"{self._refused} of {self._rows} rows are wrong" if self._refused else "",
            f"{self._unreadable} of {len(self._files)} files cannot be read"
            if self._unreadable
            else "",
        ]
        shown = "\n".join(f"  {each}" for each in self._problems)
        more = self._refused + self._unreadable - len(self._problems)
        tail = f"\n  and {more} more" if more > 0 else ""
        return f"{', '.join(filter(None, counts))}\n{shown}{tail}"
