"""Training rows of several sources become one split, counted as what they are."""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from modelmill.spec.data import TemplateSpec
from modelmill.spec.errors import DataError
from modelmill.spec.figures import DataFetched
from modelmill.spec.records import Row
from modelmill.spec.settings import FetchDataSettings, FetchTextSettings, Pin, WeightedPin
from modelmill.stages.fetch import run
from modelmill.stages.rows import load_rows
from modelmill.stages.stage import Folders


class Quiet:
    """A pulse that keeps what it is warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def part(self, name: str) -> AbstractContextManager[None]:
        """Time nothing."""
        return nullcontext()

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        """Tell nobody."""

    def save(self) -> None:
        """Keep nothing."""

    def steps(self) -> AbstractContextManager[None]:
        """Do as asked."""
        return nullcontext()

    def is_due(self) -> bool:
        """Keep nothing."""
        return False

    def keep(self, size_bytes: int, write: Callable[[], None]) -> None:
        """Keep nothing."""

    def warn(self, sentence: str) -> None:
        """Keep it."""
        self.warnings.append(sentence)


def rows(name: str, count: int) -> list[dict[str, Any]]:
    """Make rows that say where they are from."""
    return [{"q": f"{name} {n}", "a": f"{n}"} for n in range(count)]


def fetched(folder: Path, weights: dict[str, float], **more: Any) -> tuple[DataFetched, Quiet]:
    """Fetch what lies in `inputs`, by the weights of its parts."""
    pins = tuple(
        WeightedPin(pin=Pin(address=name, digest=""), weight=weight)
        for name, weight in weights.items()
    )
    settings = FetchDataSettings.model_validate(
        {
            "format": "prompt_completion",
            "train": pins,
            "eval_source": None,
            "eval_share": None,
            "template": TemplateSpec(prompt="{q}", completion="{a}"),
            "seed": 0,
            **more,
        }
    )
    inputs = {role: folder / role for role in settings.train_by_role()}
    (folder / "output").mkdir()
    pulse = Quiet()
    outcome = run(settings, Folders(inputs, folder / "output", folder), pulse)
    assert isinstance(outcome.figures, DataFetched)
    return outcome.figures, pulse


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Lay out a JSONL file and a Parquet file, which shares a row with it and repeats one."""
    for number in (1, 2):
        (tmp_path / f"source-{number}").mkdir()
    lines = "\n".join(map(json.dumps, rows("a", 10)))
    (tmp_path / "source-1" / "a.jsonl").write_text(lines, encoding="utf-8")
    table = [*rows("b", 20), rows("a", 1)[0], rows("b", 1)[0]]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "source-2" / "b.parquet")
    return tmp_path


def test_sources_are_mixed_by_weight_and_counted(folder: Path) -> None:
    """Rows say how often they were taken; copies by weight are no duplicates."""
    figures, pulse = fetched(folder, {"one": 2, "two": 0.5})
    train = load_rows(folder / "output" / "train.jsonl")
    counts = Counter(row.row for row in train)
    assert {counts[n] for n in range(10)} == {2}
    assert sum(counts[n] for n in range(10, 32)) == 11
    assert figures.rows == {"train": 31, "eval": 0}
    assert [(each.address, each.weight, each.rows, each.taken) for each in figures.sources] == [
        ("one", 2, 10, 20),
        ("two", 0.5, 22, 11),
    ]
    said = {(row.prompt, row.completion) for row in train}
    assert figures.duplicates["train"] == len(counts) - len(said)
    assert [each for each in pulse.warnings if "repeat" in each] == (
        [f"{figures.duplicates['train']} of {len(counts)} train rows repeat an earlier row"]
        if figures.duplicates["train"]
        else []
    )


def test_eval_share_is_taken_before_weights(folder: Path) -> None:
    """No prompt is on both sides, and none is asked twice because its source weighs more."""
    figures, _ = fetched(folder, {"one": 3, "two": 1}, eval_share=0.3)
    train = load_rows(folder / "output" / "train.jsonl")
    evaluation = load_rows(folder / "output" / "eval.jsonl")
    assert not {row.prompt for row in train} & {row.prompt for row in evaluation}
    assert len({row.row for row in evaluation}) == len(evaluation) == figures.rows["eval"]
    assert figures.overlap == {"train/eval": 0}
    assert sum(each.rows for each in figures.sources) + len(evaluation) == 32


def test_wrong_rows_of_all_sources_are_named_at_once(folder: Path) -> None:
    """One look is enough, and each problem says which source it is in."""
    (folder / "source-1" / "a.jsonl").write_text('{"q": 1}\n', encoding="utf-8")
    pq.write_table(pa.table({"q": [b"x"]}), folder / "source-2" / "b.parquet")
    with pytest.raises(DataError) as caught:
        fetched(folder, {"one": 1, "two": 1})
    assert "data.train[0]: 1 of 1 rows are wrong\n  row 1: no field 'a'" in str(caught.value)
    assert "data.train[1]: 1 of 1 files cannot be read" in str(caught.value)
    assert "column 'q' holds binary" in str(caught.value)


def test_weights_that_leave_nothing(folder: Path) -> None:
    """A hundredth of ten rows is none, and no training."""
    with pytest.raises(DataError, match="No training rows are left"):
        fetched(folder, {"one": 0.01, "two": 0.01})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c4.jsonl", '{"text": "one", "url": "x"}\n{"text": "two"}\n{"text": "two"}\n'),
        ("book.txt", "one\n\ntwo\n\ntwo\n"),
    ],
)
def test_text_is_fetched_as_texts(tmp_path: Path, name: str, content: str) -> None:
    """A table with a field of text, or a plain text, becomes rows that ask nothing."""
    texts, pulse = fetched_text(tmp_path, name, content)
    assert [(row.prompt, row.completion) for row in texts] == [
        ("", "one"),
        ("", "two"),
        ("", "two"),
    ]
    assert pulse.warnings == ["1 of 3 text rows repeat an earlier row"]


def test_text_without_its_field_is_refused(tmp_path: Path) -> None:
    """The message says which setting named the source and what a row needs."""
    with pytest.raises(DataError, match="no field 'text'") as caught:
        fetched_text(tmp_path, "c4.jsonl", '{"content": "one"}\n')
    assert caught.value.at == "calibration.text"


def fetched_text(folder: Path, name: str, content: str) -> tuple[tuple[Row, ...], Quiet]:
    """Fetch one file of texts."""
    for part in ("source", "output"):
        (folder / part).mkdir()
    (folder / "source" / name).write_text(content, encoding="utf-8")
    pulse = Quiet()
    folders = Folders({"source": folder / "source"}, folder / "output", folder)
    run(FetchTextSettings(source=Pin(address=name, digest="")), folders, pulse)
    return load_rows(folder / "output" / "text.jsonl"), pulse
