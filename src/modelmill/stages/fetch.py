"""Check what the outside world delivered and write it down in the mill's own form.

The entrypoint has pulled the pinned sources into `inputs` (by role: `source`, or `source-1` and
so on where training rows come from a list; `eval`);
this module knows paths, rows and safetensors headers, no stores and no model libraries.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, JsonValue, ValidationError

from modelmill.spec.data import TemplateSpec
from modelmill.spec.errors import DataError
from modelmill.spec.names import FINGERPRINTS, MEASUREMENTS
from modelmill.spec.records import DataFetched, ModelFetched, Row, SourceRows
from modelmill.spec.settings import FetchDataSettings, FetchModelSettings, FetchTestSettings, Pin
from modelmill.stages.mixing import Share, mixed, taken
from modelmill.stages.rows import (
    duplicates,
    fingerprints,
    overlap,
    read_rows,
    split_rows,
    write_rows,
)
from modelmill.stages.stage import Folders, Outcome, Pulse
from modelmill.stages.tables import Table, table_of
from modelmill.store.safety import check_model, read_safetensors_header


def run(
    settings: FetchModelSettings | FetchDataSettings | FetchTestSettings,
    folders: Folders,
    pulse: Pulse,
) -> Outcome:
    """Fetch a model, training rows or test rows."""
    match settings:
        case FetchModelSettings():
            return _fetch_model(folders, pulse)
        case FetchDataSettings():
            return _fetch_data(settings, folders, pulse)
        case FetchTestSettings():
            return _fetch_test(settings, folders, pulse)


def _fetch_model(folders: Folders, pulse: Pulse) -> Outcome:
    source = folders.inputs["source"]
    with pulse.part("work"):
        for note in check_model(source):
            pulse.warn(note)
        config = _read_config(source / "config.json")
        if config.quantization_config is not None:
            method = config.quantization_config.get("quant_method", "something")
            raise DataError(
                f"The base model is already quantized with {method}",
                at="config.json: quantization_config",
                fix="name the 16-bit model it was made from as model.source",
            )
        weights = sorted(source.glob("*.safetensors"))
        headers = [read_safetensors_header(path) for path in weights]
        tensors = [tensor for header in headers for tensor in header.values()]
    with pulse.part("save"):
        # A folder that `artifacts get` has filled holds the measurements of another stage.
        (source / MEASUREMENTS).unlink(missing_ok=True)
        for path in sorted(source.rglob("*")):
            if path.is_file():
                _place(path, folders.output / path.relative_to(source))
    return Outcome(
        ModelFetched(
            architecture=", ".join(config.architectures or (config.model_type,)),
            parameters=sum(tensor.elements for tensor in tensors),
            size_bytes=sum(path.stat().st_size for path in weights),
            dtype=", ".join(sorted({tensor.dtype for tensor in tensors})),
        )
    )


class _Config(BaseModel):
    """What of a model's config is looked at here."""

    model_type: str
    architectures: tuple[str, ...] | None = None
    quantization_config: Mapping[str, JsonValue] | None = None


def _read_config(path: Path) -> _Config:
    try:
        return _Config.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise DataError(
            f"config.json does not describe a model ({reason})",
            at="config.json",
            fix="copy or save the model again",
        ) from error


def _fetch_data(settings: FetchDataSettings, folders: Folders, pulse: Pulse) -> Outcome:
    with pulse.part("work"):
        shares = _read_train(settings, folders, pulse)
        train = tuple(row for share in shares for row in share.rows)
        evaluation: tuple[Row, ...] = ()
        if settings.eval_source is not None:
            evaluation = _read(folders.inputs["eval"], settings.template, "data.eval", pulse)
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
            rows = read_rows(table, settings.template)
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


def _fetch_test(settings: FetchTestSettings, folders: Folders, pulse: Pulse) -> Outcome:
    with pulse.part("work"):
        test = _read(folders.inputs["source"], settings.template, "data.test", pulse)
    return Outcome(_write({"test": test}, folders, pulse))


def _read(folder: Path, template: TemplateSpec, asked: str, pulse: Pulse) -> tuple[Row, ...]:
    return read_rows(_table(folder, asked, pulse), template)


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
    shared = {"train/eval": overlap(prints["eval"], prints["train"])} if "eval" in prints else {}
    for name, count in repeated.items():
        if count:
            pulse.warn(f"{count} of {len(once[name])} {name} rows repeat an earlier row")
    if shared.get("train/eval"):
        pulse.warn(f"{shared['train/eval']} eval prompts stand in the training rows too")
    return DataFetched(
        rows={name: len(rows) for name, rows in splits.items()},
        duplicates=repeated,
        overlap=shared,
    )


def _place(source: Path, destination: Path) -> None:
    """Hard-link where the file system can, so that a model is not held twice."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
