"""Open whichever model it is, ready to answer in one compute dtype.

All models of a run compute in the same dtype, so that their answers differ by their
weights alone.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
import transformers
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from modelmill.models.families import close_known_holes, position_limit
from modelmill.models.gptq import open_unpacked
from modelmill.models.open import bitsandbytes_type, open_config, open_model
from modelmill.models.parameters import model_parameters
from modelmill.spec.closed import Dtype
from modelmill.spec.quantize import TERNARY_BITS

DTYPES: Final[dict[Dtype, torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

PLAIN_BITS: Final = 16


@dataclass(frozen=True)
class Opened:
    """A model, and what the report calls it."""

    model: PreTrainedModel
    method: str
    """`none`, `gptq`, `rtn`, `qat`, `bitsandbytes-nf4`, `-fp4` or `-int8`, `bitnet`, or `lora`."""
    bits: int
    parameters: int
    engine: str
    positions: int | None
    """How many tokens the architecture can tell apart; None where nothing says so."""


def open_any(folder: Path, dtype: torch.dtype, device: torch.device) -> Opened:
    """Open a plain model, or one in bitsandbytes', GPTQ's or BitNet's format.

    On CPUs a quantized model is unpacked once: that is the fastest and the most exact
    there.  Packed kernels that need no compiler gave 36 (GPTQ) and 47 (NF4) tokens per CPU
    second where plain bfloat16 gave 52; they exist for 4 bits only, or compute in bfloat16
    whatever is asked for, and answer differently with the batch.

    BitNet's layers are unpacked on every device, and go on rounding what flows in to 8 bits: that
    is part of the method, and what its user gets.

    Raises:
        DataError: its files do not hold what its config says.
    """
    config = open_config(folder)
    close_known_holes(config)
    stored = dict(config.quantization_config) if hasattr(config, "quantization_config") else {}
    method, bits, engine = stored.get("quant_method", "none"), PLAIN_BITS, ""
    if method == "gptq":
        bits = int(stored["bits"])
        model, engine = _open_gptq(folder, bits, dtype, device)
        # Others write the same format and say so beside it.
        method = stored.get("meta", {}).get("method", method)
    else:
        model = open_model(folder, dtype=dtype, device=device)
    if method == "bitsandbytes":
        held_in = bitsandbytes_type(config)
        method, bits = f"bitsandbytes-{held_in}", 8 if held_in == "int8" else 4
        engine = _prepare_bitsandbytes(model, dtype, device)
    if method == "bitnet":
        bits, engine = TERNARY_BITS, "bitnet unpacked, activations in 8 bits"
        _unpack_bitnet(model, dtype)
    return opened_of(model, config, method, bits, engine)


def opened_of(
    model: PreTrainedModel,
    config: PreTrainedConfig,
    method: str,
    bits: int,
    engine: str,
) -> Opened:
    """Put an opened model into evaluation and say what it is."""
    # Everything a model's own generation_config could say would change the comparison.
    model.generation_config = GenerationConfig()
    return Opened(
        model=model.eval(),
        method=method,
        bits=bits,
        parameters=model_parameters(config),
        engine=f"transformers {transformers.__version__}" + (f", {engine}" if engine else ""),
        positions=position_limit(config),
    )


def _open_gptq(
    folder: Path, bits: int, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, str]:
    # vLLM's image has no GPTQModel: there all models of a run are answered unpacked.
    if device.type == "cuda" and dtype != torch.float32 and find_spec("gptqmodel") is not None:
        from modelmill.stages.infer.gptq_engine import open_packed  # eight seconds

        return open_packed(folder, dtype)
    return open_unpacked(folder, bits=bits, dtype=dtype).to(device), "gptq unpacked"


def _unpack_bitnet(model: PreTrainedModel, dtype: torch.dtype) -> None:
    from modelmill.models.bitnet import unpack_layers  # two seconds, of torch's compiler

    unpack_layers(model, dtype)


def _prepare_bitsandbytes(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> str:
    from modelmill.models import bitsandbytes

    if device.type == "cuda":
        bitsandbytes.compute_in(model, dtype)
        return bitsandbytes.engine_name()
    bitsandbytes.unpack(model, dtype)
    return f"{bitsandbytes.engine_name()} unpacked"
