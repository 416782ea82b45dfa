"""bitsandbytes' layers of an opened model: the dtype they compute in, what they mean unpacked."""

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant, quantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from transformers import PreTrainedModel


def engine_name() -> str:
    """Name the library and its version."""
    return f"bitsandbytes {bitsandbytes.__version__}"


def compute_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let a model compute in a dtype, whichever it was saved with; in place.

    transformers keeps a checkpoint's own dtypes beside quantized weights, whatever is asked
    for.  LLM.int8 itself computes in float16 on a GPU, and gives the result in this dtype.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype
            module.compute_type_is_set = True
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def unpack(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace every quantized layer by the plain one it means, in place; before any forward.

    The 4-bit kernel for CPUs computes in bfloat16 whatever is asked for and repacks the
    weights; that for int8 rounds what flows in to 8 bits as well.
    """
    kinds = (Linear4bit, Linear8bitLt)
    layers = {name: each for name, each in model.named_modules() if isinstance(each, kinds)}
    for name, layer in layers.items():
        plain = nn.Linear(
            layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta"
        )
        plain.weight = nn.Parameter(weight_of(layer).to(dtype), requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain)
    compute_in(model, dtype)


def weight_of(layer: Linear4bit | Linear8bitLt) -> torch.Tensor:
    """Compute the weights a layer's codes and scales mean, in float32; before any forward."""
    weight: torch.Tensor
    if isinstance(layer, Linear8bitLt):
        weight = int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
        return weight
    state = layer.weight.quant_state
    saved_as, state.dtype = state.dtype, torch.float32
    weight = dequantize_4bit(layer.weight.data, state)
    state.dtype = saved_as
    return weight


def as_held(weight: torch.Tensor, load_in: str) -> torch.Tensor:
    """Compute what is left of a weight (out, in) while it is held in 4 bits, in float32.

    Args:
        weight: as stored.
        load_in: one of the 4-bit kinds.
    """
    codes, state = quantize_4bit(
        weight.float().contiguous(),
        compress_statistics=not load_in.endswith("-single"),
        quant_type=load_in.removesuffix("-single"),
    )
    held: torch.Tensor = dequantize_4bit(codes, state)
    return held
