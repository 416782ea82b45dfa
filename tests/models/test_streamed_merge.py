"""Bit for bit what PEFT makes of whole models, in the memory of a few tensors."""

import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CodeGenConfig,
    GPT2Config,
    OPTConfig,
    PreTrainedConfig,
)

from modelmill.models.adapter import save_adapter, untie_for
from modelmill.models.merging import open_merging
from modelmill.models.open import open_model, open_tokenizer
from modelmill.models.probe import built_in_probe, distance, norm, probe_logits
from modelmill.models.shards import Tensors, open_tensors
from modelmill.models.skeleton import NotStreamable
from modelmill.models.weights import save_weights
from modelmill.spec.closed import Dtype
from modelmill.spec.errors import DataError, InternalError
from modelmill.spec.finetune import LoadIn
from modelmill.spec.run import MergeSpec
from modelmill.spec.settings import MergeSettings
from modelmill.stages.merge.proof import prove
from modelmill.stages.merge.streamed import Compared, streaming
from modelmill.stages.merge.whole import answers_as_trained, merge_whole
from modelmill.stages.stage import Folders
from modelmill.store.tensors import TensorInfo

from ..tiny_stages import RecordingPulse, make_model, make_tokenizer

CPU = torch.device("cpu")
SMALL = {"n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1}
OTHERS: Mapping[str, Callable[[int], PreTrainedConfig]] = {
    "gpt2": lambda size: GPT2Config(vocab_size=size, n_positions=256, **SMALL),
    "codegen": lambda size: CodeGenConfig(
        vocab_size=size, n_positions=256, rotary_dim=8, tie_word_embeddings=False, **SMALL
    ),
    "opt": lambda size: OPTConfig(
        vocab_size=size,
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=64,
        max_position_embeddings=256,
    ),
}

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own


@dataclass(frozen=True)
class Case:
    """A base and an adapter of some kind."""

    family: str = "llama"
    adapter: Mapping[str, Any] = field(default_factory=dict)
    tied: bool = True
    base_dtype: torch.dtype = torch.bfloat16
    dtype: Dtype = "bfloat16"

    def __str__(self) -> str:
        kind = "-".join(f"{key}={value}" for key, value in self.adapter.items())
        tied = "" if self.tied else "-untied"
        return f"{self.family}{tied}-{kind}-{str(self.base_dtype)[6:]}-{self.dtype}"


CASES = (
    *(Case(family) for family in ("llama", "bloom", "falcon", "falcon-rw", *OTHERS)),
    Case(adapter={"use_rslora": True}, base_dtype=torch.float16, dtype="float16"),
    Case(
        adapter={"rank_pattern": {"q_proj": 2, "up_proj": 8}, "alpha_pattern": {"v_proj": 3}},
        base_dtype=torch.float32,
        dtype="float32",
    ),
    Case(adapter={"use_dora": True}),
    Case("gpt2", {"use_dora": True}, base_dtype=torch.float32),
    Case(adapter={"use_dora": True}, dtype="float32"),
    Case(adapter={"target_modules": ["q_proj", "embed_tokens"]}),
    Case(adapter={"target_modules": ["q_proj", "lm_head"]}),
    Case(adapter={"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, tied=False),
    Case(adapter={"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
    Case(adapter={"modules_to_save": ["lm_head"]}),
    Case(adapter={"modules_to_save": ["embed_tokens", "lm_head"]}, tied=False),
    Case(adapter={"modules_to_save": ["embed_tokens", "norm"]}),
    Case("falcon-rw", {"bias": "all"}),
    Case("falcon-rw", {"bias": "lora_only"}),
    Case("falcon-rw", {"lora_bias": True}),
)


@dataclass(frozen=True)
class Made:
    """Folders of a case."""

    base: Path
    adapter: Path
    merged: Path

    @property
    def folders(self) -> Folders:
        """Name what a stage would be given."""
        return Folders({"model": self.base}, self.merged, self.merged)


def make_base(case: Case, folder: Path) -> Path:
    """Write a tiny random model of any family."""
    if case.family in OTHERS:
        tokenizer = make_tokenizer()
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(OTHERS[case.family](len(tokenizer)))
        for weight in model.parameters():
            weight.data.add_(torch.randn_like(weight), alpha=0.05)
        tokenizer.save_pretrained(folder)
    else:
        make_model(case.family, folder, tie_word_embeddings=case.tied)  # type: ignore[arg-type]
        model = open_model(folder, dtype=torch.float32, device=CPU)
    model.to(case.base_dtype).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, changes: Mapping[str, Any]) -> Path:
    """Write an adapter whose every trained tensor is random."""
    model = open_model(base, dtype=torch.float32, device=CPU)
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": "all-linear", **changes})
    folder.mkdir()
    config.save_pretrained(folder)
    untie_for(model, folder)
    torch.manual_seed(3)
    adapted = get_peft_model(model, config)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data.add_(torch.randn_like(weight), alpha=0.05)
    save_adapter(adapted, folder)
    return folder


def make(case: Case, folder: Path) -> Made:
    """Write base and adapter."""
    base = make_base(case, folder / "base")
    adapter = make_adapter(base, folder / "adapter", case.adapter)
    (folder / "merged").mkdir()
    return Made(base, adapter, folder / "merged")


def stream(
    made: Made, dtype: Dtype = "bfloat16", load_in: LoadIn | None = None, onto: str = "original"
) -> Compared:
    """Merge and compare, tensor by tensor."""
    spec = MergeSpec.model_validate({"dtype": dtype, "onto": onto})
    settings = MergeSettings(merge=spec, load_in=load_in)
    prompts = built_in_probe(open_tokenizer(made.base))
    with streaming(made.base, made.adapter, settings) as merge:
        merge.write(made.folders, lambda _: None, RecordingPulse())
        return merge.compare(made.merged, prompts, load_in, RecordingPulse())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_streamed_merge_writes_the_bytes_of_a_merge_in_memory(case: Case, tmp_path: Path) -> None:
    """Every file equals what merge_and_unload in float32, one rounding and save_pretrained give."""
    made = make(case, tmp_path)
    compared = stream(made, case.dtype)
    prompts = built_in_probe(open_tokenizer(made.base))
    whole = merge_whole(made.base, made.adapter, case.dtype, prompts)
    (tmp_path / "whole").mkdir()
    whole.write(tmp_path / "whole", lambda _: None)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in made.merged.iterdir()}
    for name in names:
        assert (made.merged / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # And the adapter model's logits, a layer at a time, are those of the model in memory.
    size = norm(whole.before.adapter)
    assert distance(compared.before.adapter, whole.before.adapter) < 1e-5 * size
    written = probe_logits(open_model(made.merged, dtype=torch.float32, device=CPU), prompts)
    assert distance(compared.answers, written) < 1e-5 * size
    proof = prove(compared.before, compared.answers)
    assert proof.difference < proof.bound


def test_merge_in_shards_equals_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files are divided, and what the index says, are transformers' own as well."""
    made = make(Case(), tmp_path)
    monkeypatch.setattr("modelmill.models.layout.lay_out.__defaults__", (100_000,))
    monkeypatch.setattr("modelmill.models.weights.SHARD_SIZE", "100KB")
    stream(made)
    prompts = built_in_probe(open_tokenizer(made.base))
    whole = merge_whole(made.base, made.adapter, "bfloat16", prompts)
    (tmp_path / "whole").mkdir()
    whole.model.to(torch.bfloat16)
    save_weights(whole.model, tmp_path / "whole")
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(files) > 4
    assert files == {path.name: path.read_bytes() for path in made.merged.iterdir()}


def test_tensors_are_in_memory_one_at_a_time(tmp_path: Path) -> None:
    """However many tensors a base has, those of two layers at most are alive at once."""
    made = make(Case(), tmp_path)
    with open_tensors(made.base) as base, open_tensors(made.adapter) as adapter:
        counted = Counting(base)
        merging = open_merging(made.base, counted, made.adapter, adapter)
        for name in merging.origins:
            merging.merged(name)
        largest = max(info.end - info.start for info in base.tensors.values())
        assert counted.total_bytes > 4 * largest
        assert counted.most_bytes <= largest


class Counting:
    """Knows how many bytes of what was read are still alive."""

    def __init__(self, source: Tensors) -> None:
        self.source = source
        self.alive_bytes = self.most_bytes = self.total_bytes = 0

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Pass on what there is."""
        return self.source.tensors

    def read(self, name: str) -> torch.Tensor:
        """Read, and count until the storage is freed."""
        tensor = self.source.read(name)
        self._count(tensor.nbytes)
        self.total_bytes += tensor.nbytes
        weakref.finalize(tensor, self._count, -tensor.nbytes)
        return tensor

    def _count(self, change: int) -> None:
        self.alive_bytes += change
        self.most_bytes = max(self.most_bytes, self.alive_bytes)


def test_lora_on_a_tied_head_answers_like_the_adapter_model(tmp_path: Path) -> None:
    """What PEFT would add to a shared weight twice is written as two weights."""
    made = make(Case(adapter={"target_modules": ["q_proj", "lm_head"]}), tmp_path)
    compared = stream(made, "float32")
    config = json.loads((made.merged / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    tensors = load_file(made.merged / "model.safetensors")
    base = load_file(made.base / "model.safetensors")
    embedded = "model.embed_tokens.weight"
    assert torch.equal(tensors[embedded], base[embedded].float())
    assert not torch.equal(tensors["lm_head.weight"], tensors[embedded])
    assert prove(compared.before, compared.answers).difference < 1e-4


def test_vocabulary_of_the_adapter_is_taken_over(tmp_path: Path) -> None:
    """Rows that training has added come from the adapter, and the config counts them."""
    case = Case(tied=False)
    base = make_base(case, tmp_path / "base")
    model = open_model(base, dtype=torch.float32, device=CPU)
    rows = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows + 7, mean_resizing=False)
    torch.manual_seed(3)
    config = LoraConfig(
        r=4,
        task_type="CAUSAL_LM",
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
    )
    adapted = get_peft_model(model, config)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data.add_(torch.randn_like(weight), alpha=0.05)
    save_adapter(adapted, tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    made = Made(base, tmp_path / "adapter", tmp_path / "merged")
    compared = stream(made, "float32")
    assert json.loads((made.merged / "config.json").read_text())["vocab_size"] == rows + 7
    merged = adapted.merge_and_unload()
    tensors = load_file(made.merged / "model.safetensors")
    assert all(torch.equal(tensors[name], each) for name, each in merged.state_dict().items())
    assert prove(compared.before, compared.answers).difference < 1e-4


def test_vocabulary_without_its_rows_is_refused(tmp_path: Path) -> None:
    """An adapter that knows of more tokens must bring the head's rows too."""
    made = make(Case(adapter={"modules_to_save": ["embed_tokens"]}, tied=False), tmp_path)
    path = made.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.embed_tokens.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name][:3]])
    save_file(tensors, path)
    with pytest.raises(DataError, match=r"another vocabulary.*lm_head"):
        stream(made)


def test_embeddings_saved_with_their_adapter_are_used(tmp_path: Path) -> None:
    """What PEFT saves beside an adapter on embeddings stands for the base's tensor."""
    made = make(Case(adapter={"target_modules": ["q_proj", "embed_tokens"]}), tmp_path)
    path = made.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    base = load_file(made.base / "model.safetensors")["model.embed_tokens.weight"].float()
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    save_file(tensors | {name: base + 1}, path)
    stream(made, "float32")
    with_saved = load_file(made.merged / "model.safetensors")["model.embed_tokens.weight"]
    prefix = "base_model.model.model.embed_tokens.lora_embedding_"
    change = (tensors[f"{prefix}B"] @ tensors[f"{prefix}A"]).T * (8 / 4)
    assert torch.equal(with_saved, base + 1 + change)


@pytest.mark.parametrize("kind", ["copied", "added"])
def test_one_changed_element_is_refused(kind: str, tmp_path: Path) -> None:
    """Not a single number of the file may be another, whether the adapter changes it or not."""
    made = make(Case(), tmp_path)
    path = made.merged / "model.safetensors"
    name = {
        "copied": "model.embed_tokens.weight",
        "added": "model.layers.1.self_attn.o_proj.weight",
    }[kind]
    settings = MergeSettings(merge=MergeSpec(), load_in=None)
    with streaming(made.base, made.adapter, settings) as merge:
        merge.write(made.folders, lambda _: None, RecordingPulse())
        assert len(merge.check(made.merged, RecordingPulse())) == len(load_file(path))
        tensors = load_file(path)
        bits = tensors[name].view(torch.int16)
        bits[3, 5] += 1
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(InternalError, match=f"not the base with its adapter: {name}"):
            merge.check(made.merged, RecordingPulse())


def test_what_cannot_be_streamed_is_named(tmp_path: Path) -> None:
    """An adapter that begins with a part of the base needs the whole base, and says so."""
    made = make(Case(), tmp_path)
    path = made.adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"init_lora_weights": "pissa"}))
    with pytest.raises(NotStreamable, match="init_lora_weights is pissa"):
        stream(made)


def test_distance_to_training_is_that_of_the_model_in_memory(tmp_path: Path) -> None:
    """The base in 4 bits, a layer at a time, answers like the one that bitsandbytes opens."""
    made = make(Case(), tmp_path)
    compared = stream(made, load_in="nf4")
    prompts = built_in_probe(open_tokenizer(made.base))
    trained = answers_as_trained(made.base, made.adapter, "nf4", prompts)
    assert compared.trained is not None
    assert distance(compared.trained, trained) < 1e-5 * norm(trained)
    assert distance(compared.trained, compared.answers) > 1e-3 * norm(trained)


def test_merge_onto_the_dequantized_base_is_the_model_that_was_trained(tmp_path: Path) -> None:
    """Then nothing is between the merged model and the trained one but rounding."""
    made = make(Case(), tmp_path)
    compared = stream(made, "float32", "nf4", "dequantized")
    assert compared.trained is not None
    size = norm(compared.trained)
    assert distance(compared.answers, compared.trained) < 1e-5 * size
    plain = load_file(made.base / "model.safetensors")["model.norm.weight"].float()
    assert torch.equal(load_file(made.merged / "model.safetensors")["model.norm.weight"], plain)


def test_prompts_in_several_batches_give_the_same_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few tokens are in memory at once, every prompt is answered alike and in order."""
    made = make(Case(), tmp_path)
    at_once = stream(made)
    for path in made.merged.iterdir():
        path.unlink()
    monkeypatch.setattr("modelmill.stages.merge.streamed.TOKENS_AT_ONCE", 100)
    one_by_one = stream(made)
    size = norm(at_once.before.adapter)
    assert distance(one_by_one.before.adapter, at_once.before.adapter) < 1e-5 * size
    assert distance(one_by_one.answers, at_once.answers) < 1e-5 * size
    assert one_by_one.tensors == at_once.tensors
