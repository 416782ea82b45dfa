"""Rows are read from three formats as they are meant, or refused with the place that is wrong."""

import datetime as dt
import gzip
import json
import pickle
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq

from modelmill.spec.errors import DataError
from modelmill.stages.tables import Fields, Table, table_of
from modelmill.stages.tables import limits as limits_of
from modelmill.stages.tables.limits import ROW_LIMIT_BYTES, UNPACKED_ALWAYS_BYTES

BERLIN = dt.timezone(dt.timedelta(hours=1))


def read(path: Path) -> list[tuple[int, Fields]]:
    """Read all rows of a file or folder, or raise what is wrong with them."""
    table = table_of(path if path.is_dir() else path.parent, "data.train")
    rows = list(table)
    table.check("with its fields")
    return rows


def written(folder: Path, name: str, content: bytes | str) -> Path:
    """Write a file, compressed if its name says so."""
    body = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(gzip.compress(body) if name.endswith(".gz") else body)
    return folder / name


def refusal(path: Path) -> str:
    """Read what cannot be read, and return what is said about it."""
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.exit_code == 65
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "A.CSV"])
def test_csv_is_read_by_its_header(tmp_path: Path, name: str) -> None:
    """Quotes, commas, line ends and a byte order mark in the data do not move a field."""
    text = '\ufeffq,a\r\n"x, ""y""\r\nz",1\r\n\r\né,\r\n'
    assert read(written(tmp_path, name, text)) == [
        (0, {"q": 'x, "y"\r\nz', "a": "1"}),
        (2, {"q": "é", "a": ""}),
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_texts_stand_between_empty_lines(tmp_path: Path, name: str) -> None:
    """Lines of one text stay lines; a byte order mark and blank lines are no part of any."""
    text = "\ufeff= Title =\n \n\n  one\ntwo é\n\t\nthree"
    assert read(written(tmp_path, name, text)) == [
        (0, {"text": "= Title ="}),
        (1, {"text": "  one\ntwo é"}),
        (2, {"text": "three"}),
    ]


def test_text_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """What is not UTF-8, and what has no empty line for longer than a row may be."""
    long = b"x" * (ROW_LIMIT_BYTES + 1)
    said = refusal(written(tmp_path, "a.txt", b"good\n\nb\xffd\n\n" + long + b"\n\nnever read"))
    assert "2 of 3 rows are wrong" in said
    assert "row 2: not UTF-8 at byte 1" in said
    assert "row 3: longer than 16 MiB" in said


def test_text_beside_a_table_is_words_for_people(tmp_path: Path) -> None:
    """LICENSE.txt is not rows where there are some."""
    written(tmp_path, "LICENSE.txt", "MIT")
    written(tmp_path, "a.jsonl", '{"q": 1}')
    table = table_of(tmp_path, "data.train")
    assert [fields for _, fields in table] == [{"q": 1}]
    assert "LICENSE.txt" in table.note


def test_tsv_is_read_by_its_header(tmp_path: Path) -> None:
    """Between tabs, a comma is a character."""
    assert read(written(tmp_path, "a.tsv", "q\ta\nx, y\t2\n")) == [(0, {"q": "x, y", "a": "2"})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no header"),
        ("q,q,\n1,2,3\n", "column 3 has no name, 'q' stands twice"),
        ("q,a\n1\n1,2\n1,2,3\n", "row 1: 1 fields where the header has 2"),
        ("q,a\n1\n1,2\n1,2,3\n", "row 3: 3 fields where the header has 2"),
        (b"q,a\nx,\xff\n", "row 1: not UTF-8 in field 'a'"),
        ('q,a\n"x"y,1\n', "row 1: not CSV"),
        ('q,a\n1,2\n"never closed,1\n', "row 2: not CSV: unexpected end of data"),
        ("q,a\n" + "x" * (ROW_LIMIT_BYTES + 1) + ",1\n", "a line longer than 16 MiB"),
        ('q,a\n"' + "x\n" * (ROW_LIMIT_BYTES // 2 + 1), "a quote may not be closed"),
        ("q,a\n", "There are no rows"),
    ],
)
def test_wrong_csv_is_named(tmp_path: Path, text: str | bytes, said: str) -> None:
    """The row, or the header, and what is wrong with it."""
    assert said in refusal(written(tmp_path, "a.csv", text))


def test_array_of_json_is_told_how_to_become_lines(tmp_path: Path) -> None:
    """The most common other shape has a hint of its own."""
    path = written(tmp_path, "a.json", '[\n {"q": 1},\n {"q": 2}\n]\n')
    assert "a file that is one JSON array is not read" in refusal(path)


def test_line_longer_than_a_row_may_be(tmp_path: Path) -> None:
    """It is skipped to its end without being held, and the next row keeps its number."""
    text = '{"q": "' + "x" * (ROW_LIMIT_BYTES + 1) + '"}\n{"q": 1}\n'
    said = refusal(written(tmp_path, "a.jsonl", text))
    assert "1 of 2 rows are wrong\n  row 1: longer than 16 MiB" in said


def test_shards_are_one_table_in_the_order_of_names(tmp_path: Path) -> None:
    """Numbers go on, and a wrong row is named with its file."""
    written(tmp_path, "b.jsonl", '{"q": 3}\n')
    written(tmp_path, "a.jsonl.gz", '{"q": 1}\n\n{"q": 2}\n')
    assert read(tmp_path) == [(0, {"q": 1}), (2, {"q": 2}), (3, {"q": 3})]
    written(tmp_path, "c.jsonl", '{"q": 4}\nnonsense\n')
    assert "c.jsonl row 2: not JSON" in refusal(tmp_path)


def test_folder_of_other_files(tmp_path: Path) -> None:
    """Words beside rows are left out aloud; two formats, or none, are refused."""
    written(tmp_path, "README.md", "words")
    assert "no files of rows (README.md)" in refusal(tmp_path)
    written(tmp_path, "a.csv", "q\n1\n")
    assert table_of(tmp_path, "x").note == "left out README.md: not named as rows"
    written(tmp_path, "a.jsonl", "{}")
    assert "more than one format (csv, jsonl)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"plain", "is not a sound gzip file"),
        (gzip.compress(b'{"q": 1}\n' * 1000)[:-20], "ends in the middle"),
        (gzip.compress(b'{"q": 1}\n' * 9)[:-8] + b"\0" * 8, "is not a sound gzip file"),
    ],
    ids=["no gzip", "cut off", "wrong checksum"],
)
def test_damaged_gzip_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    """Half a file is not taken for a whole one."""
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    assert said in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_bomb_is_refused_before_it_has_unfolded(tmp_path: Path, name: str) -> None:
    """A file that becomes far more than rows of its size is given up at the limit."""
    row = json.dumps({"q": "x" * 2**20}) + "\n" if "json" in name else "x" * 2**20 + "\n"
    head = "" if "json" in name else "q\n"
    rows = 2 * UNPACKED_ALWAYS_BYTES // 2**20
    path = written(tmp_path, name, head + row * rows)
    table = table_of(tmp_path, "x")
    assert sum(1 for _ in table) <= UNPACKED_ALWAYS_BYTES // 2**20
    with pytest.raises(DataError, match="unpacks to more than 64 MiB"):
        table.check("with its fields")
    assert path.stat().st_size < UNPACKED_ALWAYS_BYTES // limits_of.UNPACKED_RATIO


NESTED = pa.struct([("at", pa.timestamp("ns")), ("tags", pa.list_(pa.string()))])
CELLS: list[tuple[str, pa.DataType, Any, Any]] = [
    ("text", pa.string(), "é", "é"),
    ("large", pa.large_string(), "x", "x"),
    ("word", pa.dictionary(pa.int8(), pa.string()), "w", "w"),
    ("whole", pa.uint64(), 2**64 - 1, 2**64 - 1),
    ("real", pa.float32(), 0.5, 0.5),
    ("yes", pa.bool_(), True, True),
    ("none", pa.null(), None, None),
    ("price", pa.decimal128(9, 2), Decimal("1.50"), "1.50"),
    ("day", pa.date32(), dt.date(2026, 1, 2), "2026-01-02"),
    ("time", pa.time64("ns"), dt.time(1, 2, 3), "01:02:03"),
    ("when", pa.timestamp("ns"), dt.datetime(2026, 1, 2, 3), "2026-01-02T03:00:00"),  # noqa: DTZ001
    (
        "zone",
        pa.timestamp("ms", "Europe/Berlin"),
        dt.datetime(2026, 1, 2, 3, tzinfo=BERLIN),
        "2026-01-02T02:00:00+00:00",
    ),
    ("list", pa.list_(pa.int32()), [1, None], [1, None]),
    ("fixed", pa.list_(pa.int32(), 2), [1, 2], [1, 2]),
    ("map", pa.map_(pa.string(), pa.int64()), [("a", 1)], {"a": 1}),
    (
        "deep",
        pa.list_(NESTED),
        [{"at": dt.datetime(2026, 1, 2), "tags": ["a", "b"]}],  # noqa: DTZ001
        [{"at": "2026-01-02T00:00:00", "tags": ["a", "b"]}],
    ),
]


def test_parquet_becomes_json(tmp_path: Path) -> None:
    """Every type that JSON can say is said, nested ones too; nulls stay nulls."""
    columns = {name: pa.array([value, None], kind) for name, kind, value, _ in CELLS}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    first, second = read(tmp_path)
    assert first == (0, {name: expected for name, _, _, expected in CELLS})
    assert second == (1, dict.fromkeys(columns))
    json.dumps(first)


@settings(max_examples=25)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "a": st.none() | st.text(st.characters(exclude_categories=["Cs"])),
                "b": st.none() | st.integers(-(2**63), 2**63 - 1),
                "c": st.none() | st.lists(st.text("xyz")),
            }
        ),
        min_size=1,
        max_size=20,
    )
)
def test_parquet_and_jsonl_say_the_same(rows: list[Fields], tmp_path: Path) -> None:
    """The format of a file decides nothing about its rows."""
    schema = pa.schema([("a", pa.string()), ("b", pa.int64()), ("c", pa.list_(pa.string()))])
    for name in ("p", "j"):
        (tmp_path / name).mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "p" / "a.parquet")
    written(tmp_path / "j", "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert read(tmp_path / "p") == read(tmp_path / "j")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([b"x"]), "column 'c' holds binary, which is neither text nor a number"),
        (pa.array([{"bytes": b"x"}]), "column 'c.bytes' holds binary"),
        (pa.array([[b"x"]]), "column 'c[]' holds binary"),
        (pa.array([dt.timedelta(1)]), "column 'c' holds duration[us]"),
        (pa.array([[(1, 2)]], pa.map_(pa.int8(), pa.int8())), "a map whose keys are int8"),
        (pa.array([float("nan")]), "row 1: nan is not JSON"),
        (pa.array([[float("inf")]]), "row 1: inf is not JSON"),
    ],
)
def test_column_that_json_cannot_say(tmp_path: Path, column: pa.Array, said: str) -> None:
    """The column is named from the footer, a value by its row."""
    pq.write_table(pa.table({"c": column}), tmp_path / "a.parquet")
    assert said in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"{}\n" * 9])
def test_what_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    """A name is not believed."""
    written(tmp_path, "a.parquet", content)
    assert "a.parquet is not a Parquet file that can be read" in refusal(tmp_path)


def test_parquet_whose_pages_are_damaged(tmp_path: Path) -> None:
    """A good footer before a bad page is no good file."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"q": [f"{n} {n * n}" for n in range(9000)]}), path)
    body = bytearray(path.read_bytes())
    body[200:2000] = bytes(1800)
    path.write_bytes(body)
    assert "is not a Parquet file that can be read" in refusal(path)


class _Touch:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._canary,)


def test_parquet_whose_schema_is_a_pickle(tmp_path: Path) -> None:
    """A type that Python would have to unpickle is not looked at (CVE-2023-47248)."""
    canary = tmp_path / "canary"
    field = pa.field(
        "q",
        pa.string(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(_Touch(canary)),
        },
    )
    pq.write_table(pa.table([pa.array(["x"])], schema=pa.schema([field])), tmp_path / "a.parquet")
    with suppress(DataError):
        assert read(tmp_path) == [(0, {"q": "x"})]
    assert not canary.exists()
    pickle.loads(pickle.dumps(_Touch(canary)))  # noqa: S301 - the control
    assert canary.exists()


def test_script_beside_rows_is_left_out(tmp_path: Path) -> None:
    """Data sets have come with a module that loads them; here it is a file without rows."""
    written(tmp_path, "a.jsonl", '{"q": 1}')
    written(tmp_path, "data.py", "raise SystemExit")
    assert read(tmp_path) == [(0, {"q": 1})]
    assert table_of(tmp_path, "x").note == "left out data.py: not named as rows"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (pickle.dumps({"q": 1}), "row 1: not UTF-8"),
        (b'{"a":' * 100_000, "row 1: JSON nested too deeply"),
        (b"PK\3\4" + bytes(9), "row 1: not JSON"),
    ],
    ids=["pickle", "deep", "archive"],
)
def test_rows_that_are_something_else(tmp_path: Path, body: bytes, said: str) -> None:
    """A name alone makes no rows."""
    written(tmp_path, "a.jsonl", body)
    assert said in refusal(tmp_path)


def referring(text: str, rows: int, *, is_nested: bool) -> pa.Table:
    """Make rows that all refer to one text, as few bytes."""
    words = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    if not is_nested:
        return pa.table({"q": words})
    return pa.table({"q": pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), words)})


@pytest.mark.parametrize(
    ("times", "is_nested", "said"),
    [
        (200_000, False, "unpacks to more than 64 MiB"),
        (200_000, True, "unpacks to more than 64 MiB"),
        (32, True, "row 1: longer than 16 MiB"),
    ],
)
def test_parquet_bomb_is_refused_before_it_has_unfolded(
    tmp_path: Path, times: int, is_nested: bool, said: str
) -> None:
    """A megabyte that many rows refer to, or one row many times, in 50 kB."""
    pq.write_table(referring("x" * 2**20, times, is_nested=is_nested), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    assert said in refusal(tmp_path)


def test_parquet_of_large_rows_is_read_in_small_parts(tmp_path: Path) -> None:
    """Rows of a megabyte are fine as long as there are not too many."""
    pq.write_table(referring("x" * 2**20, 60, is_nested=False), tmp_path / "a.parquet")
    assert [number for number, _ in read(tmp_path)] == list(range(60))


def test_many_problems_are_counted_and_few_are_kept() -> None:
    """A hundred thousand wrong rows take no more room than twenty."""
    table = Table([Path("a.jsonl")], "x")
    table._starts.append(0)
    for number in range(100_000):
        table.refuse(number, "wrong")
    assert len(table._problems) == 20
    with pytest.raises(DataError, match="and 99980 more"):
        table.check("with its fields")
