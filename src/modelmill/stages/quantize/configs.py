"""What a model in GPTQ's format says about itself, in both places where readers look."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from pydantic import JsonValue, TypeAdapter
from transformers import PreTrainedConfig

from modelmill.spec.quantize import PackedSpec

QUANTIZE_CONFIG: Final = "quantize_config.json"
"""auto-gptq reads only this one, transformers and vLLM only `config.json`."""

_JSON = TypeAdapter(dict[str, JsonValue])


def say_how(
    spec: PackedSpec,
    group_size: int,
    config: PreTrainedConfig,
    folder: Path,
    meta: Mapping[str, JsonValue],
) -> None:
    """Write the configs of a model whose weights no engine of the format has written.

    Args:
        spec: what was asked for.
        group_size: what was taken.
        config: of the unquantized model.
        folder: where the weights are.
        meta: who wrote them, and how.
    """
    config.dtype = torch.float16
    config.save_pretrained(folder)
    said: dict[str, JsonValue] = {
        "bits": spec.bits,
        "group_size": group_size,
        "desc_act": False,
        "sym": spec.sym,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "meta": {**meta, "method": spec.method},
    }
    write_configs(folder, said)


def write_configs(folder: Path, said: Mapping[str, JsonValue]) -> None:
    """Write how the weights are packed beside them, and into the `config.json` that is there."""
    path = folder / "config.json"
    config = _JSON.validate_json(path.read_bytes())
    _write_json(path, {**config, "quantization_config": dict(said)})
    _write_json(folder / QUANTIZE_CONFIG, said)


def _write_json(path: Path, value: Mapping[str, JsonValue]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
