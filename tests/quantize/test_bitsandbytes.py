"""NF4, FP4 and int8: what was saved is what was quantized, and that is what the type says."""

import json
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from modelmill.conduct.base_model import shape_in
from modelmill.models.bitsandbytes import weight_of
from modelmill.models.open import open_model
from modelmill.models.weights import tensor_shapes
from modelmill.spec.errors import DataError
from modelmill.spec.memory import quantized_bytes
from modelmill.spec.quantize import BitsandbytesSpec
from modelmill.store.sources import look_local

from ..tiny_stages import Family
from .plain import FP4, NF4
from .running import FILES, ModelOf, quantize

pytestmark = pytest.mark.filterwarnings("ignore")  # the engine's own

CPU = torch.device("cpu")


def bitsandbytes(type_: str, **changes: object) -> BitsandbytesSpec:
    """Ask for a type."""
    asked = {"method": "bitsandbytes", "type": type_, **changes}
    return BitsandbytesSpec.model_validate(asked)


def layers_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Compute what every quantized layer means."""
    kinds = (Linear4bit, Linear8bitLt)
    return {
        name: weight_of(each) for name, each in model.named_modules() if isinstance(each, kinds)
    }


@pytest.mark.parametrize("type_", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("family", ["llama", "falcon", "bloom", "falcon-rw"])
def test_type_is_smaller_and_reads_back(
    type_: str, family: Family, model_of: ModelOf, tmp_path: Path
) -> None:
    """The saved weights are those that were quantized, in every layer."""
    spec = bitsandbytes(type_)
    figures = quantize(spec, model_of(family), tmp_path, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    original = (model_of(family) / "model.safetensors").stat().st_size
    assert figures.size_bytes < original
    assert figures.group_size is None
    assert figures.bits == (8 if type_ == "int8" else 4)
    saved = open_model(tmp_path / "out", dtype=torch.bfloat16, device=CPU)
    direct = open_model(model_of(family), dtype=torch.bfloat16, device=CPU, load_in=spec.hold_in)
    expected = layers_of(direct)
    found = layers_of(saved)
    assert len(expected) == figures.modules
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize(("type_", "book"), [("nf4", NF4), ("fp4", FP4)])
def test_four_bits_are_the_nearest_of_the_code_book(
    type_: str, book: list[float], model_of: ModelOf, tmp_path: Path
) -> None:
    """No entry of the code book is nearer to a weight than the one that was written."""
    spec = bitsandbytes(type_, double_quant=False)
    quantize(spec, model_of("llama"), tmp_path, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(model_of("llama"), dtype=torch.float32)
    saved = open_model(tmp_path / "out", dtype=torch.bfloat16, device=CPU)
    for name, weight in layers_of(saved).items():
        blocks = plain.get_submodule(name).weight.detach().reshape(-1, 64)
        largest = blocks.abs().amax(1, keepdim=True)
        places = blocks / largest
        nearest = (places[..., None] - torch.tensor(book)).abs().amin(-1)
        found = weight.reshape(-1, 64) / largest
        assert ((found - places).abs() < nearest + 0.001).all(), name


def test_int8_is_rounded_by_the_largest_weight_of_each_output(
    model_of: ModelOf, tmp_path: Path
) -> None:
    """Every weight is a whole number of its row's steps, and no other number is nearer."""
    quantize(bitsandbytes("int8"), model_of("llama"), tmp_path, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(model_of("llama"), dtype=torch.float32)
    saved = open_model(tmp_path / "out", dtype=torch.bfloat16, device=CPU)
    for name, weight in layers_of(saved).items():
        original = plain.get_submodule(name).weight.detach()
        step = original.abs().amax(1, keepdim=True) / 127
        steps = weight / step
        assert torch.allclose(steps, steps.round(), atol=1e-3), name
        assert ((weight - original).abs() < 0.501 * step).all(), name


@pytest.mark.parametrize("type_", ["nf4", "fp4"])
def test_scales_without_double_quantization_are_stored_wide(
    type_: str, model_of: ModelOf, tmp_path: Path
) -> None:
    """The scales of 64 weights take 32 bits instead of 8."""
    for double in (True, False):
        spec = bitsandbytes(type_, double_quant=double)
        quantize(spec, model_of("llama"), tmp_path, tmp_path / str(double))
        stored = load_file(tmp_path / str(double) / "model.safetensors")
        scales = stored["model.layers.0.mlp.up_proj.weight.absmax"]
        assert scales.dtype == (torch.uint8 if double else torch.float32)


def test_int8_size_is_foretold_to_the_byte(model_of: ModelOf, tmp_path: Path) -> None:
    """A byte for each weight, a scale for each output, and a byte that says how they lie."""
    figures = quantize(bitsandbytes("int8"), model_of("llama"), tmp_path, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == tensor_shapes(tmp_path / "out").keys()
    size_bytes = sum(each.nbytes for each in stored.values())
    told = quantized_bytes(shape_in(look_local(model_of("llama"))), bitsandbytes("int8"), 0)
    assert size_bytes - figures.modules == told


def test_type_that_the_config_does_not_say_is_refused(model_of: ModelOf, tmp_path: Path) -> None:
    """Negative control: int8 weights under a config that promises NF4 do not open."""
    quantize(bitsandbytes("int8"), model_of("llama"), tmp_path, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= {"load_in_8bit": False, "load_in_4bit": True}
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match="do not match its config"):
        open_model(tmp_path / "out", dtype=torch.bfloat16, device=CPU)


def test_int8_has_no_scales_of_blocks_to_quantize() -> None:
    """Asking for what int8 cannot do is refused in words."""
    with pytest.raises(ValidationError, match="int8 has no blocks"):
        bitsandbytes("int8", double_quant=False)
