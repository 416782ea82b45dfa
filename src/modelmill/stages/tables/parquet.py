"""Read Parquet files: their footers first, then rows in small batches.

A few kilobytes of Parquet can stand for terabytes of rows: values are written once and referred
to.  So text is read as references, and its size is known before it is unfolded.
"""

import datetime as dt
import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet as pq
from pydantic import JsonValue

from modelmill.stages.tables.limits import (
    ROW_LIMIT_BYTES,
    Fields,
    Reading,
    Refused,
    Unpacked,
    Unreadable,
)

BATCH_ROWS: Final = 1024
BATCH_BYTES: Final = 64 * 2**20
"""Unfolded at once; a batch that would become more is halved."""
ROW_OVERHEAD_BYTES: Final = 16
"""Counted for every row, so that rows of nothing count too."""
VALUES_LIMIT: Final = 100_000_000
"""In one column of one row group; a single row may hold them all."""


def read_parquet(path: Path, unpacked: Unpacked) -> Reading:
    """Read every row; nested columns become JSON, times ISO text, decimals text."""
    unpacked.opens(path)
    try:
        file = pq.ParquetFile(path)
        _check_footer(file, unpacked)
        texts = [file.schema.column(n).path for n in range(len(file.schema))]
        # As references: each text once, however many rows say it.
        with pq.ParquetFile(path, read_dictionary=texts) as by_reference:
            number = 0
            for batch in by_reference.iter_batches(BATCH_ROWS, use_threads=False):
                for part in _small_parts(batch):
                    unpacked.add(_unfolded_bytes(part) + ROW_OVERHEAD_BYTES * part.num_rows)
                    for found in _rows(part):
                        yield number, found
                        number += 1
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [""])[0]
        msg = f"is not a Parquet file that can be read ({reason})"
        raise Unreadable(msg) from None


def _check_footer(file: pq.ParquetFile, unpacked: Unpacked) -> None:
    """Refuse what cannot become rows, or would become too many, before any is read."""
    schema = file.schema_arrow
    wrong = [f"column '{name}' stands twice" for name in _twice(schema.names)]
    for field in schema:
        wrong += _problems(field.name, field.type)
    if wrong:
        raise Unreadable("; ".join(wrong))
    groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
    unpacked.expect(sum(group.total_byte_size for group in groups))
    for group in groups:
        for n in range(group.num_columns):
            if group.column(n).num_values > VALUES_LIMIT:
                name = group.column(n).path_in_schema
                msg = f"column '{name}' has more than {VALUES_LIMIT:,} values in one row group"
                raise Unreadable(msg)


def _twice(names: list[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def _problems(name: str, kind: pa.DataType) -> Iterator[str]:
    """Name what of a column JSON has no word for."""
    is_plain = any(is_it(kind) for is_it in _PLAIN)
    if pa.types.is_dictionary(kind):
        yield from _problems(name, kind.value_type)
    elif pa.types.is_map(kind):
        if not _is_string(kind.key_type):
            yield f"column '{name}' is a map whose keys are {kind.key_type}, not text"
        yield from _problems(f"{name}.value", kind.item_type)
    elif any(is_it(kind) for is_it in _LISTS):
        yield from _problems(f"{name}[]", kind.value_type)
    elif pa.types.is_struct(kind):
        inner = [kind.field(n) for n in range(kind.num_fields)]
        yield from (f"'{each}' stands twice in column '{name}'" for each in _twice_in(inner))
        for field in inner:
            yield from _problems(f"{name}.{field.name}", field.type)
    elif not is_plain:
        yield f"column '{name}' holds {kind}, which is neither text nor a number; leave it out"


def _twice_in(fields: list[pa.Field]) -> list[str]:
    return _twice([field.name for field in fields])


def _is_string(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


_LISTS: Final = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_PLAIN: Final = (
    _is_string,
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_date,
    pa.types.is_time,
    pa.types.is_timestamp,
)


def _small_parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Halve a batch until each part unfolds to little, or is one row."""
    if batch.num_rows <= 1 or _unfolded_bytes(batch) <= BATCH_BYTES:
        yield batch
        return
    middle = batch.num_rows // 2
    yield from _small_parts(batch.slice(0, middle))
    yield from _small_parts(batch.slice(middle))


def _unfolded_bytes(batch: pa.RecordBatch) -> int:
    return sum(map(_array_bytes, batch.columns))


def _array_bytes(array: pa.Array) -> int:
    """Say how large the values of an array are, each as often as it is referred to."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = pc.take(pc.binary_length(array.dictionary), array.indices)
        return int(pc.sum(lengths).as_py() or 0)
    if pa.types.is_map(kind):
        start, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        inner = (array.keys.slice(start, end - start), array.items.slice(start, end - start))
        return sum(map(_array_bytes, inner))
    if any(is_it(kind) for is_it in _LISTS):
        return _array_bytes(array.flatten())
    if pa.types.is_struct(kind):
        return sum(map(_array_bytes, array.flatten()))
    return int(array.nbytes)


def _rows(batch: pa.RecordBatch) -> Iterator[Fields | Refused]:
    if batch.num_rows == 1 and _unfolded_bytes(batch) > ROW_LIMIT_BYTES:
        yield Refused(f"longer than {ROW_LIMIT_BYTES // 2**20} MiB")
        return
    names = batch.schema.names
    columns = [_readable(column).to_pylist(maps_as_pydicts="strict") for column in batch.columns]
    for values in zip(*columns, strict=True):
        try:
            yield {name: _json(value) for name, value in zip(names, values, strict=True)}
        except ValueError as error:
            yield Refused(str(error))


def _readable(column: pa.Array) -> pa.Array:
    """Round times to what Python can hold: microseconds, and UTC where there is a zone."""
    target = _rounded(column.type)
    return column if target == column.type else column.cast(target, safe=False)


def _rounded(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", None if kind.tz is None else "UTC")
    if pa.types.is_time64(kind):
        return pa.time64("us")
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _rounded(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_rounded(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_rounded(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_rounded(kind.value_type)))
    if pa.types.is_struct(kind):
        inner = [kind.field(n) for n in range(kind.num_fields)]
        return pa.struct([field.with_type(_rounded(field.type)) for field in inner])
    return kind


def _json(value: Any) -> JsonValue:  # noqa: ANN401 - whatever Arrow makes of a cell
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if not math.isfinite(value):
                msg = f"{value} is not JSON"
                raise ValueError(msg)
            return value
        case Decimal():
            return str(value)
        case dt.date() | dt.time():
            return value.isoformat()
        case list() | tuple():
            return [_json(each) for each in value]
        case dict():
            return {str(name): _json(each) for name, each in value.items()}
    raise AssertionError(type(value))
