"""How fast a model answers, in the engine that serves it fastest on this device.

Apart from the answers that are judged: those come from one engine and one dtype for all models
of a run, and nothing that happens here changes them.
"""

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedTokenizerBase

from modelmill.models.families import expected_outputs
from modelmill.models.open import open_config
from modelmill.models.prompt import Contract
from modelmill.spec.errors import DeviceFault
from modelmill.spec.figures import Inferred, Speed
from modelmill.spec.serving import LORA, Artifact, Packing, engine_for
from modelmill.spec.settings import InferSettings
from modelmill.stages.infer.forms import Form, cut
from modelmill.stages.infer.vllm_engine import VllmEngine, installed
from modelmill.stages.stage import Pulse

logger = logging.getLogger(__name__)

START_SECONDS: Final = 1200
"""For a process that loads a model, compiles it and captures its graphs."""

SHARE: Final = 0.9
"""Of the memory that is free: the rest is for what vLLM does not count."""


@dataclass(frozen=True)
class Judged:
    """What was asked and answered: all that another engine needs, and no model."""

    figures: Inferred
    """With the speed of the engine that the judged answers are from."""
    folder: Path
    """Of the model's files."""
    has_adapter: bool
    prompts: Sequence[list[int]]
    """Those that were answered."""
    outputs: Sequence[str]
    """By prompt."""
    tokenizer: PreTrainedTokenizerBase
    contract: Contract
    form: Form


def speed_of(judged: Judged, settings: InferSettings, pulse: Pulse) -> Speed:
    """Measure the speed in the fastest engine that is here, and log which one it is and why.

    Where that is not vLLM, or where it fails, the speed is that of the judged answers.

    Args:
        judged: with at least one prompt.
        settings: of the stage.
        pulse: beats on meanwhile, and is told of a failure.
    """
    fits, why = _choose(judged, settings)
    if fits:
        try:
            speed = _vllm_speed(judged, settings, why, pulse)
        except DeviceFault as error:
            why = f"{why}, but vLLM failed: {error.what}"
            pulse.warn(f"The speed is that of {judged.figures.engine}: {why}")
        else:
            logger.info(
                "The speed is that of %s: %s; %d of %d answers are those that are judged",
                *(speed.engine, why, speed.equal_answers, len(judged.prompts)),
            )
            return speed
    figures = judged.figures
    logger.info("The speed is that of %s: %s", figures.engine, why)
    return Speed(
        engine=figures.engine,
        why=why,
        tokens=figures.generated_tokens,
        seconds=figures.generate_seconds,
    )


def artifact_of(folder: Path, *, has_adapter: bool) -> Artifact:
    """Read in a model's config what the choice of an engine depends on."""
    config = open_config(folder)
    model_type = config.model_type
    if has_adapter:
        return Artifact(method=LORA, model_type=model_type)
    if not hasattr(config, "quantization_config"):
        return Artifact(model_type=model_type)
    stored = config.quantization_config
    method = str(stored["quant_method"])
    if method != "gptq":
        return Artifact(method=method, model_type=model_type)
    # Other writers than ours may leave out what is as usual.
    packing = Packing(
        bits=stored["bits"],
        sym=stored.get("sym", True),
        reorders=stored.get("desc_act", False),
    )
    del config.quantization_config
    outputs = tuple(expected_outputs(config).items())
    return Artifact(method=method, packing=packing, model_type=model_type, outputs=outputs)


def _choose(judged: Judged, settings: InferSettings) -> tuple[bool, str]:
    """Tell whether vLLM is to answer, and why or why not."""
    artifact = artifact_of(judged.folder, has_adapter=judged.has_adapter)
    engine, why = engine_for(artifact, is_gpu=torch.cuda.is_available())
    if engine != "vLLM":
        return False, why
    if settings.dtype == "float32":
        return False, "the run computes in float32, and vLLM is for 16 bits"
    if installed() is None:
        return False, f"vLLM is faster ({why}), but is not installed here"
    return True, why


def _vllm_speed(judged: Judged, settings: InferSettings, why: str, pulse: Pulse) -> Speed:
    engine = VllmEngine(
        folder=judged.folder,
        dtype=settings.dtype,
        tokenizer=judged.tokenizer,
        contract=judged.contract,
        max_new_tokens=settings.max_new_tokens,
        stop_text=judged.form.stop_text,
        memory_share=_free_share(),
        # Slower than the engine it is chosen over, it would not be worth waiting for.
        limit_seconds=START_SECONDS + judged.figures.generate_seconds,
        waiting=lambda: pulse.progress(0, len(judged.prompts), "rows", "vLLM"),
    )
    answered = engine.answer([*judged.prompts])
    pairs = zip(answered.texts, judged.outputs, strict=True)
    return Speed(
        engine=f"vllm {installed()}",
        why=why,
        tokens=sum(answered.tokens),
        seconds=answered.seconds,
        equal_answers=sum(cut(text, judged.form) == output for text, output in pairs),
    )


def _free_share() -> float:
    """Give the model's memory back, and say how much of the device vLLM may take."""
    gc.collect()
    if not torch.cuda.is_available():
        return SHARE
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return float(round(SHARE * free / total, 3))
