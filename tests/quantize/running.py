"""How the tests of this folder run the stage, and what they hold its output against."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from modelmill.conduct.base_model import shape_in
from modelmill.spec.figures import Quantized
from modelmill.spec.quantize import (
    AutoroundSpec,
    CalibrationSpec,
    GptqSpec,
    QatSpec,
    QuantizeSpec,
    RtnSpec,
)
from modelmill.spec.settings import ContractSettings, QuantizeSettings
from modelmill.spec.shape import ModelShape
from modelmill.stages.quantize import run
from modelmill.stages.stage import Folders
from modelmill.store.sources import look_local

from ..tiny_stages import Family, RecordingPulse

ModelOf = Callable[[Family], Path]

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "prompt.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def settings_for(spec: QuantizeSpec) -> QuantizeSettings:
    """Complete a method's spec."""
    return QuantizeSettings(quantize=spec, contract=ContractSettings(max_length=128), seed=0)


def gptq(bits: int, **changes: object) -> GptqSpec:
    """Ask for GPTQ on a few tokens."""
    asked = {"method": "gptq", "bits": bits, "calibration": CalibrationSpec(tokens=600), **changes}
    return GptqSpec.model_validate(asked)


def rtn(bits: int, **changes: object) -> RtnSpec:
    """Ask for rounding to nearest."""
    return RtnSpec.model_validate({"method": "rtn", "bits": bits, **changes})


def qat(bits: int, **changes: object) -> QatSpec:
    """Ask for packing what was rounded in training."""
    return QatSpec.model_validate({"method": "qat", "bits": bits, **changes})


def autoround(bits: int, **changes: object) -> AutoroundSpec:
    """Ask for AutoRound on a few tokens."""
    few = {"calibration": CalibrationSpec(tokens=1200), "iters": 20}
    asked = {"method": "autoround", "bits": bits, **few, **changes}
    return AutoroundSpec.model_validate(asked)


def quantize(
    spec: QuantizeSpec,
    model: Path,
    data: Path,
    output: Path,
    pulse: RecordingPulse | None = None,
) -> Quantized:
    """Run the stage; `data` holds the training rows, the text to calibrate on, or both."""
    output.mkdir()
    inputs = {"model": model, "data": data, "text": data}
    folders = Folders(inputs, output, output.with_name("resume"))
    outcome = run(settings_for(spec), folders, pulse or RecordingPulse())
    assert isinstance(outcome.figures, Quantized)
    return outcome.figures


def shape_of(model: Path) -> ModelShape:
    """Read what is known of a model beforehand."""
    return shape_in(look_local(model))


def worst_weight_error(original: Path, quantized: torch.nn.Module) -> float:
    """Compare every changed matrix with the original; relative, in the Frobenius norm."""
    model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    now = dict(quantized.named_parameters())
    errors = [
        ((now[name] - weight).norm() / weight.norm()).item()
        for name, weight in model.named_parameters()
        if weight.ndim == 2
    ]
    return max(errors)
