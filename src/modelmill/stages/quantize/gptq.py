"""GPTQ with GPTQModel's own API.

Never through transformers' `GPTQConfig`: that writes another format than asked for, no
`quantize_config.json`, and the calibration text into `config.json`.
"""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from gptqmodel import GPTQModel, QuantizeConfig
from gptqmodel.looper import loop_processor
from pydantic import JsonValue, TypeAdapter

from modelmill.models.families import close_known_holes, expected_linears
from modelmill.models.gptq import check_files
from modelmill.models.open import open_config, open_tokenizer
from modelmill.models.prompt import contract_for, encode_row
from modelmill.models.weights import SHARD_SIZE
from modelmill.spec.batching import CALIBRATION_TOKENS
from modelmill.spec.grouping import choose_group_size
from modelmill.spec.quantize import GptqSpec
from modelmill.spec.records import Row
from modelmill.spec.settings import QuantizeSettings
from modelmill.stages.quantize.calibration import Calibration, choose_sequences, shortage
from modelmill.stages.quantize.written import Written
from modelmill.stages.stage import Folders, Pulse

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

QUANTIZE_CONFIG: Final = "quantize_config.json"
"""auto-gptq reads only this one, transformers and vLLM only `config.json`."""

_JSON = TypeAdapter(dict[str, JsonValue])


def quantize(spec: GptqSpec, settings: QuantizeSettings, folders: Folders, pulse: Pulse) -> Written:
    """Quantize the model's linear layers, looking at training rows.

    Raises:
        SpecError: the group size does not fit this model.
        DataError: too few training tokens, or a layer was left out.
    """
    source = folders.inputs["model"]
    with pulse.part("load"):
        config = open_config(source)
        in_features = expected_linears(config)
        group_size = choose_group_size(spec.group_size, in_features)
        calibration = _calibrate_on(spec, settings, folders)
        warning = shortage(calibration.tokens, max(in_features.values()))
        if warning:
            pulse.warn(warning)
        close_known_holes(config)
        _keep_two_workers()
        model = GPTQModel.load(
            str(source),
            _engine_config(spec, group_size),
            dtype=_calibration_dtype(),
            local_files_only=True,
        )
    with pulse.part("work"):
        _run_engine(model, calibration, config.get_text_config().num_hidden_layers, folders, pulse)
    with pulse.part("save"):
        # The scales and everything unquantized are stored in 16 bits; packed integers stay.
        model.model.to(torch.float16)
        model.save(str(folders.output), max_shard_size=SHARD_SIZE)
        _keep_what_readers_need(folders.output)
        modules = check_files(folders.output, config)
    return Written(modules, group_size, calibration.rows, calibration.tokens)


def _calibrate_on(spec: GptqSpec, settings: QuantizeSettings, folders: Folders) -> Calibration:
    source = folders.inputs["model"]
    tokenizer = open_tokenizer(source)
    contract = contract_for(source, tokenizer, settings.contract)
    positions = open_config(source).get_text_config().to_dict().get("max_position_embeddings")
    lines = (folders.inputs["data"] / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return choose_sequences(
        [Row.model_validate_json(line) for line in lines],
        lambda row: encode_row(contract, tokenizer, row).input_ids,
        max_tokens=spec.calibration.tokens,
        # The engine cuts sequences at the model's own limit without counting what it drops.
        length=min(contract.max_length, positions or contract.max_length),
        seed=settings.seed,
    )


def _engine_config(spec: GptqSpec, group_size: int) -> QuantizeConfig:
    return QuantizeConfig(
        bits=spec.bits,
        group_size=group_size,
        sym=spec.sym,
        desc_act=spec.desc_act,
        damp_percent=spec.damp_percent,
        format="gptq",
        device="cuda:0" if torch.cuda.is_available() else "cpu",
        # In memory: on disk it would need a folder that nothing else in a stage has.
        offload_to_disk=False,
        # The faster packers are compiled at first use: 40 s against less than one saved.
        pack_impl="original",
    )


def _calibration_dtype() -> torch.dtype:
    """CPUs emulate float16: a layer's pass takes 3.6 times as long as in float32."""
    return torch.float16 if torch.cuda.is_available() else torch.float32


def _keep_two_workers() -> None:
    """On two cores the engine would make one worker and then ask it for two."""
    # A pod is told its own share of the node's cores by OpenMP's variable.
    cores = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (cores + 1) // 2)))


def _run_engine(
    model: GPTQModel, calibration: Calibration, layers: int, folders: Folders, pulse: Pulse
) -> None:
    def layer_complete(layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized:
            pulse.progress(layer_idx + 1, layers, "layers")

    pulse.progress(0, layers, "layers")
    model.layer_callback = layer_complete
    with TemporaryDirectory(dir=folders.output) as scratch:
        loop_processor._PROJECT_LOG_DIR = Path(scratch)  # noqa: SLF001 - `logs/` of the current folder
        # Equal lengths: no padding, so there is no mask to get right.
        model.quantize(
            [{"input_ids": sequence} for sequence in calibration.sequences],
            batch_size=max(1, CALIBRATION_TOKENS // len(calibration.sequences[0])),
        )


def _keep_what_readers_need(folder: Path) -> None:
    config_path = folder / "config.json"
    config = _JSON.validate_json(config_path.read_bytes())
    engine = _JSON.validate_python(config["quantization_config"])
    meta = _JSON.validate_python(engine["meta"])
    kept: dict[str, JsonValue] = {name: engine[name] for name in KEPT}
    kept["meta"] = {name: meta[name] for name in KEPT_META}
    config["quantization_config"] = kept
    _write_json(config_path, config)
    _write_json(folder / QUANTIZE_CONFIG, kept)
    (folder / "quant_log.csv").unlink()  # the engine's timings: other bytes each time


def _write_json(path: Path, value: dict[str, JsonValue]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
