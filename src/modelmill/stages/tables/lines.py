"""Read text files of rows, compressed or not: JSON objects, or fields between commas.

No line is ever held that is longer than a row may be.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import BinaryIO, Final, cast

from pydantic import JsonValue

from modelmill.spec.sources import is_gzip
from modelmill.stages.tables.limits import (
    ROW_LIMIT_BYTES,
    Fields,
    Reading,
    Refused,
    Unpacked,
    Unreadable,
)

_TOO_LONG: Final = f"longer than {ROW_LIMIT_BYTES // 2**20} MiB"
_NOT_UTF_8: Final = "not UTF-8"


class _Counted(io.RawIOBase):
    """Counts what comes out of a compressed file, while it comes out."""

    def __init__(self, inner: BinaryIO, unpacked: Unpacked) -> None:
        self._inner = inner
        self._unpacked = unpacked

    def readable(self) -> bool:
        """Say that it can be read, which a RawIOBase denies."""
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        """Read some bytes."""
        size = self._inner.readinto(buffer)  # type: ignore[attr-defined]
        self._unpacked.add(size)
        return int(size)


@contextmanager
def _opened(path: Path, unpacked: Unpacked) -> Iterator[BinaryIO]:
    """Open a file for reading; what is wrong with its compression is said as that."""
    with path.open("rb") as plain:
        if not is_gzip(path.name):
            yield plain
            return
        unpacked.opens(path)
        try:
            with gzip.open(plain) as packed:
                counted = _Counted(cast("BinaryIO", packed), unpacked)
                yield cast("BinaryIO", io.BufferedReader(counted, 2**20))
        except EOFError:
            raise Unreadable("its compressed data ends in the middle") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            msg = f"is not a sound gzip file ({error})"
            raise Unreadable(msg) from None


def read_jsonl(path: Path, unpacked: Unpacked) -> Reading:
    """Read one JSON object a line; empty lines count as lines and are no rows."""
    with _opened(path, unpacked) as lines:
        for number in count():
            line = lines.readline(ROW_LIMIT_BYTES + 1)
            if not line:
                return
            if len(line) > ROW_LIMIT_BYTES:
                while line and not line.endswith(b"\n"):
                    line = lines.readline(ROW_LIMIT_BYTES)
                yield number, Refused(_TOO_LONG)
            elif line.strip():
                yield number, _object(line)


def _object(line: bytes) -> Fields | Refused:
    try:
        text = line.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        return Refused(f"{_NOT_UTF_8} at byte {error.start}")
    except json.JSONDecodeError as error:
        hint = "; a file that is one JSON array is not read: write its items as lines"
        is_array = text.lstrip().startswith("[")
        return Refused(f"not JSON: {error.msg} at column {error.colno}{hint if is_array else ''}")
    except RecursionError:
        return Refused("JSON nested too deeply")
    except ValueError as error:
        return Refused(str(error))
    if not isinstance(value, dict):
        return Refused(f"a JSON {type(value).__name__}, not an object")
    return value


def _unique(pairs: list[tuple[str, JsonValue]]) -> Fields:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field stands twice")
    return fields


def _no_constant(name: str) -> JsonValue:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def read_text(path: Path, unpacked: Unpacked) -> Reading:
    """Read texts with empty lines between them, each as a field `text`."""
    with _opened(path, unpacked) as lines:
        for number, text in enumerate(_paragraphs(lines)):
            if len(text) > ROW_LIMIT_BYTES:
                yield number, Refused(f"{_TOO_LONG}, without an empty line")
                return
            try:
                yield number, {"text": text.decode("utf-8-sig")}
            except UnicodeDecodeError as error:
                yield number, Refused(f"{_NOT_UTF_8} at byte {error.start}")


def _paragraphs(lines: BinaryIO) -> Iterator[bytes]:
    """Join lines up to an empty one, without the last line's end; no more than a row may be."""
    held: list[bytes] = []
    size_bytes = 0
    while line := lines.readline(ROW_LIMIT_BYTES + 1 - size_bytes):
        if line.strip():
            held.append(line)
            size_bytes += len(line)
        if held and (not line.strip() or size_bytes > ROW_LIMIT_BYTES):
            yield b"".join(held).rstrip()
            held, size_bytes = [], 0
    if held:
        yield b"".join(held).rstrip()


def read_csv(path: Path, unpacked: Unpacked) -> Reading:
    """Read fields between commas, under the names of the first row."""
    return _read_delimited(path, unpacked, ",")


def read_tsv(path: Path, unpacked: Unpacked) -> Reading:
    """Read fields between tabs, under the names of the first row."""
    return _read_delimited(path, unpacked, "\t")


def _read_delimited(path: Path, unpacked: Unpacked, delimiter: str) -> Reading:
    """Read every value as text; numbers count the rows below the header."""
    with _opened(path, unpacked) as raw, _field_limit():
        # What is not UTF-8 is refused where it stands, not with everything behind it.
        text = io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="")
        records = csv.reader(_text_lines(text), delimiter=delimiter, strict=True)
        try:
            names = _checked_header(next(records, []))
        except csv.Error as error:
            msg = f"the header is not CSV: {error}"
            raise Unreadable(msg) from None
        for number in count():
            try:
                record = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, Refused(f"not CSV: {error}")
                if "field limit" in str(error):
                    raise Unreadable("is given up there: a quote may not be closed") from None
                continue
            if record:
                yield number, _record(names, record)


def _checked_header(names: list[str]) -> list[str]:
    if not names:
        raise Unreadable("has no header: the first row must name the columns")
    wrong = [f"column {n + 1} has no name" for n, name in enumerate(names) if not name.strip()]
    wrong += [f"'{name}' stands twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    wrong += [f"a name is {_NOT_UTF_8}" for name in names if not _is_text(name)]
    if wrong:
        msg = f"the header names columns wrongly: {', '.join(wrong)}"
        raise Unreadable(msg)
    return names


def _record(names: list[str], record: list[str]) -> Fields | Refused:
    if len(record) != len(names):
        return Refused(f"{len(record)} fields where the header has {len(names)}")
    if sum(map(len, record)) > ROW_LIMIT_BYTES:
        return Refused(_TOO_LONG)
    foreign = [name for name, value in zip(names, record, strict=True) if not _is_text(value)]
    if foreign:
        return Refused(f"{_NOT_UTF_8} in field '{foreign[0]}'")
    return dict(zip(names, record, strict=True))


def _is_text(value: str) -> bool:
    """Tell whether every byte was UTF-8: others stand as lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(ROW_LIMIT_BYTES):
        if len(line) == ROW_LIMIT_BYTES and not line.endswith(("\n", "\r")):
            msg = f"has a line {_TOO_LONG}"
            raise Unreadable(msg)
        yield line


@contextmanager
def _field_limit() -> Iterator[None]:
    """Let a field be as long as a row: Python's own limit is 128 KiB, and global."""
    before = csv.field_size_limit(ROW_LIMIT_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)
