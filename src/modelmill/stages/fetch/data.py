"""Rows as the outside world delivered them, checked, mixed, split and written in one form.

Knows paths and rows, no stores and no model libraries.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from modelmill.spec.errors import DataError
from modelmill.spec.figures import DataFetched, SourceRows
from modelmill.spec.names import FINGERPRINTS, NEAR_PRINTS
from modelmill.spec.records import Row
from modelmill.spec.settings import FetchDataSettings, FetchTestSettings, Pin
from modelmill.stages.formats import row_maker, row_needs
from modelmill.stages.likeness import duplicates, fingerprints, overlap
from modelmill.stages.mixing import Share, mixed, taken
from modelmill.stages.rows import read_rows, split_rows, write_rows
from modelmill.stages.stage import Folders, Outcome, Pulse
from modelmill.stages.tables import Table, table_of


def fetch_data(settings: FetchDataSettings, folders: Folders, pulse: Pulse) -> Outcome:
    """Read what models learn from, take the eval share, and mix sources by weight.

    Raises:
        DataError: with what is wrong in any of the sources, or no row is left.
    """
    with pulse.part("work"):
        shares = _read_train(settings, folders, pulse)
        train = tuple(row for share in shares for row in share.rows)
        evaluation: tuple[Row, ...] = ()
        if settings.eval_source is not None:
            evaluation = _read(settings, _table(folders.inputs["eval"], "data.eval", pulse))
        elif settings.eval_share is not None:
            train, evaluation = split_rows(train, settings.eval_share, settings.seed)
        sources: tuple[SourceRows, ...] = ()
        if not isinstance(settings.train, Pin):
            left = {row.row for row in train}
            shares = [share.only(left) for share in shares]
            train = mixed(shares, settings.seed)
            sources = tuple(_counted(share, settings.seed) for share in shares)
        if not train:
            raise DataError(
                "No training rows are left after the eval share and by weight",
                at="data.train",
                fix="give more rows, or larger weights",
            )
    outcome = _write({"train": train, "eval": evaluation}, folders, pulse)
    return Outcome(outcome.model_copy(update={"sources": sources}))


def _counted(share: Share, seed: int) -> SourceRows:
    return SourceRows(
        address=share.name,
        weight=share.weight,
        rows=len(share.rows),
        taken=len(taken(share, seed)),
    )


def _read_train(settings: FetchDataSettings, folders: Folders, pulse: Pulse) -> list[Share]:
    """Read every source of training rows; a row's number counts over all of them.

    Raises:
        DataError: with what is wrong in any of them.
    """
    parts: list[Share] = []
    problems: list[DataError] = []
    first = 0
    for index, (role, each) in enumerate(settings.train_by_role().items()):
        asked = "data.train" if role == "source" else f"data.train[{index}]"
        try:
            table = _table(folders.inputs[role], asked, pulse)
            rows = _read(settings, table)
        except DataError as error:
            problems.append(error)
            continue
        numbered = [row.model_copy(update={"row": first + row.row}) for row in rows]
        parts.append(Share(each.pin.address, numbered if first else rows, each.weight))
        first += table.size
    if len(problems) > 1:
        words = "\n".join(f"{error.at}: {error.what}" for error in problems)
        raise DataError(words, at="data.train", fix=problems[0].fix)
    if problems:
        raise problems[0]
    return parts


def fetch_test(settings: FetchTestSettings, folders: Folders, pulse: Pulse) -> Outcome:
    """Read what models are judged on.

    Raises:
        DataError: with what is wrong.
    """
    with pulse.part("work"):
        test = _read(settings, _table(folders.inputs["source"], "data.test", pulse))
    return Outcome(_write({"test": test}, folders, pulse))


def fetch_text(folders: Folders, pulse: Pulse) -> Outcome:
    """Read a text that quantizers look at.

    Raises:
        DataError: with what is wrong.
    """
    with pulse.part("work"):
        table = _table(folders.inputs["source"], "calibration.text", pulse)
        texts = read_rows(table, row_maker("text", None, "text"), "with the text in 'text'")
    return Outcome(_write({"text": texts}, folders, pulse))


def _read(settings: FetchDataSettings | FetchTestSettings, table: Table) -> tuple[Row, ...]:
    make = row_maker(settings.format, settings.template, settings.text_field)
    return read_rows(table, make, row_needs(settings.format, settings.text_field))


def _table(folder: Path, asked: str, pulse: Pulse) -> Table:
    table = table_of(folder, asked)
    if table.note:
        pulse.warn(f"{asked}: {table.note}")
    return table


def _write(splits: Mapping[str, Sequence[Row]], folders: Folders, pulse: Pulse) -> DataFetched:
    """Write the splits, and count what repeats; a row taken twice by weight is one row."""
    once = {name: list({row.row: row for row in rows}.values()) for name, rows in splits.items()}
    with pulse.part("save"):
        for name, rows in splits.items():
            write_rows(rows, folders.output / f"{name}.jsonl")
        prints = fingerprints(once)
        document: Mapping[str, JsonValue] = {name: list(each) for name, each in prints.items()}
        (folders.output / FINGERPRINTS).write_text(json.dumps(document), encoding="utf-8")
    repeated = {name: duplicates(rows) for name, rows in once.items()}
    shared, near = {}, {}
    if "eval" in splits:
        shared["train/eval"] = overlap(prints["eval"], prints["train"])
        near["train/eval"] = overlap(prints[f"{NEAR_PRINTS}/eval"], prints[f"{NEAR_PRINTS}/train"])
    for name, count in repeated.items():
        if count:
            pulse.warn(f"{count} of {len(once[name])} {name} rows repeat an earlier row")
    if shared.get("train/eval"):
        pulse.warn(f"{shared['train/eval']} eval prompts stand in the training rows too")
    return DataFetched(
        rows={name: len(rows) for name, rows in splits.items()},
        duplicates=repeated,
        overlap=shared,
        near_overlap=near,
        near_duplicates={
            name: len(rows) - len(prints[f"{NEAR_PRINTS}/{name}"]) for name, rows in once.items()
        },
    )
