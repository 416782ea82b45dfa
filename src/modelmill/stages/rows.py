"""Turn a JSONL file into checked, rendered rows, or name everything that is wrong with it.

Knows the data format and the template; knows nothing about tokens, splits or stores.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from modelmill.spec.data import TemplateSpec
from modelmill.spec.errors import DataError
from modelmill.spec.records import Row
from modelmill.spec.template import fill_template, template_fields

PROBLEMS_SHOWN = 20
"""A file that is wrong everywhere is understood from its first rows."""

ROW_LIMIT_BYTES = 16 * 2**20


def read_rows(path: Path, template: TemplateSpec, asked: str) -> tuple[Row, ...]:
    """Read and render every row.

    Args:
        path: UTF-8 JSONL, one object a line; empty lines are skipped.
        template: what becomes prompt and completion.
        asked: how the user calls the file, for messages.

    Raises:
        DataError: with the numbers of the rows that are wrong and why, or there are none.
    """
    rows: list[Row] = []
    problems: list[str] = []
    wanted = tuple(dict.fromkeys(required_fields(template)))
    for number, line in _lines(path):
        try:
            rows.append(_row(number, line, template, wanted))
        except ValueError as error:
            problems.append(f"row {number + 1}: {error}")
    if problems:
        raise DataError(_listed(problems, len(rows) + len(problems)), at=asked, fix=_FIX)
    if not rows:
        raise DataError("There are no rows", at=asked, fix=_FIX)
    return tuple(rows)


_FIX = "one JSON object a line, UTF-8, with every field that data.template names"


def required_fields(template: TemplateSpec) -> tuple[str, ...]:
    """List the fields a row must have."""
    return (*template_fields(template.prompt), *template_fields(template.completion))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            if line.strip():
                yield number, line


def _row(number: int, line: bytes, template: TemplateSpec, wanted: Sequence[str]) -> Row:
    if len(line) > ROW_LIMIT_BYTES:
        msg = f"longer than {ROW_LIMIT_BYTES // 2**20} MiB"
        raise ValueError(msg)
    fields = _fields(line)
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


def _fields(line: bytes) -> dict[str, JsonValue]:
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


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


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
