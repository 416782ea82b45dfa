import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MambaConfig, MixtralConfig, PreTrainedConfig

from modelmill.models.adapter import choose_targets, save_adapter
from modelmill.models.open import open_model, open_tokenizer
from modelmill.models.probe import load_probe, probe_logits, save_probe
from modelmill.models.prompt import (
    contract_for,
    encode_row,
    encode_text,
    load_contract,
    save_contract,
)
from modelmill.spec.closed import Dtype
from modelmill.spec.errors import DataError, InternalError
from modelmill.spec.figures import Merged
from modelmill.spec.finetune import FinetuneSpec
from modelmill.spec.run import MergeSpec
from modelmill.spec.settings import ContractSettings, MergeSettings
from modelmill.stages import merge
from modelmill.stages.merge.proof import Before, prove
from modelmill.stages.merge.streamed import Settle, Streaming
from modelmill.stages.stage import Folders, Outcome, Pulse

from ..tiny_stages import Family, RecordingPulse, make_rows, make_tokenizer
from .conftest import Tune, Tuned, settings_of

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own


def adapter_of(base: Path, folder: Path, scale: float = 0.1, targets: tuple[str, ...] = ()) -> Path:
    """Write what a fine-tune leaves, with a random adapter of some strength."""
    tokenizer = open_tokenizer(base)
    contract = contract_for(base, tokenizer, ContractSettings(max_length=64))
    model = open_model(base, dtype=torch.float32, device=CPU)
    targets = targets or choose_targets(model, FinetuneSpec())
    torch.manual_seed(3)
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=list(targets), task_type="CAUSAL_LM")
    )
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=scale)
    save_adapter(adapted, folder / "adapter")
    tokenizer.save_pretrained(folder / "tokenizer")
    save_contract(contract, folder)
    rows = make_rows(10, 4)
    save_probe([encode_row(contract, tokenizer, row) for row in rows], folder)
    return folder


def merge_into(
    base: Path,
    tuned: Path,
    output: Path,
    dtype: Dtype = "bfloat16",
    pulse: RecordingPulse | None = None,
) -> Merged:
    """Run the stage."""
    outcome = run_merge(base, tuned, output, dtype, pulse)
    assert isinstance(outcome.figures, Merged)
    return outcome.figures


def run_merge(
    base: Path,
    tuned: Path,
    output: Path,
    dtype: Dtype = "bfloat16",
    pulse: RecordingPulse | None = None,
) -> Outcome:
    """Run the stage, and tell how it went about it as well."""
    output.mkdir()
    return merge.run(
        MergeSettings(merge=MergeSpec(dtype=dtype), load_in=None),
        Folders(inputs={"model": base, "adapter": tuned}, output=output, resume=output),
        pulse or RecordingPulse(),
    )


@pytest.mark.parametrize("family", ["llama", "bloom", "falcon", "falcon-rw"])
def test_merge_proves_itself_for_every_family(
    family: Family, model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """The files written answer like the base with its adapter, in float32 to the last digits."""
    tuned = adapter_of(model_of(family), tmp_path / "tuned")
    figures = merge_into(model_of(family), tuned, tmp_path / "merged", "float32")
    assert figures.effect > 0.05
    assert figures.difference < 1e-4 < figures.bound == 0.01
    assert figures.prompts == 4
    assert figures.adapter_tensors == len(load_file(tuned / "adapter/adapter_model.safetensors"))


def test_merged_model_needs_nothing_else(
    tuned: Tuned, model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """Weights, tokenizer and contract are together, readable, and serve the contract's ids."""
    figures = merge_into(model_of("llama"), tuned.folder, tmp_path / "merged")
    merged = tmp_path / "merged"
    for path in merged.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert figures.size_bytes == (merged / "model.safetensors").stat().st_size
    config = json.loads((merged / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "_name_or_path" not in config
    contract = load_contract(merged)
    generation = json.loads((merged / "generation_config.json").read_text())
    assert generation["eos_token_id"] == list(contract.eos)
    tokenizer = open_tokenizer(merged)
    served = tokenizer.apply_chat_template(
        [{"role": "user", "content": "table t1\nsql: "}], return_dict=False
    )
    assert served == encode_text(contract, tokenizer, "table t1\nsql: ")


def test_merge_of_a_trained_adapter_keeps_its_effect(
    tuned: Tuned, model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """After real training, 16 bits lose at most a tenth of what was learned, and nobody warns."""
    pulse = RecordingPulse()
    figures = merge_into(model_of("llama"), tuned.folder, tmp_path / "merged", pulse=pulse)
    assert figures.difference < figures.bound == 0.1
    assert figures.noise_floor < figures.effect
    assert pulse.warnings == []


def test_corrupted_file_is_refused(
    tuned: Tuned, model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """A merged file with one layer of the base in it does not pass."""
    base, merged = model_of("llama"), tmp_path / "merged"
    merge_into(base, tuned.folder, merged)
    prompts = load_probe(tuned.folder)
    written = probe_logits(open_model(merged, dtype=torch.float32, device=CPU), prompts)
    without = probe_logits(open_model(base, dtype=torch.float32, device=CPU), prompts)
    before = Before(base=without, adapter=written, noise=0.001, dtype="bfloat16")
    assert prove(before, written).difference == 0
    tensors = load_file(merged / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = load_file(base / "model.safetensors")[name]
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
    corrupted = probe_logits(open_model(merged, dtype=torch.float32, device=CPU), prompts)
    with pytest.raises(InternalError, match="not the base with its adapter"):
        prove(before, corrupted)


def test_file_changed_between_writing_and_reading_is_refused(
    tuned: Tuned,
    model_of: Callable[[Family], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stage judges what is on the disk, not what it has in memory."""
    write = Streaming.write

    def write_and_corrupt(
        streaming: Streaming, folders: Folders, settle: Settle, pulse: Pulse
    ) -> None:
        write(streaming, folders, settle, pulse)
        path = folders.output / "model.safetensors"
        tensors = load_file(path)
        tensors["model.layers.1.self_attn.o_proj.weight"] *= 1.5
        save_file(tensors, path, metadata={"format": "pt"})

    monkeypatch.setattr(Streaming, "write", write_and_corrupt)
    with pytest.raises(InternalError, match="not the base with its adapter"):
        merge_into(model_of("llama"), tuned.folder, tmp_path / "merged")


def test_adapter_without_effect_is_refused(
    model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """An adapter that learned nothing ends in words, before anything is written."""
    tuned = adapter_of(model_of("llama"), tmp_path / "tuned", scale=0)
    with pytest.raises(DataError, match="no effect"):
        merge_into(model_of("llama"), tuned, tmp_path / "merged")
    assert list((tmp_path / "merged").iterdir()) == []


def test_adapter_too_weak_for_16_bits_warns(
    model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """What rounding swallows is said, with the floor it would have had to pass."""
    tuned = adapter_of(model_of("llama"), tmp_path / "tuned", scale=1e-4)
    pulse = RecordingPulse()
    figures = merge_into(model_of("llama"), tuned, tmp_path / "merged", pulse=pulse)
    assert figures.effect < figures.noise_floor
    assert len(pulse.warnings) == 1
    assert "stands out from rounding to bfloat16" in pulse.warnings[0]


@pytest.mark.parametrize("edit", ["added", "removed"])
def test_every_adapter_tensor_must_find_its_place(
    edit: str, model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """A tensor that PEFT would pass over in silence is refused by name."""
    tuned = adapter_of(model_of("llama"), tmp_path / "tuned")
    path = tuned / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    moved = tensors.pop(name)
    if edit == "added":
        tensors[name] = moved
        name = name.replace("layers.0", "layers.7")
        tensors[name] = moved.clone()
    save_file(tensors, path)
    with pytest.raises(DataError, match=name):
        merge_into(model_of("llama"), tuned, tmp_path / "merged")


def test_distance_to_the_quantized_training_base_is_reported(
    tune: Tune, model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """For QLoRA the merge is bounded on the original base and compared with the trained one."""
    tuned = tune(settings_of(load_in="nf4", num_train_epochs=1))
    (tmp_path / "merged").mkdir()
    outcome = merge.run(
        MergeSettings(merge=MergeSpec(), load_in="nf4"),
        Folders(
            inputs={"model": model_of("llama"), "adapter": tuned.folder},
            output=tmp_path / "merged",
            resume=tmp_path,
        ),
        RecordingPulse(),
    )
    assert isinstance(outcome.figures, Merged)
    assert outcome.figures.training_distance is not None
    assert outcome.figures.training_distance > outcome.figures.difference


def test_equal_adapters_merge_into_equal_bytes(
    tuned: Tuned, model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """The merge adds nothing of its own: no time, no path, no order."""
    for name in ("one", "two"):
        merge_into(model_of("llama"), tuned.folder, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_merge_tells_what_it_proved(model_of: Callable[[Family], Path], tmp_path: Path) -> None:
    """A line for every tensor says what was made of it, and the record that all are checked."""
    base = model_of("llama")
    tuned = adapter_of(base, tmp_path / "tuned")
    effective = run_merge(base, tuned, tmp_path / "merged").effective
    assert effective["merged"] == "tensor by tensor"
    assert effective["logits"] == "layer by layer"
    assert effective["tensors_checked"] == {"added": 14, "copied": 6}
    lines = (tmp_path / "merged" / "merge-proof.jsonl").read_text().splitlines()
    proofs = {proof["name"]: proof for proof in map(json.loads, lines)}
    assert proofs.keys() == load_file(tmp_path / "merged" / "model.safetensors").keys()
    for proof in proofs.values():
        assert (proof["change"] > 0) == (proof["made"] == "added")


def small_model(config: PreTrainedConfig, folder: Path) -> Path:
    """Write a random model of another family."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def fused_experts(folder: Path) -> tuple[Path, Path]:
    """Write a base that is stored in another form than it runs in, and an adapter for it."""
    config = MixtralConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    base = small_model(config, folder / "base")
    return base, adapter_of(base, folder / "tuned", targets=("q_proj",))


def test_fused_experts_are_merged_in_memory(tmp_path: Path) -> None:
    """What cannot be merged tensor by tensor is merged whole, and that is said."""
    base, tuned = fused_experts(tmp_path)
    effective = run_merge(base, tuned, tmp_path / "merged").effective
    assert effective["merged"] == effective["logits"] == "in memory"
    assert "experts" in str(effective["in_memory_because"])
    assert not (tmp_path / "merged" / "merge-proof.jsonl").exists()


def test_weights_around_an_adapter_are_merged_one_by_one_and_asked_in_memory(
    tmp_path: Path,
) -> None:
    """Where layers cannot answer one at a time, tensors are proved all the same."""
    config = MambaConfig(vocab_size=384, hidden_size=64, num_hidden_layers=1, state_size=4)
    base = small_model(config, tmp_path / "base")
    tuned = adapter_of(base, tmp_path / "tuned", targets=("in_proj",))
    effective = run_merge(base, tuned, tmp_path / "merged").effective
    assert effective["merged"] == "tensor by tensor"
    assert effective["logits"] == "in memory"
    assert "mixer holds weights around" in str(effective["in_memory_because"])
    assert (tmp_path / "merged" / "merge-proof.jsonl").exists()


@given(
    effect=st.floats(0.01, 2),
    wrong=st.floats(0, 2),
    noise=st.floats(0, 0.02),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_proof_allows_the_bound_or_what_rounding_does(
    effect: float, wrong: float, noise: float, dtype: Dtype
) -> None:
    """Nothing passes that differs by more than both the bound and twice the noise."""
    base = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    adapter = base + torch.tensor([[0.0, effect]])
    written = adapter + torch.tensor([[wrong, 0.0]])
    bound = 0.01 if dtype == "float32" else 0.1
    allowed = max(bound * effect, 2 * noise)
    # float32 in between: at the edges either answer is right.
    if min(abs(wrong - allowed), abs(effect - noise / bound)) < 1e-6:
        return
    before = Before(base, adapter, noise, dtype)
    if wrong < allowed:
        assert prove(before, written).is_weak == (effect < noise / bound)
    else:
        with pytest.raises(InternalError):
            prove(before, written)


def test_proof_refuses_logits_that_are_not_numbers() -> None:
    """A model that answers nan is not close to anything."""
    base, adapter = torch.zeros(1, 2) + 1, torch.zeros(1, 2)
    with pytest.raises(InternalError):
        prove(Before(base, adapter, 0.0, "float32"), adapter * float("nan"))
