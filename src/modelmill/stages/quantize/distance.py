"""How far some layers of what was written lie from the layers that they stand for.

Read back by a reading of our own (`models/gptq.py`) and not by the engine that wrote them, which
would read what it packs wrongly in the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from transformers.pytorch_utils import Conv1D

from modelmill.models.families import linear_in_features
from modelmill.models.gptq import PACKED, PackedLayer
from modelmill.models.grid import Grid
from modelmill.models.shards import open_tensors
from modelmill.models.skeleton import NotStreamable, open_skeleton, stored_names
from modelmill.spec.errors import DataError

LAYERS: Final = 8
"""Spread over the model, the first and the last among them: a 7 B layer takes half a second."""

AS_ROUNDED: Final = 3.0
"""Times as far as rounding each weight to the nearest would be.  GPTQ and AutoRound change weights
0.8 to 1.4 times as much; with a zero point that is one off it is 3.5 times."""

FARTHEST: Final = 1.2
"""As a share of the weights' norm: none at all are 1.0 away, and those of another layer 1.4."""

EXACT: Final = 0.001
"""What is on the grid already is only rounded to the scale's 16 bits."""


@dataclass(frozen=True)
class Distance:
    """How far what was written of a layer lies from the layer."""

    changed_by: float
    """Share of the weights' norm, without the inputs that are zeroed."""
    zeroed: float
    """Share of the inputs all of whose weights are zero, and were not."""


def distances(
    source: Path, output: Path, grid: Grid, *, may_zero: bool = False
) -> Mapping[str, Distance]:
    """Measure by which share of its norm each of some layers was changed.

    Empty where the source stores its layers in another form than the model has them.

    Args:
        source: the model that was quantized.
        output: the same in GPTQ's format v1.
        grid: its bits and group size.
        may_zero: whether the method zeroes inputs that were zero for all it calibrated on, as
            GPTQ does.  They are many behind a ReLU: 32 of 192 in a random opt, on 512 tokens.

    Raises:
        DataError: a layer does not mean what it stands for.
    """
    model = open_skeleton(source)
    with open_tensors(source) as plain, open_tensors(output) as packed:
        try:
            names = stored_names(model, plain.tensors, str(source))
        except NotStreamable:
            return {}
        found: dict[str, Distance] = {}
        wrong: dict[str, float] = {}
        for layer in _spread(list(linear_in_features(model))):
            parts = PackedLayer(*(packed.read(f"{layer}.{part}") for part in PACKED))
            weight = plain.read(names[f"{layer}.weight"]).float()
            if isinstance(model.get_submodule(layer), Conv1D):
                weight = weight.T
            read = parts.weight(grid.bits).T
            zeroed = (read == 0).all(0) & (weight != 0).any(0) & may_zero
            read, rounded = read[:, ~zeroed], grid.rounded(weight)[:, ~zeroed]
            weight = weight[:, ~zeroed]
            found[layer] = Distance(_distance(read, weight), float(zeroed.float().mean()))
            bound = min(FARTHEST, max(EXACT, AS_ROUNDED * _distance(rounded, weight)))
            if zeroed.all():  # then nothing is left to be compared
                wrong[layer] = 1.0
            elif found[layer].changed_by > bound:
                wrong[layer] = found[layer].changed_by
    if wrong:
        raise DataError(
            f"{', '.join(wrong)}: what was written does not mean the weights it stands for "
            f"(changed by {max(wrong.values()):.0%} of their norm)",
            at=str(output),
            fix="quantize again, with more bits or another method; if it stays, report it",
        )
    return found


def _distance(changed: torch.Tensor, weight: torch.Tensor) -> float:
    """Compare in float32 [out_features, in_features]; an infinite scale is infinitely far."""
    if torch.equal(changed, weight):
        return 0.0  # of a layer that was inserted with zeros, too
    return float(((changed - weight).norm() / weight.norm()).nan_to_num(nan=torch.inf))


def _spread(layers: list[str]) -> list[str]:
    last = len(layers) - 1
    places = {round(last * step / (LAYERS - 1)) for step in range(LAYERS)}
    return [layers[place] for place in sorted(places)]
