"""What was written in GPTQ's format, held against what it stands for."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelmill.models.grid import Grid
from modelmill.spec.errors import DataError
from modelmill.stages.quantize import run
from modelmill.stages.quantize.distance import distances
from modelmill.stages.stage import Folders

from ..tiny_stages import Family, RecordingPulse
from .running import ModelOf, gptq, quantize, rtn, settings_for

FOUR = Grid(4, 32)

pytestmark = pytest.mark.filterwarnings("ignore")  # the engine's own


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_distances_are_those_of_rounding_and_recorded(
    family: Family, model_of: ModelOf, tmp_path: Path
) -> None:
    """Of the first and the last layer too, also where weights are stored transposed."""
    (tmp_path / "out").mkdir()
    folders = Folders({"model": model_of(family)}, tmp_path / "out", tmp_path / "resume")
    recorded = run(settings_for(rtn(4, group_size=32)), folders, RecordingPulse()).effective[
        "changed_by"
    ]
    found = distances(model_of(family), tmp_path / "out", FOUR)
    assert recorded == {layer: round(each.changed_by, 4) for layer, each in found.items()}
    assert len(found) >= 4
    assert all(0.05 < each.changed_by < 0.2 for each in found.values())


def infinite(tensors: dict[str, torch.Tensor], layer: str) -> None:
    """Let one scale be beyond what float16 holds."""
    tensors[f"{layer}.scales"][0, 0] = torch.inf


def shifted(tensors: dict[str, torch.Tensor], layer: str) -> None:
    """Let each output have its neighbour's weights."""
    tensors[f"{layer}.qweight"] = tensors[f"{layer}.qweight"].roll(1, 1).contiguous()


def off_by_one(tensors: dict[str, torch.Tensor], layer: str) -> None:
    """Store zero points as they are, which another version of the format does."""
    tensors[f"{layer}.qzeros"] = tensors[f"{layer}.qzeros"] + 0x11111111


def ungrouped(tensors: dict[str, torch.Tensor], layer: str) -> None:
    """Let all inputs have the first group's scales."""
    tensors[f"{layer}.scales"][1:] *= 8


@pytest.mark.parametrize("damage", [infinite, shifted, off_by_one, ungrouped])
def test_layer_that_means_something_else_is_refused(
    damage: Callable[[dict[str, torch.Tensor], str], None], model_of: ModelOf, tmp_path: Path
) -> None:
    """By name; names and shapes of its tensors are right."""
    source, output = model_of("llama"), tmp_path / "out"
    quantize(rtn(4, group_size=32), source, tmp_path, output)
    layer = next(iter(distances(source, output, FOUR)))
    (path,) = output.glob("*.safetensors")
    tensors = load_file(path)
    damage(tensors, layer)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(DataError, match=layer):
        distances(source, output, FOUR)


def test_inputs_that_no_calibration_row_reaches_are_named_and_not_refused(
    model_of: ModelOf, data: Path, tmp_path: Path
) -> None:
    """GPTQ zeroes what a ReLU never lets through; rounding does not, and may not."""
    source, pulse = tmp_path / "source", RecordingPulse()
    shutil.copytree(model_of("opt"), source)
    (path,) = source.glob("*.safetensors")
    tensors = load_file(path)
    layers = "model.decoder.layers"
    tensors[f"{layers}.1.fc1.bias"][:96] = -1e4
    save_file(tensors, path, metadata={"format": "pt"})
    quantize(gptq(4, group_size=32), source, data, tmp_path / "gptq", pulse)
    [warning] = [each for each in pulse.warnings if "never reach" in each]
    assert f"of the inputs of {layers}.1.fc2" in warning
    found = distances(source, tmp_path / "gptq", FOUR, may_zero=True)
    assert 0.5 <= found[f"{layers}.1.fc2"].zeroed < 0.8
    assert next(iter(found.values())).zeroed == 0
    assert all(0.05 < each.changed_by < 0.2 for each in found.values())
    with pytest.raises(DataError, match=r"1\.fc2: "):
        distances(source, tmp_path / "gptq", FOUR)
    quantize(rtn(4, group_size=32), source, data, tmp_path / "rtn", pulse)
    assert distances(source, tmp_path / "rtn", FOUR)[f"{layers}.1.fc2"].zeroed == 0


def test_layer_that_was_lost_is_refused_also_where_inputs_may_be_zeroed(
    model_of: ModelOf, tmp_path: Path
) -> None:
    """Without any input nothing would be left to be compared, and nothing found wrong."""
    source, output = model_of("llama"), tmp_path / "out"
    quantize(rtn(4, group_size=32), source, tmp_path, output)
    layer = next(iter(distances(source, output, FOUR, may_zero=True)))
    (path,) = output.glob("*.safetensors")
    tensors = load_file(path)
    tensors[f"{layer}.scales"].zero_()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(DataError, match=layer):
        distances(source, output, FOUR, may_zero=True)


def test_layer_of_zeros_is_what_it_stands_for(model_of: ModelOf, tmp_path: Path) -> None:
    """Blocks are inserted with such layers, to be trained later."""
    source, output = tmp_path / "source", tmp_path / "out"
    shutil.copytree(model_of("llama"), source)
    (path,) = source.glob("*.safetensors")
    tensors = load_file(path)
    layer = "model.layers.1.mlp.down_proj"
    tensors[f"{layer}.weight"].zero_()
    save_file(tensors, path, metadata={"format": "pt"})
    quantize(rtn(4, group_size=32), source, tmp_path, output)
    assert distances(source, output, FOUR)[layer].changed_by == 0
