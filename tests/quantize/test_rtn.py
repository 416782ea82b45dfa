"""Round to nearest: what any reader of GPTQ's format finds is our own rounding."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from modelmill.conduct.base_model import shape_in
from modelmill.models.families import expected_linears
from modelmill.models.gptq import open_unpacked
from modelmill.models.open import open_config, open_model, open_tokenizer
from modelmill.models.prompt import encode_row, load_contract
from modelmill.spec.errors import SpecError
from modelmill.spec.memory import quantized_bytes
from modelmill.spec.records import Row
from modelmill.store.sources import look_local

from ..tiny_stages import Family, RecordingPulse
from .plain import GROUP, rounded
from .running import FILES, ModelOf, gptq, quantize, rtn

pytestmark = pytest.mark.filterwarnings("ignore")  # the engine's own


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
def test_weights_are_the_nearest_on_the_grid(
    bits: int, sym: bool, model_of: ModelOf, tmp_path: Path
) -> None:
    """Unpacked, every weight is what a few lines of our own make of it, to the bit."""
    pulse = RecordingPulse()
    figures = quantize(rtn(bits, sym=sym), model_of("llama"), tmp_path, tmp_path / "out", pulse)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"quantize_config.json"}
    assert (figures.method, figures.bits, figures.group_size) == ("rtn", bits, GROUP)
    assert (figures.calibration_tokens, pulse.warnings) == (0, [])
    told = quantized_bytes(shape_in(look_local(model_of("llama"))), rtn(bits), GROUP)
    assert figures.size_bytes == pytest.approx(told, rel=0.1)
    plain = AutoModelForCausalLM.from_pretrained(model_of("llama"), dtype=torch.float32)
    found = open_unpacked(tmp_path / "out", bits=bits, dtype=torch.float32)
    for name in expected_linears(open_config(model_of("llama"))):
        expected = rounded(plain.get_submodule(name).weight.detach(), bits, sym=sym)
        assert torch.equal(found.get_submodule(name).weight, expected), name


@pytest.mark.parametrize("family", ["bloom", "falcon", "falcon-rw"])
def test_every_family_is_rounded(family: Family, model_of: ModelOf, tmp_path: Path) -> None:
    """Layers of other classes and names are found too."""
    figures = quantize(rtn(4), model_of(family), tmp_path, tmp_path / "out")
    assert figures.modules == 8
    plain = AutoModelForCausalLM.from_pretrained(model_of(family), dtype=torch.float32)
    found = open_unpacked(tmp_path / "out", bits=4, dtype=torch.float32)
    for name in expected_linears(open_config(model_of(family))):
        expected = rounded(plain.get_submodule(name).weight.detach(), 4, sym=True)
        assert torch.equal(found.get_submodule(name).weight, expected), name


def test_rounding_twice_gives_the_same_bytes(model_of: ModelOf, tmp_path: Path) -> None:
    """Equal models are equal files."""
    for name in ("one", "two"):
        quantize(rtn(4), model_of("llama"), tmp_path, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_group_size_is_refused_before_the_engine_runs(model_of: ModelOf, tmp_path: Path) -> None:
    """The rule is GPTQ's: a width of 64 cannot be cut into groups of 128."""
    with pytest.raises(SpecError, match=r"128 does not divide .*\(64\)"):
        quantize(rtn(4, group_size=128), model_of("llama"), tmp_path, tmp_path / "out")


def lost(model: nn.Module, plain: nn.Module, name: str, seen: torch.Tensor) -> float:
    """Measure how much of a layer's output is lost on what it sees in the plain model."""
    weight = plain.get_submodule(name).weight
    change = seen @ (model.get_submodule(name).weight - weight).T
    return float(change.norm() / (seen @ weight.T).norm())


@pytest.mark.parametrize("bits", [4, 3])
def test_gptq_loses_less_on_what_it_was_calibrated_on(
    bits: int, model_of: ModelOf, data: Path, tmp_path: Path
) -> None:
    """Looking at data pays: on the training rows a first layer loses less of its output."""
    spec = gptq(bits, calibration={"tokens": 4000})
    quantize(spec, model_of("llama"), data, tmp_path / "gptq")
    quantize(rtn(bits), model_of("llama"), tmp_path, tmp_path / "rtn")
    plain = open_model(model_of("llama"), dtype=torch.float32, device=torch.device("cpu"))
    tokenizer, contract = open_tokenizer(tmp_path / "rtn"), load_contract(tmp_path / "rtn")
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [encode_row(contract, tokenizer, Row.model_validate_json(line)) for line in lines]
    seen: list[torch.Tensor] = []
    first = "model.layers.0.self_attn.q_proj"
    plain.get_submodule(first).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.inference_mode():
        for row in rows:
            plain(torch.tensor([row.input_ids]))
        inputs = torch.cat(seen)
        by_gptq, by_rtn = (
            lost(
                open_unpacked(tmp_path / name, bits=bits, dtype=torch.float32),
                plain,
                first,
                inputs,
            )
            for name in ("gptq", "rtn")
        )
    assert by_gptq < 0.95 * by_rtn
