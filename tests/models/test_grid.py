"""The grid that weights are rounded to while they are learned."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from modelmill.models.families import linear_in_features
from modelmill.models.grid import Grid, OffGrid, keep_rounded, round_while_learning
from modelmill.models.open import open_model

from ..tiny_stages import Family, make_model

GROUP = 32
FLOATS = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-1, 1, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-38, 2.0**-24, 6e-8, 65504.0, -4e5, 3e38]),
)
WEIGHTS = st.lists(st.lists(FLOATS, min_size=GROUP, max_size=GROUP), min_size=1, max_size=3)
BITS = st.sampled_from([4, 8])


def tensor(rows: list[list[float]]) -> torch.Tensor:
    """Make a weight of rows."""
    return torch.tensor(rows, dtype=torch.float32)


@given(WEIGHTS, BITS)
@example([[0.0] * GROUP], 4)
@example([[3.0, -3.0, *[0.0] * 30]], 4)  # 3 is no code of the largest weight, but 6 would be
def test_rounded_weights_are_found_again_to_the_bit(rows: list[list[float]], bits: int) -> None:
    """From the weights alone, whatever they were: zeros, denormals, more than float16 holds."""
    grid = Grid(bits, GROUP)
    rounded = grid.rounded(tensor(rows))
    found = grid.codes(rounded)
    assert found.scales.dtype == torch.float16
    assert bool((found.scales > 0).all())
    assert -grid.half <= int(found.codes.min()) <= int(found.codes.max()) < grid.half
    assert torch.equal(found.scales.float() * found.codes.float(), rounded)


@given(st.lists(st.floats(-300, 300, width=32), min_size=GROUP, max_size=GROUP), BITS)
def test_no_weight_moves_further_than_half_a_step(row: list[float], bits: int) -> None:
    """Half a step of the group's scale, which float16 has rounded once."""
    grid = Grid(bits, GROUP)
    weight = tensor([row])
    moved = (grid.rounded(weight) - weight).abs().max().item()
    largest = weight.abs().max().item()
    step = largest / (grid.half - 0.5)
    coded = 0.5 * step * (1 + 2**-10) + grid.half * max(step * 2**-11, 2.0**-25)
    assert moved <= coded


@given(WEIGHTS, BITS, st.integers(0, GROUP - 1))
def test_weight_that_was_changed_is_noticed(rows: list[list[float]], bits: int, place: int) -> None:
    """Negative control: one weight a little off the grid, and there are no codes."""
    grid = Grid(bits, GROUP)
    changed = grid.rounded(tensor(rows))
    changed[0, 0] = 1.0
    changed[0, 1 + place % (GROUP - 1)] = math.pi / 10
    with pytest.raises(OffGrid, match=r"of \d groups"):
        grid.codes(changed)


def test_sixteen_bits_do_not_hold_rounded_weights() -> None:
    """Why float32 is written: a scale's 11 bits times 7 are no 11 bits any more."""
    grid = Grid(4, GROUP)
    rounded = grid.rounded(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)))
    for dtype in (torch.float16, torch.bfloat16):
        assert not torch.equal(rounded.to(dtype).float(), rounded)
        with pytest.raises(OffGrid):
            grid.codes(rounded.to(dtype).float())


@pytest.mark.parametrize("is_transposed", [False, True])
def test_gradient_passes_as_if_nothing_were_rounded(*, is_transposed: bool) -> None:
    """The layer computes with rounded weights; those behind them get the rounded ones' gradient."""
    torch.manual_seed(0)
    layer = Conv1D(16, 64) if is_transposed else nn.Linear(64, 16)
    model = nn.ModuleDict({"layer": layer})
    before = layer.weight.detach().clone()
    inputs = torch.randn(4, 64)
    grid = Grid(4, GROUP)
    round_while_learning(model, grid, ["layer"])
    layer(inputs).square().sum().backward()
    rounded = grid.rounded(before.T).T if is_transposed else grid.rounded(before)
    assert torch.equal(layer.weight, rounded)
    [behind] = [each for name, each in model.named_parameters() if name.endswith("original")]
    assert torch.equal(behind, before)
    plain = rounded.clone().requires_grad_()
    product = inputs @ (plain if is_transposed else plain.T) + layer.bias.detach()
    product.square().sum().backward()
    assert plain.grad is not None
    assert torch.allclose(behind.grad, plain.grad, rtol=1e-5)
    keep_rounded(model)
    assert type(layer) in (Conv1D, nn.Linear)
    assert torch.equal(layer.weight, rounded)


@pytest.mark.parametrize("family", ["llama", "falcon", "gpt2", "opt"])
def test_every_quantizable_layer_is_rounded_and_no_other_weight(
    family: Family, tmp_path: Path
) -> None:
    """Layers of other classes too; embeddings, norms and the output head stay as they are."""
    folder = make_model(family, tmp_path)
    model = open_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    layers = linear_in_features(model)
    round_while_learning(model, Grid(4, 64), layers)
    keep_rounded(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    changed = {name for name, each in before.items() if not torch.equal(after[name], each)}
    assert changed == {f"{layer}.weight" for layer in layers}
