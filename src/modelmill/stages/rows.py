"""Turn the fields of a table into checked rows, split them, and keep them in files.

What a row has to hold is known by `formats`; nothing here knows about tokens or stores.
"""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from modelmill.spec.records import Row
from modelmill.stages.formats import MakeRow
from modelmill.stages.likeness import prompt_print
from modelmill.stages.tables import Table


def read_rows(table: Table, make: MakeRow, needs: str) -> tuple[Row, ...]:
    """Make every row.

    Args:
        table: where they come from.
        make: makes a row of its number and fields.
        needs: how a row should look, for messages.

    Raises:
        DataError: with the rows that are wrong and why, or there are none.
    """
    rows: list[Row] = []
    for number, fields in table:
        try:
            rows.append(make(number, fields))
        except ValueError as error:
            table.refuse(number, str(error))
    table.check(needs)
    return tuple(rows)


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
