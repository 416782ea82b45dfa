"""Groups without negative weights, whose zero point is 0: format v1 stores zero points less one."""

from pathlib import Path

import pytest
import torch
from gptqmodel import BACKEND, GPTQModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from modelmill.models.families import expected_linears
from modelmill.models.gptq import count_lowest_zeros, open_unpacked, unpack
from modelmill.models.open import open_config
from modelmill.spec.errors import DataError

from ..tiny_stages import make_model, make_rows, write_rows
from .running import autoround, quantize, rtn
from .test_rtn import rounded

pytestmark = pytest.mark.filterwarnings("ignore")  # the engine's own


def make_positive(folder: Path, **changes: bool) -> Path:
    """Write a llama in which every third output of every layer has no negative weight."""
    make_model("llama", folder, **changes)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            tensor[::3] = tensor[::3].abs()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def meant(model: Path, bits: int) -> PreTrainedModel:
    """Make the plain model of the rounded weights."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for name in expected_linears(open_config(model)):
        layer = plain.get_submodule(name)
        layer.weight.data = rounded(layer.weight.detach(), bits, sym=False)
    return plain.eval()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_point_of_0_is_read_right(bits: int, tmp_path: Path) -> None:
    """Ours, to the bit, and the engine's, to 16 bits, though the words beside it borrow."""
    model = make_positive(tmp_path / "model")
    quantize(rtn(bits, sym=False), model, tmp_path, tmp_path / "out")
    layers = expected_linears(open_config(model))
    assert count_lowest_zeros(tmp_path / "out", bits) >= len(layers)
    expected = meant(model, bits)
    found = open_unpacked(tmp_path / "out", bits=bits, dtype=torch.float32)
    for name in layers:
        assert torch.equal(found.get_submodule(name).weight, expected.get_submodule(name).weight), (
            name
        )
    # Its arithmetic would compile itself, which needs a compiler.
    with torch.compiler.set_stance("force_eager"):
        theirs = GPTQModel.load(
            str(tmp_path / "out"), backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=torch.bfloat16
        )
        for name in layers:
            weight = expected.get_submodule(name).weight
            read = theirs.model.get_submodule(name).dequantize_weight().T
            assert torch.allclose(read.float(), weight, rtol=0.01, atol=1e-4), name


def test_zero_point_of_0_borrows_from_the_next(tmp_path: Path) -> None:
    """Negative control: code by code, as auto-gptq reads, the one beside it is off by one."""
    quantize(rtn(4, sym=False), make_positive(tmp_path / "model"), tmp_path, tmp_path / "out")
    qzeros = load_file(tmp_path / "out/model.safetensors")["model.layers.0.self_attn.q_proj.qzeros"]
    stored = unpack(qzeros.T.contiguous(), 4).T
    alone = (stored + 1) % 16
    assert (alone[:, ::3] == 0).all()
    weight = load_file(tmp_path / "model/model.safetensors")[
        "model.layers.0.self_attn.q_proj.weight"
    ].float()
    low, high = weight.amin(1).clamp(max=0), weight.amax(1)
    zeros = torch.round(-low / ((high - low) / 15))
    wrong = (alone[0] != zeros).nonzero()[:, 0].tolist()
    assert wrong == [output for output in range(64) if output % 3 == 1 and output % 8]


@pytest.mark.parametrize("bits", [3, 4])
def test_zero_point_of_0_is_refused_for_auto_gptq(bits: int, tmp_path: Path) -> None:
    """A file that it would misread is not promised to it; with symmetric grids there is none."""
    model = make_positive(tmp_path / "model")
    spec = rtn(bits, sym=False, compat=["auto-gptq"])
    with pytest.raises(DataError, match="their zero point is 0"):
        quantize(spec, model, tmp_path, tmp_path / "out")
    quantize(rtn(bits, compat=["auto-gptq"]), model, tmp_path, tmp_path / "sym")


def test_zero_point_of_0_is_refused_of_autoround(tmp_path: Path) -> None:
    """Its packer writes 1 instead, by which whole groups would be a step off."""
    model = make_positive(tmp_path / "model")
    write_rows(make_rows(60, 1), tmp_path / "data/train.jsonl")
    with pytest.raises(DataError, match="AutoRound cannot write"):
        quantize(autoround(4, iters=2, sym=False), model, tmp_path / "data", tmp_path / "out")
