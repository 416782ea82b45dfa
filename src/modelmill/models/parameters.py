"""How many parameters an architecture has, whatever its files pack them into."""

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig


def model_parameters(config: PreTrainedConfig) -> int:
    """Count the parameters of the unquantized model, tied ones once; costs no memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())
