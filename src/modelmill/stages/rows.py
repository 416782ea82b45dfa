"""Turn the fields of a table into checked, rendered rows, or name all that are wrong.

Knows the data format and the template; knows nothing about files, tokens or stores.
"""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from modelmill.spec.data import TemplateSpec
from modelmill.spec.records import Row
from modelmill.spec.template import fill_template, template_fields
from modelmill.stages.tables import Fields, Table


def read_rows(table: Table, template: TemplateSpec) -> tuple[Row, ...]:
    """Read and render every row.

    Args:
        table: where they come from.
        template: what becomes prompt and completion.

    Raises:
        DataError: with the rows that are wrong and why, or there are none.
    """
    rows: list[Row] = []
    wanted = tuple(dict.fromkeys(required_fields(template)))
    for number, fields in table:
        try:
            rows.append(_row(number, fields, template, wanted))
        except ValueError as error:
            table.refuse(number, str(error))
    table.check()
    return tuple(rows)


def required_fields(template: TemplateSpec) -> tuple[str, ...]:
    """List the fields a row must have."""
    return (*template_fields(template.prompt), *template_fields(template.completion))


def _row(number: int, fields: Fields, template: TemplateSpec, wanted: Sequence[str]) -> Row:
    missing = [name for name in wanted if name not in fields]
    if missing:
        msg = f"no field {_quoted(missing)}; it has {_quoted(fields)}"
        raise ValueError(msg)
    texts: dict[str, str] = {}
    for name in wanted:
        value = fields[name]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            kind = "null" if value is None else type(value).__name__
            msg = f"field '{name}' is {kind}, not text or a number"
            raise ValueError(msg)
        texts[name] = str(value)
    completion = fill_template(template.completion, texts)
    if not completion.strip():
        msg = "the completion is empty"
        raise ValueError(msg)
    return Row(
        row=number,
        prompt=fill_template(template.prompt, texts),
        completion=completion,
        fields=fields,
    )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


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
    prompts = sorted({fingerprint(row.prompt) for row in rows})
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    chosen = random.Random(seed).sample(prompts, max(count, 0))  # noqa: S311 - reproducible
    held_out = set(chosen)
    train = tuple(row for row in rows if fingerprint(row.prompt) not in held_out)
    return train, tuple(row for row in rows if fingerprint(row.prompt) in held_out)


def fingerprint(text: str) -> str:
    """Name a text by what it says: case and spacing do not count.

    64 bits: among a million rows, two different ones collide with probability 3e-8.
    """
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest()[:16]


def duplicates(rows: Sequence[Row]) -> int:
    """Count the rows that say what an earlier one said."""
    return len(rows) - len({(fingerprint(row.prompt), fingerprint(row.completion)) for row in rows})


def overlap(rows: Sequence[str], others: Sequence[str]) -> int:
    """Count the fingerprints that stand among others."""
    known = set(others)
    return sum(each in known for each in rows)


def fingerprints(splits: Mapping[str, Sequence[Row]]) -> dict[str, list[str]]:
    """Fingerprint every prompt, by split."""
    return {name: [fingerprint(row.prompt) for row in rows] for name, rows in splits.items()}
