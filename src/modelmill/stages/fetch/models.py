"""Models and adapters as the outside world delivered them, checked before anything reads them.

Knows paths and safetensors headers, no stores and no model libraries.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel, JsonValue, ValidationError

from modelmill.spec.errors import DataError
from modelmill.spec.figures import AdapterFetched, ModelFetched
from modelmill.spec.names import MEASUREMENTS, PROMPT
from modelmill.stages.stage import Folders, Outcome, Pulse
from modelmill.store.safety import check_adapter, check_model, read_safetensors_header


def fetch_model(folders: Folders, pulse: Pulse) -> Outcome:
    """Take a 16-bit model that no library would run code for.

    Raises:
        UnsafeArtifact, DataError, InputMissing: as `check_model`; or it is quantized already.
    """
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


def fetch_adapter(folders: Folders, pulse: Pulse) -> Outcome:
    """Take a LoRA adapter: a PEFT folder, or what a fine-tune of ours has committed.

    Raises:
        UnsafeArtifact, DataError, InputMissing: as `check_adapter`; or it is no LoRA adapter.
    """
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
        elif all((weights / name).is_file() for name in TOKENIZER_FILES[:2]):
            # Trainers save it beside the adapter; it knows tokens that the base's may not.
            for name in TOKENIZER_FILES:
                if (weights / name).is_file():
                    _place(weights / name, folders.output / "tokenizer" / name)
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


TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""The first two are enough, and needed to open it without a model's config."""


class _AdapterConfig(BaseModel):
    """What of an adapter's config is looked at here."""

    peft_type: str
    r: int
    target_modules: tuple[str, ...] | str
    exclude_modules: tuple[str, ...] | str | None = None


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
    for name in ("target_modules", "exclude_modules"):
        _check_pattern(name, getattr(config, name))
    return config


def _check_pattern(name: str, said: tuple[str, ...] | str | None) -> None:
    """Refuse what PEFT would fail on when the adapter meets its base, which is fetched later."""
    if not isinstance(said, str):
        return
    try:
        re.compile(said)
    except re.error as error:
        raise DataError(
            f"{name} is no pattern: '{said}' ({error})",
            at=f"adapter_config.json: {name}",
            fix=f"write a regular expression such as '.*q_proj', or a list of layers, as {name}",
        ) from error


def _place(source: Path, destination: Path) -> None:
    """Hard-link where the file system can, so that a model is not held twice."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
