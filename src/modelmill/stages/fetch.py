"""Check what the outside world delivered and write it down in the mill's own form.

The entrypoint has pulled the pinned source into `inputs["source"]` (and `inputs["eval"]`);
this module knows paths, rows and safetensors headers, no stores and no model libraries.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, JsonValue, ValidationError

from modelmill.spec.errors import DataError
from modelmill.spec.names import FINGERPRINTS, MEASUREMENTS, NEAR_PRINTS, PROMPT
from modelmill.spec.records import AdapterFetched, DataFetched, ModelFetched, Row
from modelmill.spec.settings import (
    FetchAdapterSettings,
    FetchDataSettings,
    FetchModelSettings,
    FetchTestSettings,
)
from modelmill.stages.formats import row_maker, row_needs
from modelmill.stages.likeness import duplicates, fingerprints, overlap
from modelmill.stages.rows import read_rows, split_rows, write_rows
from modelmill.stages.stage import Folders, Outcome, Pulse
from modelmill.stages.tables import Table
from modelmill.store.safety import check_adapter, check_model, read_safetensors_header


def run(
    settings: FetchModelSettings | FetchDataSettings | FetchTestSettings | FetchAdapterSettings,
    folders: Folders,
    pulse: Pulse,
) -> Outcome:
    """Fetch a model, an adapter, training rows or test rows."""
    match settings:
        case FetchModelSettings():
            return _fetch_model(folders, pulse)
        case FetchDataSettings():
            return _fetch_data(settings, folders, pulse)
        case FetchTestSettings():
            return _fetch_test(settings, folders, pulse)
        case FetchAdapterSettings():
            return _fetch_adapter(folders, pulse)


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
        raise DataError(
            f"config.json does not describe a model ({_reason(error)})",
            at="config.json",
            fix="copy or save the model again",
        ) from error


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    return ": ".join([*map(str, first["loc"]), first["msg"]])


def _fetch_adapter(folders: Folders, pulse: Pulse) -> Outcome:
    """Take a PEFT folder, or what a fine-tune of ours has committed."""
    source = folders.inputs["source"]
    with pulse.part("work"):
        inner = "adapter" if (source / "adapter").is_dir() else ""
        for note in check_adapter(source, inner):
            pulse.warn(note)
        weights = source / inner
        config = _read_adapter_config(weights / "adapter_config.json")
        tensors = read_safetensors_header(weights / "adapter_model.safetensors").values()
    with pulse.part("save"):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            _place(weights / name, folders.output / "adapter" / name)
        if (source / PROMPT).is_file():
            _place(source / PROMPT, folders.output / PROMPT)
            for path in sorted((source / "tokenizer").rglob("*")):
                _place(path, folders.output / path.relative_to(source))
    return Outcome(
        AdapterFetched(
            r=config.r,
            targets=tuple(sorted(config.target_modules))
            if isinstance(config.target_modules, tuple)
            else (config.target_modules,),
            parameters=sum(tensor.elements for tensor in tensors),
            size_bytes=(weights / "adapter_model.safetensors").stat().st_size,
        )
    )


class _AdapterConfig(BaseModel):
    """What of an adapter's config is looked at here."""

    peft_type: str
    r: int
    target_modules: tuple[str, ...] | str


def _read_adapter_config(path: Path) -> _AdapterConfig:
    try:
        config = _AdapterConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"adapter_config.json does not describe a LoRA adapter ({_reason(error)})",
            at="adapter_config.json",
            fix="name the folder that PEFT's save_pretrained wrote",
        ) from error
    if config.peft_type != "LORA":
        raise DataError(
            f"The adapter is of the kind {config.peft_type}; only LORA can be merged",
            at="adapter_config.json",
            fix="train a LoRA adapter, or merge this one with PEFT and name the merged model",
        )
    return config


def _fetch_data(settings: FetchDataSettings, folders: Folders, pulse: Pulse) -> Outcome:
    with pulse.part("work"):
        train = _read(settings, folders.inputs["source"], "data.train")
        evaluation: tuple[Row, ...] = ()
        if settings.eval_source is not None:
            evaluation = _read(settings, folders.inputs["eval"], "data.eval")
        elif settings.eval_share is not None:
            train, evaluation = split_rows(train, settings.eval_share, settings.seed)
    return _write({"train": train, "eval": evaluation}, folders, pulse)


def _fetch_test(settings: FetchTestSettings, folders: Folders, pulse: Pulse) -> Outcome:
    with pulse.part("work"):
        test = _read(settings, folders.inputs["source"], "data.test")
    return _write({"test": test}, folders, pulse)


def _read(
    settings: FetchDataSettings | FetchTestSettings, folder: Path, asked: str
) -> tuple[Row, ...]:
    text_field = settings.text_field
    make = row_maker(settings.format, settings.template, text_field)
    return read_rows(_table(folder, asked), make, row_needs(settings.format, text_field))


def _write(splits: Mapping[str, Sequence[Row]], folders: Folders, pulse: Pulse) -> Outcome:
    with pulse.part("save"):
        for name, rows in splits.items():
            write_rows(rows, folders.output / f"{name}.jsonl")
        prints = fingerprints(splits)
        document: Mapping[str, JsonValue] = {name: list(each) for name, each in prints.items()}
        (folders.output / FINGERPRINTS).write_text(json.dumps(document), encoding="utf-8")
    repeated = {name: duplicates(rows) for name, rows in splits.items()}
    shared, near = {}, {}
    if "eval" in splits:
        shared["train/eval"] = overlap(prints["eval"], prints["train"])
        near["train/eval"] = overlap(prints[f"{NEAR_PRINTS}/eval"], prints[f"{NEAR_PRINTS}/train"])
    for name, count in repeated.items():
        if count:
            pulse.warn(f"{count} of {len(splits[name])} {name} rows repeat an earlier row")
    if shared.get("train/eval"):
        pulse.warn(f"{shared['train/eval']} eval prompts stand in the training rows too")
    return Outcome(
        DataFetched(
            rows={name: len(rows) for name, rows in splits.items()},
            duplicates=repeated,
            overlap=shared,
            near_overlap=near,
            near_duplicates={
                name: len(rows) - len(prints[f"{NEAR_PRINTS}/{name}"])
                for name, rows in splits.items()
            },
        )
    )


def _table(folder: Path, asked: str) -> Table:
    return Table([_only_file(folder)], asked)


def _only_file(folder: Path) -> Path:
    files = [path for path in folder.rglob("*") if path.is_file()]
    if len(files) != 1:
        raise DataError(
            f"A data source must be one file; this is a folder of {len(files)}",
            at=", ".join(sorted(path.name for path in files)[:5]),
            fix="name the file itself",
        )
    return files[0]


def _place(source: Path, destination: Path) -> None:
    """Hard-link where the file system can, so that a model is not held twice."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
