"""Turn a JSONL file into checked rows, or name everything that is wrong with it.

Knows files and splits; what a row has to hold is known by `formats`, and nothing here knows
about tokens or stores.
"""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import JsonValue

from modelmill.spec.errors import DataError
from modelmill.spec.records import Row
from modelmill.stages.formats import MakeRow
from modelmill.stages.likeness import prompt_print

PROBLEMS_SHOWN = 20
"""A file that is wrong everywhere is understood from its first rows."""

ROW_LIMIT_BYTES = 16 * 2**20


def read_rows(path: Path, make: MakeRow, asked: str, needs: str) -> tuple[Row, ...]:
    """Read every row.

    Args:
        path: UTF-8 JSONL, one object a line; empty lines are skipped.
        make: makes a row of a line's fields.
        asked: how the user calls the file, for messages.
        needs: how a row should look, for messages.

    Raises:
        DataError: with the numbers of the rows that are wrong and why, or there are none.
    """
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in _lines(path):
        try:
            rows.append(make(number, _fields(line)))
        except ValueError as error:
            problems.append(f"row {number + 1}: {error}")
    fix = f"one JSON object a line, UTF-8, {needs}"
    if problems:
        raise DataError(_listed(problems, len(rows) + len(problems)), at=asked, fix=fix)
    if not rows:
        raise DataError("There are no rows", at=asked, fix=fix)
    return tuple(rows)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            if line.strip():
                yield number, line


def _fields(line: bytes) -> dict[str, JsonValue]:
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


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
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


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write rows as JSONL."""
    with path.open("w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(row.model_dump_json() + "\n")


def load_rows(path: Path) -> tuple[Row, ...]:
    """Read rows that fetch wrote."""
    with path.open("rb") as lines:
        return tuple(Row.model_validate_json(line) for line in lines)


def split_rows(
    rows: Sequence[Row], share: float, seed: int
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Put a seeded share of the rows aside, equal prompts always on the same side.

    Returns:
        The rows to train on and the rows to evaluate on, both in source order and neither
        empty as long as there are two different prompts.
    """
    prompts = sorted({prompt_print(row) for row in rows})
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    chosen = random.Random(seed).sample(prompts, max(count, 0))  # noqa: S311 - reproducible
    held_out = set(chosen)
    train = tuple(row for row in rows if prompt_print(row) not in held_out)
    return train, tuple(row for row in rows if prompt_print(row) in held_out)
