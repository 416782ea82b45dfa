"""What a model in GPTQ's format says about itself, in both places where readers look."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import JsonValue, TypeAdapter

QUANTIZE_CONFIG: Final = "quantize_config.json"
"""auto-gptq reads only this one, transformers and vLLM only `config.json`."""

_JSON = TypeAdapter(dict[str, JsonValue])


def write_configs(folder: Path, said: Mapping[str, JsonValue]) -> None:
    """Write how the weights are packed beside them, and into the `config.json` that is there."""
    path = folder / "config.json"
    config = _JSON.validate_json(path.read_bytes())
    _write_json(path, {**config, "quantization_config": dict(said)})
    _write_json(folder / QUANTIZE_CONFIG, said)


def _write_json(path: Path, value: Mapping[str, JsonValue]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
