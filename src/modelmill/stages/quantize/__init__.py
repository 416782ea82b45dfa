"""QUANTIZE: a 16-bit model becomes one in fewer bits, checked in the files that were written.

One module per method, all of one shape; this one chooses, carries the tokenizer and the
prompt contract, and measures.
"""

import shutil
from typing import Final

from pydantic import JsonValue

from modelmill.models.grid import Grid
from modelmill.models.open import open_config, open_tokenizer
from modelmill.models.parameters import model_parameters
from modelmill.models.prompt import contract_for, save_contract
from modelmill.models.weights import make_readable, weight_bytes
from modelmill.spec.errors import SpecError
from modelmill.spec.figures import Quantized
from modelmill.spec.quantize import (
    AutoroundSpec,
    BitnetSpec,
    BitsandbytesSpec,
    GptqSpec,
    PackedSpec,
    QatSpec,
    RtnSpec,
    bits_of,
)
from modelmill.spec.settings import QuantizeSettings
from modelmill.spec.vllm import model_problem
from modelmill.stages.quantize.distance import distances
from modelmill.stages.quantize.written import Written
from modelmill.stages.stage import Folders, Outcome, Pulse

GENERATION_CONFIG: Final = "generation_config.json"
FEW_ZEROED: Final = 0.01
"""Share of a layer's inputs that may be zeroed without a word."""


def run(settings: QuantizeSettings, folders: Folders, pulse: Pulse) -> Outcome:
    """Quantize `model` into the output folder.

    Raises:
        SpecError: the method does not fit this model, or a reader that was asked for does not.
        DataError: too little to calibrate on, or the result lacks layers or has wrong ones.
    """
    _check_readers(settings, folders)
    written = _quantize(settings, folders, pulse)
    calibration = written.calibration
    effective: dict[str, JsonValue] = dict(written.effective)
    if isinstance(settings.quantize, PackedSpec) and written.group_size is not None:
        with pulse.part("check"):
            effective["changed_by"] = _check(
                settings.quantize, Grid(settings.quantize.bits, written.group_size), folders, pulse
            )
    _carry(settings, folders)
    parameters = model_parameters(open_config(folders.inputs["model"]))
    size_bytes = weight_bytes(folders.output)
    return Outcome(
        Quantized(
            method=settings.quantize.method,
            bits=bits_of(settings.quantize),
            group_size=written.group_size,
            modules=written.modules,
            size_bytes=size_bytes,
            parameters=parameters,
            bits_per_weight=8 * size_bytes / parameters,
            calibration_rows=calibration.rows,
            calibration_tokens=calibration.tokens,
            calibration_text_tokens=calibration.text_tokens,
            calibration_unused=calibration.given - calibration.rows,
            calibration_longer=calibration.longer,
        ),
        effective=effective,
    )


def _quantize(settings: QuantizeSettings, folders: Folders, pulse: Pulse) -> Written:
    """Import only the engine that is needed: each takes seconds."""
    match settings.quantize:
        case GptqSpec() as spec:
            from modelmill.stages.quantize import gptq

            return gptq.quantize(spec, settings, folders, pulse)
        case AutoroundSpec() as spec:
            from modelmill.stages.quantize import autoround

            return autoround.quantize(spec, settings, folders, pulse)
        case RtnSpec() as spec:
            from modelmill.stages.quantize import rtn

            return rtn.quantize(spec, folders, pulse)
        case QatSpec() as spec:
            from modelmill.stages.quantize import qat

            return qat.quantize(spec, folders, pulse)
        case BitsandbytesSpec() as spec:
            from modelmill.stages.quantize import bitsandbytes

            return bitsandbytes.quantize(spec, folders, pulse)
        case BitnetSpec():
            from modelmill.stages.quantize import bitnet

            return bitnet.quantize(folders, pulse)


def _check_readers(settings: QuantizeSettings, folders: Folders) -> None:
    """Refuse what a plan refuses too, where it could see the model."""
    spec = settings.quantize
    if not isinstance(spec, PackedSpec) or "vllm" not in spec.compat:
        return
    problem = model_problem(open_config(folders.inputs["model"]).model_type, is_packed=True)
    if problem is not None:
        raise SpecError("quantize", [problem])


def _check(spec: PackedSpec, grid: Grid, folders: Folders, pulse: Pulse) -> dict[str, JsonValue]:
    """Read some layers back, and say how far each was changed."""
    is_gptq = isinstance(spec, GptqSpec)
    found = distances(folders.inputs["model"], folders.output, grid, may_zero=is_gptq)
    zeroed = {layer: each.zeroed for layer, each in found.items() if each.zeroed > FEW_ZEROED}
    if zeroed:
        layer = max(zeroed, key=zeroed.__getitem__)
        pulse.warn(
            f"The calibration rows never reach {zeroed[layer]:.0%} of the inputs of {layer}, and "
            "GPTQ sets their weights to zero: calibrate on more and other tokens, or quantize "
            "by autoround or rtn, which keep them"
        )
    return {layer: round(each.changed_by, 4) for layer, each in found.items()}


def _carry(settings: QuantizeSettings, folders: Folders) -> None:
    """Put beside the weights what a reader needs to use the model as it was trained."""
    source = folders.inputs["model"]
    tokenizer = open_tokenizer(source)
    tokenizer.save_pretrained(folders.output)
    save_contract(contract_for(source, tokenizer, settings.contract), folders.output)
    generation = source / GENERATION_CONFIG
    if generation.exists():
        shutil.copyfile(generation, folders.output / GENERATION_CONFIG)
    make_readable(folders.output)
