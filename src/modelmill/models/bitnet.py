"""BitNet b1.58: a weight's three values, how files hold them, and the layers that answer.

Follows Ma et al. (2024) and transformers' `BitLinear`, without a line of either.  In files a
layer is `weight`, four outputs in a byte, and `weight_scale`, the number that its sums are
divided by: one over the mean absolute weight.  transformers' other class, `AutoBitLinear`,
multiplies by the same tensor, and the bias with it; so the class is part of the format.
"""

from pathlib import Path
from typing import Final

import torch
from pydantic import JsonValue
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.bitnet import BitLinear

from modelmill.models.families import linear_in_features
from modelmill.models.guard import check_loading
from modelmill.models.shards import open_tensors
from modelmill.spec.errors import DataError
from modelmill.spec.quantize import TERNARY_BITS
from modelmill.spec.ternary import ROWS_PER_BYTE

LINEAR_CLASS: Final = "bitlinear"

LEAST: Final = 1e-5
"""A mean or a peak below it counts as this, here as there: nothing is divided by zero."""

LARGEST_CODE: Final = 127
"""Of what flows into a layer."""

ROWS_AT_ONCE: Final = 1024
"""What is summed is in 64 bits meanwhile."""

_MASK: Final = (1 << TERNARY_BITS) - 1


def quantization_config(model: PreTrainedModel) -> dict[str, JsonValue]:
    """Say what a reader must know: the class of the layers, and which layers are not of it."""
    inside = linear_in_features(model)
    outside: list[JsonValue] = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in inside
    ]
    return {
        "quant_method": "bitnet",
        "linear_class": LINEAR_CLASS,
        "quantization_mode": "offline",
        "modules_to_not_convert": outside,
    }


def absmean(weight: torch.Tensor) -> float:
    """Compute the mean absolute weight, which no number of threads changes: in 64 bits."""
    rows = weight.split(ROWS_AT_ONCE)
    mean: float = sum(float(some.abs().sum(dtype=torch.float64)) for some in rows) / weight.numel()
    return max(mean, LEAST)


def ternary(weight: torch.Tensor) -> torch.Tensor:
    """Round a weight to -1, 0 and 1 times its mean absolute value (int8, in its shape)."""
    exact = weight.to(torch.float32, copy=True)
    return exact.div_(absmean(weight)).round_().clamp_(-1, 1).to(torch.int8)


def pack(values: torch.Tensor) -> torch.Tensor:
    """Put four rows of values into one of bytes: the first quarter of the rows lowest."""
    quarters = (values + 1).to(torch.uint8).reshape(ROWS_PER_BYTE, -1, *values.shape[1:])
    packed = torch.zeros_like(quarters[0])
    for place, quarter in enumerate(quarters):
        packed |= quarter << (TERNARY_BITS * place)
    return packed


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Spread bytes into the values they hold (int8)."""
    quarters = [(packed >> (TERNARY_BITS * place)) & _MASK for place in range(ROWS_PER_BYTE)]
    return torch.cat(quarters).to(torch.int8) - 1


def scale_name(weight: str) -> str:
    """Name the tensor beside a layer's weight that holds its scale."""
    return f"{weight}_scale"


def check_files(folder: Path, model: PreTrainedModel) -> int:
    """Count the ternary layers in a folder's files and refuse it if a tensor is amiss.

    Args:
        folder: safetensors.
        model: unquantized; only its names and shapes are looked at.

    Raises:
        DataError: a layer is not ternary, or a tensor is missing, left over or misshapen.
    """
    layers = linear_in_features(model)
    wanted = {name: tuple(each.shape) for name, each in model.state_dict().items()}
    for layer in layers:
        outputs, inputs = wanted[f"{layer}.weight"]
        wanted[f"{layer}.weight"] = (outputs // ROWS_PER_BYTE, inputs)
        wanted[scale_name(f"{layer}.weight")] = (1,)
    with open_tensors(folder) as source:
        found = source.tensors
        info: dict[str, set[object]] = {
            "missing_keys": {*(wanted.keys() - found.keys())},
            "unexpected_keys": {*(found.keys() - wanted.keys())},
            "mismatched_keys": {
                name for name in wanted.keys() & found.keys() if found[name].shape != wanted[name]
            },
        }
        check_loading(info, model, str(folder))
        for layer in layers:
            if not _is_ternary(source.read(f"{layer}.weight")):
                raise DataError(
                    f"{layer} holds something else than -1, 0 and 1",
                    at=str(folder),
                    fix="quantize the model again",
                )
    return len(layers)


def _is_ternary(packed: torch.Tensor) -> bool:
    return packed.dtype == torch.uint8 and bool((unpack(packed) <= 1).all())


def check_readable(config: PreTrainedConfig, at: str) -> None:
    """Refuse a checkpoint of BitNet's that means its tensors otherwise.

    Raises:
        DataError: its layers are of another class, or norm what flows in.
    """
    said = config.quantization_config
    if said.get("linear_class", LINEAR_CLASS) != LINEAR_CLASS or said.get("use_rms_norm"):
        raise DataError(
            "a BitNet checkpoint is opened if its linear_class is bitlinear, without a norm of "
            "its own; this one says otherwise",
            at=at,
        )


class UnpackedBitLinear(nn.Linear):
    """`BitLinear` with its weights unpacked once: it rounds what flows in to 8 bits, as that does.

    BitLinear itself unpacks at every pass, and is compiled at the first: that needs a compiler, and
    took minutes for a model of two blocks.
    """

    def __init__(self, packed: BitLinear, dtype: torch.dtype) -> None:
        """Take over what a layer holds."""
        super().__init__(packed.in_features, packed.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(unpack(packed.weight).to(dtype), requires_grad=False)
        self.divisor = packed.weight_scale.item()
        if packed.bias is not None:
            self.bias = nn.Parameter(packed.bias.to(dtype), requires_grad=False)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Round each token by its largest feature, multiply integers, and scale the sums."""
        exact = given.float()
        # In the order in which BitLinear does it: another rounds what lies between two steps apart.
        scale = LARGEST_CODE / exact.abs().amax(-1, keepdim=True).clamp(min=LEAST)
        codes = (exact * scale).round()
        sums = functional.linear(codes.to(self.weight.dtype), self.weight)
        scaled = sums.float() / (self.divisor * scale)
        return (scaled if self.bias is None else scaled + self.bias.float()).to(given.dtype)


def unpack_layers(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace every packed layer by an unpacked one, in place."""
    layers = {name: each for name, each in model.named_modules() if isinstance(each, BitLinear)}
    for name, layer in layers.items():
        model.set_submodule(name, UnpackedBitLinear(layer, dtype))
