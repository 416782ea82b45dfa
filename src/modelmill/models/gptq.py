"""GPTQ checkpoints: what their files must hold.

Reads headers only; the engine that runs them is imported where they are run.
"""

from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from modelmill.models.families import close_known_holes, linear_in_features
from modelmill.models.guard import check_loading
from modelmill.models.weights import tensor_shapes

PACKED: Final = ("qweight", "qzeros", "scales", "g_idx")
"""What stands for a quantized layer's `weight`."""


def check_files(folder: Path, config: PreTrainedConfig) -> int:
    """Count the quantized layers in a folder's files and refuse it if a tensor is amiss.

    Args:
        folder: safetensors in the GPTQ layout.
        config: of the unquantized model.

    Raises:
        DataError: a layer is not quantized, or a tensor is missing or left over.
    """
    close_known_holes(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = linear_in_features(model)
    wanted = {name for name in model.state_dict() if name.removesuffix(".weight") not in layers}
    wanted |= {f"{layer}.{part}" for layer in layers for part in PACKED}
    found = set(tensor_shapes(folder))
    info = {
        "missing_keys": wanted - found,
        "unexpected_keys": found - wanted,
        "mismatched_keys": set[str](),
    }
    check_loading(info, model, str(folder))
    return len(layers)
