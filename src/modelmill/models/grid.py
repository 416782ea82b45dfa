"""The symmetric grid of GPTQ's format v1: rounding to it while a model learns, and reading it back.

A weight is `scale * code`; the codes of `bits` bits lie around zero, and neighbours along the
inputs share a scale of 16 bits.  Knows weights as [outputs, inputs] and the layers that hold
them; must not know how codes are stored.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

_HIGHEST: Final = torch.finfo(torch.float16).max
_LOWEST: Final = torch.finfo(torch.float16).smallest_normal * torch.finfo(torch.float16).eps
"""Scales are float16, and never zero: they are divided by."""


class OffGrid(Exception):
    """Weights are not multiples of scales; somebody has changed or rounded them since."""


@dataclass(frozen=True)
class Codes:
    """Weights as the grid has them."""

    scales: torch.Tensor
    """float16 [outputs, groups]."""
    codes: torch.Tensor
    """int32 [outputs, inputs], around zero."""


@dataclass(frozen=True)
class Grid:
    """Which multiples of which scales weights may be."""

    bits: int
    group_size: int

    @property
    def half(self) -> int:
        """How many codes lie below zero; there is one less above it."""
        return 1 << (self.bits - 1)

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """Round weights to the nearest on the grid that reaches as far as they do.

        Products of a scale's 11 bits and a code's 8 are exact in float32, and only there.
        """
        groups = self._groups(weight)
        extent = torch.maximum(groups.amax(-1, keepdim=True), -groups.amin(-1, keepdim=True))
        # As round to nearest has it (`method: rtn`): half a step is cut off at the upper end.
        scales = extent / (self.half - 0.5)
        return self._nearest(groups, _storable(scales)).flatten(1)

    def codes(self, weight: torch.Tensor) -> Codes:
        """Find scales and codes that mean exactly these weights.

        Nobody has to keep the scales: the code of a group's largest weight is one of `half`, and
        what is found is multiplied out and compared.  It need not be the scale that was rounded
        with, because twice the scale with half of all codes means the same.

        Raises:
            OffGrid: there are none.
        """
        groups = self._groups(weight)
        flat = groups.flatten(0, 1)
        extents = flat.abs().amax(1, keepdim=True)
        scales = torch.full_like(extents, _LOWEST)
        left = extents.squeeze(1).nonzero().squeeze(1)
        for largest in range(self.half, 0, -1):
            if not len(left):
                break
            tried = _storable(extents[left] / largest)
            fits = (self._nearest(flat[left], tried) == flat[left]).all(1)
            scales[left[fits]] = tried[fits]
            left = left[~fits]
        if len(left):
            raise OffGrid(f"{len(left)} of {len(flat)} groups")
        scales = scales.view(*groups.shape[:2], 1)
        codes = (groups / scales).round_().to(torch.int32)
        return Codes(scales.squeeze(2).half(), codes.flatten(1))

    def _groups(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.unflatten(1, (-1, self.group_size))

    def _nearest(self, groups: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        codes = (groups / scales).round_().clamp_(-self.half, self.half - 1)
        return codes.mul_(scales)


def _storable(scales: torch.Tensor) -> torch.Tensor:
    """Give scales the values that the files can hold, before anything is divided by them."""
    return scales.clamp(_LOWEST, _HIGHEST).half().float()


def round_while_learning(model: nn.Module, grid: Grid, layers: Collection[str]) -> None:
    """Let layers compute with rounded weights; what is learned are the weights behind them."""
    for name in layers:
        layer = model.get_submodule(name)
        rounding = _Rounding(grid, is_transposed=isinstance(layer, Conv1D))
        parametrize.register_parametrization(layer, "weight", rounding)


def keep_rounded(model: nn.Module) -> None:
    """Put the rounded weights in the place of those behind them, and all others into 16 bits.

    What is not on the grid is stored as float16 by the format; rounded now, it is what the model
    is judged with before it is packed.
    """
    layers = [each for each in model.modules() if parametrize.is_parametrized(each, "weight")]
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    rounded = {layer.weight for layer in layers}
    for weight in model.parameters():
        if weight not in rounded:
            weight.data = weight.data.half().to(weight.dtype)


class _Rounding(nn.Module):
    """What stands between a layer's weight and its use."""

    def __init__(self, grid: Grid, *, is_transposed: bool) -> None:
        super().__init__()
        self.grid = grid
        self.is_transposed = is_transposed

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Round on the way forward."""
        rounded: torch.Tensor = _StraightThrough.apply(weight, self.grid, self.is_transposed)
        return rounded


class _StraightThrough(torch.autograd.Function):
    """Rounding whose gradient is that of doing nothing (Bengio et al., 2013).

    `weight + (rounded - weight).detach()` would round the sum: off the grid in the last bit.
    """

    @staticmethod
    def forward(_: object, weight: torch.Tensor, grid: Grid, is_transposed: bool) -> torch.Tensor:
        """Round a weight, stored as [outputs, inputs] or transposed."""
        return grid.rounded(weight.T).T.contiguous() if is_transposed else grid.rounded(weight)

    @staticmethod
    def backward(_: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Pass it on."""
        return gradient, None, None
