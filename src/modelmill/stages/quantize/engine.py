"""GPTQModel, the engine of `gptq` and `rtn`: opened, told to run, its files made fit for readers.

Never through transformers' `GPTQConfig`: that writes another format than asked for, no
`quantize_config.json`, and the calibration text into `config.json`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from gptqmodel import GPTQModel
from gptqmodel.looper import loop_processor
from gptqmodel.quantization.config import BaseQuantizeConfig
from pydantic import JsonValue, TypeAdapter
from transformers import PreTrainedConfig

from modelmill.models.families import close_known_holes
from modelmill.models.gptq import check_files, count_lowest_zeros, store_tied_heads
from modelmill.models.weights import SHARD_SIZE
from modelmill.spec.errors import DataError
from modelmill.spec.quantize import PackedSpec
from modelmill.stages.quantize.configs import write_configs

KEPT: Final = (
    "bits",
    "group_size",
    "desc_act",
    "sym",
    "lm_head",
    "quant_method",
    "checkpoint_format",
    "pack_dtype",
)
"""What readers need to know; vLLM, auto-gptq, transformers and GPTQModel ask for no more."""

KEPT_META: Final = ("quantizer", "uri", "damp_percent", "act_group_aware", "true_sequential")
"""Provenance.  The engine's other entries hold paths of this machine or repeat defaults."""

_JSON = TypeAdapter(dict[str, JsonValue])


ENGINE_SETTINGS: Final = {
    "format": "gptq",
    # In memory: on disk it would need a folder that nothing else in a stage has.
    "offload_to_disk": False,
    # The faster packers are compiled at first use: 40 s against less than one saved.
    "pack_impl": "original",
}
"""The same whatever the method."""


def open_engine(
    source: Path, config: PreTrainedConfig, asked: BaseQuantizeConfig, dtype: torch.dtype
) -> GPTQModel:
    """Open a plain model for the engine to quantize."""
    close_known_holes(config)
    _keep_two_workers()
    return GPTQModel.load(str(source), asked, dtype=dtype, local_files_only=True)


@contextmanager
def logs_away(folder: Path) -> Iterator[None]:
    """Keep the engine from writing `logs/` into the current folder."""
    with TemporaryDirectory(dir=folder) as scratch:
        loop_processor._PROJECT_LOG_DIR = Path(scratch)  # noqa: SLF001
        yield


def save_engine(
    model: GPTQModel,
    folder: Path,
    config: PreTrainedConfig,
    spec: PackedSpec,
    meta: Mapping[str, JsonValue],
) -> int:
    """Write the quantized model, with what readers need to know and no more.

    Args:
        model: quantized.
        folder: empty.
        config: of the unquantized model.
        spec: what was asked for.
        meta: what else to say about the method.

    Returns:
        How many layers are quantized.

    Raises:
        DataError: a layer was left out, or a reader that was asked for would misread one.
    """
    # The scales and everything unquantized are stored in 16 bits; packed integers stay.
    model.model.to(torch.float16)
    model.save(str(folder), max_shard_size=SHARD_SIZE)
    _keep_what_readers_need(folder, meta)
    (folder / "quant_log.csv").unlink()  # the engine's timings: other bytes each time
    if "auto-gptq" in spec.compat:
        _refuse_lowest_zeros(folder, spec)
        store_tied_heads(folder, config)
    return check_files(folder, config)


def _refuse_lowest_zeros(folder: Path, spec: PackedSpec) -> None:
    """Refuse zero points of 0, which the engine stores in another way than auto-gptq reads."""
    count = count_lowest_zeros(folder, spec.bits)
    if count:
        raise DataError(
            f"{count} groups hold no weight that is clearly negative, so their zero point is 0; "
            "auto-gptq reads such groups, or those beside them, wrongly",
            fix="quantize with sym: true, or without compat: [auto-gptq]; GPTQModel and "
            "transformers read it right",
        )


def _keep_two_workers() -> None:
    """On two cores the engine would make one worker and then ask it for two."""
    # A pod is told its own share of the node's cores by OpenMP's variable.
    cores = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (cores + 1) // 2)))


def _keep_what_readers_need(folder: Path, more: Mapping[str, JsonValue]) -> None:
    config = _JSON.validate_json((folder / "config.json").read_bytes())
    engine = _JSON.validate_python(config["quantization_config"])
    meta = _JSON.validate_python(engine["meta"])
    kept: dict[str, JsonValue] = {name: engine[name] for name in KEPT}
    kept["meta"] = {**{name: meta[name] for name in KEPT_META}, **more}
    write_configs(folder, kept)
