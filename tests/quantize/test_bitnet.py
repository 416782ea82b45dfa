"""BitNet: files hold absmean's three values, and answer as transformers answers from them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CodeGenConfig,
    GemmaConfig,
    GPT2Config,
    OPTConfig,
    PreTrainedConfig,
)
from transformers.integrations.bitnet import unpack_weights

from modelmill.conduct.base_model import shape_in
from modelmill.models.bitnet import absmean, check_files, pack, ternary, unpack
from modelmill.models.families import expected_linears
from modelmill.models.open import open_config, open_model
from modelmill.models.skeleton import open_skeleton
from modelmill.spec.errors import DataError, SpecError
from modelmill.spec.memory import quantized_bytes
from modelmill.spec.quantize import BitnetSpec
from modelmill.stages.infer.opened import open_any
from modelmill.store.sources import look_local

from ..tiny_stages import RecordingPulse, make_model, make_tokenizer
from .plain import by_mean
from .running import FILES, ModelOf, quantize

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own

CPU = torch.device("cpu")
SPEC = BitnetSpec(method="bitnet")
IDS = torch.arange(20, 60).reshape(2, 20)

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHERS: dict[str, Callable[[int], PreTrainedConfig]] = {
    "opt": lambda size: OPTConfig(
        vocab_size=size, ffn_dim=128, word_embed_proj_dim=64, init_std=0.2, **SMALL
    ),
    "codegen": lambda size: CodeGenConfig(
        vocab_size=size, n_embd=64, n_layer=2, n_head=4, rotary_dim=8, initializer_range=0.2
    ),
    "gemma": lambda size: GemmaConfig(
        vocab_size=size,
        intermediate_size=128,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.2,
        **SMALL,
    ),
    "gpt2": lambda size: GPT2Config(vocab_size=size, n_embd=64, n_layer=2, n_head=4),
}


def make(family: str, folder: Path) -> Path:
    """Write a random model with biases that are not zero, as those of trained ones."""
    if family in OTHERS:
        tokenizer = make_tokenizer()
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(OTHERS[family](len(tokenizer)))
        tokenizer.save_pretrained(folder)
    else:
        make_model(family, folder)  # type: ignore[arg-type]
        model = AutoModelForCausalLM.from_pretrained(folder)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data.normal_(std=0.3)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def meant(original: Path) -> nn.Module:
    """Make the plain model that the files must mean, in plain arithmetic."""
    model = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    for name in expected_linears(open_config(original)):
        layer = model.get_submodule(name)
        layer.weight.data = by_mean(layer.weight.detach().double()).float()
    return model.eval()


def round_inputs(model: nn.Module, layers: dict[str, int]) -> None:
    """Let layers see what flows into them in 255 steps for each token."""

    def rounded(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        scale = 127 / args[0].abs().amax(-1, keepdim=True)
        return ((args[0] * scale).round() / scale, *args[1:])

    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(rounded)


def answers(model: nn.Module) -> torch.Tensor:
    """Compute logits."""
    with torch.inference_mode():
        logits: torch.Tensor = model(IDS).logits
    return logits.float()


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Compare, relative to what is expected."""
    return float((found - expected).norm() / expected.norm())


def of_most_tokens(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Compare token by token, and take the middle one."""
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median())


@pytest.mark.parametrize(
    "family", ["llama", "bloom", "falcon", "falcon-rw", "opt", "codegen", "gemma"]
)
def test_model_answers_as_three_values_and_eight_bits_mean(family: str, tmp_path: Path) -> None:
    """The plain model of absmean's weights answers alike if what flows in is rounded too.

    Without that the two differ by the rounding: 127 steps up to the largest feature of a token.
    With it only tokens differ of which a feature lies between two steps, where the order of adding
    decides.
    """
    model = make(family, tmp_path / "model")
    quantize(SPEC, model, tmp_path, tmp_path / "out")
    opened = open_any(tmp_path / "out", torch.float32, CPU)
    assert (opened.method, opened.bits) == ("bitnet", 2)
    assert "activations in 8 bits" in opened.engine
    plain = meant(model)
    found = answers(opened.model)
    assert 1e-3 < of_most_tokens(found, answers(plain)) < 0.03
    round_inputs(plain, expected_linears(open_config(model)))
    assert of_most_tokens(found, answers(plain)) < 1e-5


@pytest.mark.parametrize("family", ["llama", "falcon-rw", "opt"])
def test_transformers_answers_the_same_from_its_own_layers(family: str, tmp_path: Path) -> None:
    """What infer judges is what a user of transformers gets: scale, bias and rounding."""
    quantize(SPEC, make(family, tmp_path / "model"), tmp_path, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.compiler.set_stance("force_eager"):
        expected = answers(theirs)
    opened = open_any(tmp_path / "out", torch.float32, CPU)
    assert of_most_tokens(answers(opened.model), expected) < 1e-5


def test_autobitlinear_would_scale_wrongly(tmp_path: Path) -> None:
    """Negative control: the class is part of the format, and the other one means another scale."""
    quantize(SPEC, make("llama", tmp_path / "model"), tmp_path, tmp_path / "out")
    expected = answers(open_any(tmp_path / "out", torch.float32, CPU).model)
    change_config(tmp_path / "out", linear_class="autobitlinear")
    with torch.compiler.set_stance("force_eager"):
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert distance(answers(theirs), expected) > 0.5
    with pytest.raises(DataError, match="linear_class is bitlinear"):
        open_any(tmp_path / "out", torch.float32, CPU)


PLAIN_TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM
from transformers.integrations.bitnet import BitLinear
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.compiler.set_stance("force_eager"), torch.inference_mode():
    torch.save(model(torch.arange(20, 60).reshape(2, 20)).logits, sys.argv[2])
print(sum(isinstance(each, BitLinear) for each in model.modules()))
"""


def test_falcon_is_read_by_a_process_without_modelmill(tmp_path: Path) -> None:
    """Elsewhere transformers overlooks the class of its own that Falcon has for layers."""
    figures = quantize(SPEC, make("falcon", tmp_path / "model"), tmp_path, tmp_path / "out")
    read = subprocess.run(
        [sys.executable, "-c", PLAIN_TRANSFORMERS, str(tmp_path / "out"), str(tmp_path / "logits")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(read.stdout) == figures.modules == 8
    opened = open_any(tmp_path / "out", torch.float32, CPU)
    assert of_most_tokens(answers(opened.model), torch.load(tmp_path / "logits")) < 1e-5


def test_files_hold_three_values_and_what_belongs_to_the_model(
    model_of: ModelOf, tmp_path: Path
) -> None:
    """A byte holds four outputs a quarter of the rows apart; the rest is there in 16 bits."""
    pulse = RecordingPulse()
    figures = quantize(SPEC, model_of("llama"), tmp_path, tmp_path / "out", pulse)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert (figures.method, figures.bits, figures.modules) == ("bitnet", 2, 14)
    assert (figures.group_size, figures.calibration_tokens) == (None, 0)
    assert len(pulse.warnings) == 1
    assert "demonstration" in pulse.warnings[0]
    stored = load_file(tmp_path / "out/model.safetensors")
    original = load_file(model_of("llama") / "model.safetensors")
    layers = expected_linears(open_config(model_of("llama")))
    for name in layers:
        weight = original[f"{name}.weight"].float().numpy()
        values = np.clip(np.round(weight / np.abs(weight).astype(float).mean()), -1, 1)
        packed = stored[f"{name}.weight"].numpy()
        for row, expected in enumerate(values):
            quarter, place = divmod(row, len(packed))
            assert ((packed[place] >> (2 * quarter) & 3) - 1.0 == expected).all(), name
        scale = stored[f"{name}.weight_scale"].item()
        assert scale == pytest.approx(1 / np.abs(weight).mean(), rel=1e-6)
    rest = {name for name in original if name.removesuffix(".weight") not in layers}
    assert all(torch.equal(stored[name], original[name]) for name in rest)
    told = quantized_bytes(shape_in(look_local(model_of("llama"))), SPEC, 0)
    assert sum(each.nbytes for each in stored.values()) == told


def test_config_says_what_readers_need_and_no_more(model_of: ModelOf, tmp_path: Path) -> None:
    """The head stays as it is; no path of this machine is left."""
    quantize(SPEC, model_of("llama"), tmp_path, tmp_path / "out")
    text = (tmp_path / "out/config.json").read_text()
    config = json.loads(text)
    assert config["dtype"] == "bfloat16"
    assert config["quantization_config"] == {
        "quant_method": "bitnet",
        "linear_class": "bitlinear",
        "quantization_mode": "offline",
        "modules_to_not_convert": ["lm_head"],
    }
    assert str(model_of("llama")) not in text


def test_quantizing_twice_gives_the_same_bytes(model_of: ModelOf, tmp_path: Path) -> None:
    """Equal models are equal files, however many threads there are."""
    threads = torch.get_num_threads()
    for number in (1, 2):
        torch.set_num_threads(number)
        quantize(SPEC, model_of("falcon-rw"), tmp_path, tmp_path / str(number))
    torch.set_num_threads(threads)
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes(), path.name


def test_sixteen_bits_answer_nearly_alike(model_of: ModelOf, tmp_path: Path) -> None:
    """In bfloat16 sums are rounded, and nothing else is."""
    quantize(SPEC, model_of("llama"), tmp_path, tmp_path / "out")
    exact = answers(open_any(tmp_path / "out", torch.float32, CPU).model)
    assert distance(answers(open_any(tmp_path / "out", torch.bfloat16, CPU).model), exact) < 0.05


def test_layers_of_gpt2_are_refused(tmp_path: Path) -> None:
    """Only nn.Linear is replaced on opening: gpt2 would be without one ternary layer."""
    model = make("gpt2", tmp_path / "model")
    with pytest.raises(SpecError, match="Conv1D"):
        quantize(SPEC, model, tmp_path, tmp_path / "out")


def test_outputs_that_four_does_not_divide_are_refused(tmp_path: Path) -> None:
    """The layer is named, before anything is written."""
    model = make_model("llama", tmp_path / "model", intermediate_size=66)
    with pytest.raises(SpecError, match=r"mlp\.gate_proj \(66\)"):
        quantize(SPEC, model, tmp_path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("left_out", ["weight_scale", "weight"])
def test_missing_tensor_is_noticed_when_opened(
    left_out: str, model_of: ModelOf, tmp_path: Path
) -> None:
    """Negative control: a layer without its scale or its values does not open."""
    quantize(SPEC, model_of("llama"), tmp_path, tmp_path / "out")
    path = tmp_path / "out/model.safetensors"
    tensors = load_file(path)
    del tensors[f"model.layers.1.mlp.up_proj.{left_out}"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(DataError, match="do not match its config"):
        open_model(tmp_path / "out", dtype=torch.float32, device=CPU)


def test_value_that_is_none_of_three_is_noticed_in_the_files(
    model_of: ModelOf, tmp_path: Path
) -> None:
    """Negative control: two bits can say a fourth value, and a layer may not be packed at all."""
    quantize(SPEC, model_of("llama"), tmp_path, tmp_path / "out")
    path, name = tmp_path / "out/model.safetensors", "model.layers.1.mlp.up_proj.weight"
    tensors, skeleton = load_file(path), open_skeleton(model_of("llama"))
    assert check_files(tmp_path / "out", skeleton) == 14
    tensors[name][3, 5] = 0b01_11_00_10
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"layers\.1\.mlp\.up_proj holds something else"):
        check_files(tmp_path / "out", skeleton)
    tensors[name] = torch.zeros(192, 64)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(DataError, match="do not match its config"):
        check_files(tmp_path / "out", skeleton)


def change_config(folder: Path, **changes: object) -> None:
    """Let a checkpoint say something else of its layers."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


VALUES = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**32 - 1)).map(
    lambda drawn: torch.randint(
        -1,
        2,
        (4 * drawn[0], drawn[1]),
        generator=torch.Generator().manual_seed(drawn[2]),
        dtype=torch.int8,
    )
)


@given(VALUES)
def test_values_come_back_from_their_bytes(values: torch.Tensor) -> None:
    """Packing loses nothing, and transformers unpacks the same."""
    packed = pack(values)
    assert packed.dtype == torch.uint8
    assert packed.shape == (len(values) // 4, values.shape[1])
    assert torch.equal(unpack(packed), values)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(unpack_weights(packed, torch.float32), values.float())


@given(VALUES, st.floats(2.0**-14, 2.0**10))
def test_weights_on_a_grid_keep_their_signs(values: torch.Tensor, size: float) -> None:
    """What is -1, 0 and 1 times something is rounded to these, however large or few they are."""
    assert torch.equal(ternary(values * size), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_rounded_by_their_mean(dtype: torch.dtype) -> None:
    """As plain arithmetic computes it; zeros are no division by zero."""
    weight = torch.randn(1200, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = by_mean(weight.double())
    assert torch.allclose(ternary(weight) * absmean(weight), expected.float(), rtol=1e-6)
    assert not ternary(torch.zeros(4, 4)).any()
