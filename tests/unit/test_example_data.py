"""The example's data: what its test holds out, and that its references are SQL."""

import json
import re
import runpy
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "text-to-sql"
SPLITS = ("train", "test")

Rows = list[dict[str, str]]


def write_data(folder: Path, *options: str) -> Path:
    """Run the script as the example does."""
    script = [sys.executable, str(EXAMPLE / "make_data.py"), "--out", str(folder), *options]
    subprocess.run(script, check=True, timeout=60)
    return folder


def read(path: Path) -> Rows:
    """Read one split."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both files with the default settings."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def train(folder: Path) -> Rows:
    """The training rows."""
    return read(folder / "train.jsonl")


@pytest.fixture(scope="module")
def test(folder: Path) -> Rows:
    """The test rows."""
    return read(folder / "test.jsonl")


def tables(rows: Rows) -> set[str]:
    """Name every table of every schema."""
    return {name for row in rows for name in re.findall(r"CREATE TABLE (\w+)", row["context"])}


def literals(rows: Rows) -> set[str]:
    """Collect every string and number of every reference."""
    return {
        text or number
        for row in rows
        for text, number in re.findall(r"'([^']*)'|\b(\d+)\b", row["answer"])
    }


def matches(question: str, templates: Iterable[str]) -> bool:
    """Tell whether a question can have been made from one of the templates."""
    for template in templates:
        fixed = re.split(r"\{\w+\}", template)
        if re.fullmatch("(.+)".join(map(re.escape, fixed)), question, re.IGNORECASE):
            return True
    return False


@pytest.fixture(scope="module")
def templates() -> dict[str, tuple[str, ...]]:
    """The phrasings by their kind."""
    forms = runpy.run_path(str(EXAMPLE / "forms.py"))["FORMS"]
    return {kind: sum((getattr(form, kind) for form in forms), ()) for kind in ("known", "new")}


def test_data_same_seed(folder: Path, tmp_path: Path) -> None:
    """The same seed writes the same bytes, another seed other rows."""
    again = write_data(tmp_path / "again")
    other = write_data(tmp_path / "other", "--seed", "1")
    for split in SPLITS:
        name = f"{split}.jsonl"
        assert (again / name).read_bytes() == (folder / name).read_bytes()
        assert (other / name).read_bytes() != (folder / name).read_bytes()


def test_data_counts(train: Rows, test: Rows) -> None:
    """The demo's budget holds: at most 300 training and 200 test rows, no question twice."""
    assert len(train) <= 300
    assert len(test) <= 200
    for rows in (train, test):
        assert len({row["question"] for row in rows}) == len(rows)


def test_data_balance(train: Rows, test: Rows) -> None:
    """Skills are equally frequent in train, and so are skills and phrasings in test."""
    assert len(set(Counter(row["skill"] for row in train).values())) == 1
    assert len(set(Counter((row["skill"], row["phrasing"]) for row in test).values())) == 1
    assert {row["phrasing"] for row in train} == {"known"}
    assert {row["phrasing"] for row in test} == {"known", "new"}


def test_data_tables_held_out(train: Rows, test: Rows) -> None:
    """No table of the test is a table of train."""
    assert len(tables(train)) > 40
    assert tables(train).isdisjoint(tables(test))


def test_data_literals_held_out(train: Rows, test: Rows) -> None:
    """No string or number that a test reference contains is in a train reference."""
    assert literals(train).isdisjoint(literals(test))


def test_data_phrasings_held_out(
    train: Rows, test: Rows, templates: dict[str, tuple[str, ...]]
) -> None:
    """Half of the test asks in ways that no training question does."""
    for row in [*train, *test]:
        assert matches(row["question"], templates[row["phrasing"]])
    assert not any(matches(row["question"], templates["new"]) for row in train)


@pytest.mark.parametrize("split", SPLITS)
def test_data_references_execute(folder: Path, split: str) -> None:
    """Every reference runs on SQLite against the schema it comes with."""
    for row in read(folder / f"{split}.jsonl"):
        database = sqlite3.connect(":memory:")
        database.executescript(row["context"])
        database.execute(row["answer"])
        database.close()
        assert not row["answer"].endswith(";")
