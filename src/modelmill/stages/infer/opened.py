"""Open whichever model it is, ready to answer in one compute dtype.

All models of a run compute in the same dtype, so that their answers differ by their
weights alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel

from modelmill.models.families import close_known_holes
from modelmill.models.open import open_config, open_model
from modelmill.models.parameters import model_parameters
from modelmill.spec.run import Dtype

DTYPES: Final[dict[Dtype, torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

_PLAIN_BITS: Final = 16


@dataclass(frozen=True)
class Opened:
    """A model, and what the report calls it."""

    model: PreTrainedModel
    method: str
    """`none`, `gptq` or `bitsandbytes-nf4`."""
    bits: int
    parameters: int
    engine: str
    positions: int | None
    """How many tokens the architecture can tell apart; None where nothing says so."""


def open_any(folder: Path, dtype: torch.dtype, device: torch.device) -> Opened:
    """Open a plain, NF4 or GPTQ model.

    Raises:
        DataError: its files do not hold what its config says.
    """
    config = open_config(folder)
    close_known_holes(config)
    stored = dict(config.quantization_config) if hasattr(config, "quantization_config") else {}
    method = stored.get("quant_method", "none")
    bits = _PLAIN_BITS
    engine = f"transformers {transformers.__version__}"
    if method == "gptq":
        bits = int(stored["bits"])
        model, engine = _open_gptq(folder, bits, dtype, device)
    else:
        model = open_model(folder, dtype=dtype, device=device)
    if method == "bitsandbytes":
        method, bits = "bitsandbytes-nf4", 4
        engine += f", bitsandbytes {_compute_in(model, dtype)}"
    # Everything a model's own generation_config could say would change the comparison.
    model.generation_config = GenerationConfig()
    positions = config.get_text_config().to_dict().get("max_position_embeddings")
    return Opened(
        model=model.eval(),
        method=method,
        bits=bits,
        parameters=model_parameters(config),
        engine=engine,
        positions=positions,
    )


def _open_gptq(
    folder: Path, bits: int, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, str]:
    """On CUDA with the engine's kernels, elsewhere unpacked once.

    On CPUs the unpacked model is the fastest and the most exact: the packed kernels
    without compilation gave 36 tokens per CPU second where bfloat16 gave 52, exist for 4
    bits only, and answer differently with the batch.
    """
    if device.type == "cuda" and dtype != torch.float32:
        from modelmill.stages.infer import gptq_engine

        return gptq_engine.open_packed(folder, dtype)
    from modelmill.models.gptq import open_unpacked

    model = open_unpacked(folder, bits=bits, dtype=dtype).to(device)
    return model, f"transformers {transformers.__version__}, gptq unpacked"


def _compute_in(model: PreTrainedModel, dtype: torch.dtype) -> str:
    """Let NF4 layers compute in this run's dtype instead of the one they were saved with."""
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = dtype
            module.compute_type_is_set = True
    version: str = bitsandbytes.__version__
    return version
