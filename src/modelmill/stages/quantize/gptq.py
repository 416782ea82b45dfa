"""GPTQ with GPTQModel: rounds column by column, looking at training rows."""

import torch
from gptqmodel import GPTQModel, QuantizeConfig

from modelmill.models.families import expected_linears, expected_outputs
from modelmill.models.memory import trim_heap
from modelmill.models.open import open_config
from modelmill.spec.batching import CALIBRATION_TOKENS
from modelmill.spec.grouping import check_packing, choose_group_size
from modelmill.spec.quantize import GptqSpec
from modelmill.spec.settings import QuantizeSettings
from modelmill.stages.quantize.calibration import Calibration, shortage
from modelmill.stages.quantize.engine import ENGINE_SETTINGS, logs_away, open_engine, save_engine
from modelmill.stages.quantize.evidence import calibrate_on
from modelmill.stages.quantize.written import Written
from modelmill.stages.stage import Folders, Pulse


def quantize(spec: GptqSpec, settings: QuantizeSettings, folders: Folders, pulse: Pulse) -> Written:
    """Quantize the model's linear layers, looking at training rows.

    Raises:
        SpecError: the group size or the bits do not fit this model.
        DataError: too few training tokens, or a layer was left out.
    """
    source = folders.inputs["model"]
    with pulse.part("load"):
        config = open_config(source)
        in_features = expected_linears(config)
        group_size = choose_group_size(spec.group_size, in_features)
        check_packing(spec.bits, expected_outputs(config))
        calibration = calibrate_on(spec, settings, folders)
        warning = shortage(spec.method, calibration.tokens, max(in_features.values()))
        if warning:
            pulse.warn(warning)
        asked = _engine_config(spec, group_size)
        model = open_engine(source, config, asked, _calibration_dtype())
    with pulse.part("work"):
        _run_engine(model, calibration, config.get_text_config().num_hidden_layers, folders, pulse)
    with pulse.part("save"):
        modules = save_engine(model, folders.output, config, spec, {})
    return Written(modules, group_size, calibration)


def _engine_config(spec: GptqSpec, group_size: int) -> QuantizeConfig:
    return QuantizeConfig(
        bits=spec.bits,
        group_size=group_size,
        sym=spec.sym,
        desc_act=spec.desc_act,
        damp_percent=spec.damp_percent,
        device="cuda:0" if torch.cuda.is_available() else "cpu",
        **ENGINE_SETTINGS,
    )


def _calibration_dtype() -> torch.dtype:
    """CPUs emulate float16: a layer's pass takes 3.6 times as long as in float32."""
    return torch.float16 if torch.cuda.is_available() else torch.float32


def _run_engine(
    model: GPTQModel, calibration: Calibration, layers: int, folders: Folders, pulse: Pulse
) -> None:
    def layer_complete(layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized:
            trim_heap()  # its weights are packed, and what was worked with is another layer's size
            pulse.progress(layer_idx + 1, layers, "layers")

    pulse.progress(0, layers, "layers")
    model.layer_callback = layer_complete
    with logs_away(folders.output):
        # Equal lengths: no padding, so there is no mask to get right.
        model.quantize(
            [{"input_ids": sequence} for sequence in calibration.sequences],
            batch_size=max(1, CALIBRATION_TOKENS // len(calibration.sequences[0])),
        )
