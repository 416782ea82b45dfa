"""What differs between model families: which layers are theirs, and whose are mistreated.

Knows architectures through their modules only; opens nothing and checks nothing.
"""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D


def close_known_holes(config: PreTrainedConfig) -> None:
    """Make a family's layers visible to quantizers; call before any `from_pretrained`.

    transformers 5 replaces layers by `type(module) is nn.Linear`, and Falcon's are a
    subclass: NF4 then quantizes nothing and a GPTQ checkpoint is initialised at random,
    both without an error.  The subclass only spells out `nn.Linear`'s own forward, so
    the logits stay bit-identical.
    """
    if config.model_type == "falcon":
        from transformers.models.falcon import modeling_falcon

        modeling_falcon.FalconLinear = nn.Linear


def linear_in_features(model: PreTrainedModel) -> dict[str, int]:
    """Map each quantizable layer's name to its number of input features, in model order.

    Quantizable are all `nn.Linear` and `Conv1D` layers inside the decoder blocks; never
    the embeddings and never the output head.
    """
    prefix = _blocks_prefix(model)
    features: dict[str, int] = {}
    for name, module in model.named_modules():
        if not name.startswith(prefix):
            continue
        if isinstance(module, nn.Linear):
            features[name] = module.in_features
        elif isinstance(module, Conv1D):
            features[name] = module.nx
    return features


def expected_linears(config: PreTrainedConfig) -> dict[str, int]:
    """Map the quantizable layers of a config's unquantized model to their input features.

    Costs no memory for weights, so a quantized model can be compared with what it had to be.
    """
    close_known_holes(config)
    with torch.device("meta"):
        return linear_in_features(AutoModelForCausalLM.from_config(config))


def expected_outputs(config: PreTrainedConfig) -> dict[str, int]:
    """Map the quantizable layers of a config's unquantized model to their output features."""
    close_known_holes(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = {name: model.get_submodule(name) for name in linear_in_features(model)}
    return {
        name: layer.nf if isinstance(layer, Conv1D) else layer.out_features
        for name, layer in layers.items()
    }


def stated_positions(config: PreTrainedConfig) -> int | None:
    """Say for how many tokens the config says that the model is made; None where it does not.

    Asked as an attribute: configs of GPT-2's age store the number under a name of their own, which
    transformers maps to this one; MPT's it does not.
    """
    text = config.get_text_config()
    stated: int | None = getattr(text, "max_position_embeddings", None)
    return getattr(text, "max_seq_len", None) if stated is None else stated


def position_limit(config: PreTrainedConfig) -> int | None:
    """Say how many tokens the architecture can tell apart; None where nothing limits them."""
    text, limit = config.get_text_config(), stated_positions(config)
    # A Falcon has the number also where it tells places apart by distance alone.
    if limit is None or getattr(text, "alibi", False):
        return None
    return int(limit * _stretch(getattr(text, "rope_parameters", None) or {}, limit))


def _stretch(ropes: Mapping[str, object], limit: int) -> float:
    """Say how many times the number is reached by rotary positions that it does not count.

    Qwen asks for a `factor` to be written beside it; Llama 3.1 has counted its own already.
    """
    nested = [each for each in ropes.values() if isinstance(each, Mapping)]  # by kinds of layers
    if nested:
        return min(_stretch(each, limit) for each in nested)
    factor, original = ropes.get("factor"), ropes.get("original_max_position_embeddings", limit)
    return float(factor) if isinstance(factor, int | float) and original == limit else 1.0


def embedded_tokens(model: PreTrainedModel) -> int:
    """Count the tokens that a model embeds, also where an adapter's layer is around them."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Find the decoder blocks, in their order."""
    blocks: nn.ModuleList = model.get_submodule(_blocks_prefix(model).removesuffix("."))
    return blocks


def _blocks_prefix(model: PreTrainedModel) -> str:
    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return f"{name}."
    msg = f"{type(model).__name__} has no list of {count} decoder blocks"
    raise ValueError(msg)
