import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BloomConfig,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MptConfig,
    PreTrainedConfig,
    Qwen2Config,
)
from transformers.models.falcon import modeling_falcon

from modelmill.models import open as opening
from modelmill.models.families import expected_linears, linear_in_features, position_limit
from modelmill.models.open import open_config, open_model
from modelmill.spec.errors import DataError

from ..tiny_stages import Family

CPU = torch.device("cpu")
FAMILIES: tuple[Family, ...] = get_args(Family)
LAYER = "model.layers.0.mlp.up_proj.weight"

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


@pytest.fixture
def change(
    model_of: Callable[[Family], Path], tmp_path: Path
) -> Callable[[Callable[[dict[str, torch.Tensor]], None]], Path]:
    """Give a function that copies the tiny llama with other tensors."""

    def changed(edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        folder = shutil.copytree(model_of("llama"), tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return changed


Change = Callable[[Callable[[dict[str, torch.Tensor]], None]], Path]


def test_missing_tensor_is_refused(change: Change) -> None:
    """No weight is ever left at its random initial value."""
    folder = change(lambda tensors: tensors.pop(LAYER))
    with pytest.raises(DataError, match=f"1 missing: {LAYER}"):
        open_model(folder, dtype=torch.float32, device=CPU)


def test_renamed_tensor_is_refused_under_both_names(change: Change) -> None:
    """What is missing and what was left over are both named."""
    folder = change(lambda tensors: tensors.update({"other.weight": tensors.pop(LAYER)}))
    with pytest.raises(DataError, match=f"{LAYER}.*does not have: other.weight"):
        open_model(folder, dtype=torch.float32, device=CPU)


def test_tensor_of_another_shape_is_refused(change: Change) -> None:
    """A checkpoint of another size is named, not partly read."""
    folder = change(lambda tensors: tensors.update({LAYER: torch.zeros(3, 3)}))
    with pytest.raises(DataError, match=f"another shape.*{LAYER}"):
        open_model(folder, dtype=torch.float32, device=CPU)


def test_tied_head_may_be_stored(change: Change) -> None:
    """A copy of the embeddings as output head is the same model."""
    folder = change(
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
        )
    )
    assert open_model(folder, dtype=torch.float32, device=CPU).num_parameters() > 0


def test_buffer_of_old_checkpoints_is_allowed(change: Change) -> None:
    """Stored rotary frequencies, which no current model reads, are no reason to refuse."""
    folder = change(
        lambda tensors: tensors.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
        )
    )
    assert open_model(folder, dtype=torch.float32, device=CPU).num_parameters() > 0


LAYERS = {
    **dict.fromkeys(("llama", "gemma", "qwen2", "mistral"), 2 * 7),
    **dict.fromkeys(("opt", "phi"), 2 * 6),
    "bloomz": 3 * 4,
}
"""Of the tiny models, by family; the others have two blocks of four."""


@pytest.mark.parametrize("family", FAMILIES)
def test_linears_are_those_of_the_blocks(
    family: Family, model_of: Callable[[Family], Path]
) -> None:
    """All layers of the blocks are found, with and without weights, never the head."""
    model = open_model(model_of(family), dtype=torch.float32, device=CPU)
    found = linear_in_features(model)
    assert len(found) == LAYERS.get(family, 8)
    assert not any("head" in name or "embed" in name for name in found)
    assert found == expected_linears(open_config(model_of(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_nf4_quantizes_every_linear(family: Family, model_of: Callable[[Family], Path]) -> None:
    """Each family's layers are quantized, Falcon's with the hole closed."""
    model = open_model(model_of(family), dtype=torch.float32, device=CPU, load_in="nf4")
    ids = torch.arange(2, 12)[None]
    plain = open_model(model_of(family), dtype=torch.float32, device=CPU)(ids).logits
    changed = (model(ids).logits - plain).norm() / plain.norm()
    assert 0.01 < float(changed) < 0.6


@pytest.fixture
def open_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give Falcon its own layer class back and take the cure away."""
    monkeypatch.setattr(modeling_falcon, "FalconLinear", type("FalconLinear", (nn.Linear,), {}))
    monkeypatch.setattr(opening, "close_known_holes", lambda _: None)


@pytest.mark.usefixtures("open_hole")
def test_falcon_without_the_cure_is_refused(model_of: Callable[[Family], Path]) -> None:
    """The guard notices by itself that nothing was quantized."""
    with pytest.raises(DataError, match="8 of 8 layers of the falcon model were not quantized"):
        open_model(model_of("falcon"), dtype=torch.float32, device=CPU, load_in="nf4")


def test_nf4_keeps_its_gradients_after_an_evaluation(
    model_of: Callable[[Family], Path],
) -> None:
    """A forward in evaluation mode takes no adapter's gradient away."""
    base = open_model(model_of("llama"), dtype=torch.float32, device=CPU, load_in="nf4")
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    ids = torch.arange(2, 12)[None]
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = [each.grad for each in model.parameters() if each.requires_grad]
    assert all(gradient is not None and gradient.any() for gradient in gradients)


def test_config_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    """What transformers does not know ends in words."""
    (tmp_path / "config.json").write_text('{"model_type": "surprise"}')
    with pytest.raises(DataError, match="config cannot be read"):
        open_model(tmp_path, dtype=torch.float32, device=CPU)


def test_model_that_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    """An encoder with a decoder has weights that no stage here would know what to do with."""
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(DataError, match="a t5 model does not write text on"):
        open_model(tmp_path, dtype=torch.float32, device=CPU)


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (GPT2Config(n_positions=256), 256),
        (FalconConfig(alibi=True), None),
        (FalconConfig(alibi=False), 2048),
        (BloomConfig(), None),
        (MptConfig(max_seq_len=256), 256),
        (Qwen2Config(max_position_embeddings=32768), 32768),
        (Qwen2Config(max_position_embeddings=32768, rope_parameters=YARN), 131072),
        (
            LlamaConfig(
                max_position_embeddings=131072,
                rope_parameters={
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "rope_theta": 5e5,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            ),
            131072,
        ),
    ],
    ids=["learned", "alibi", "rotary", "bloom", "mpt", "qwen", "stretched", "stretched already"],
)
def test_limit_is_what_the_positions_reach(config: PreTrainedConfig, limit: int | None) -> None:
    """As configs of each kind write it."""
    assert position_limit(config) == limit
