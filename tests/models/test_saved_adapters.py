"""Adapters as PEFT writes them itself, with embeddings, copies, and a vocabulary of their own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from modelmill.models.adapter import open_adapter
from modelmill.models.open import open_model, open_tokenizer
from modelmill.models.probe import built_in_probe, distance, norm, probe_logits
from modelmill.spec.errors import DataError
from modelmill.spec.run import MergeSpec
from modelmill.spec.settings import ContractSettings, MergeSettings
from modelmill.stages import merge
from modelmill.stages.fetch.models import fetch_adapter
from modelmill.stages.infer.adapted import open_adapted
from modelmill.stages.stage import Folders

from ..tiny_stages import Family, RecordingPulse, make_model

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """An adapter, and what was done to its base before it was trained."""

    name: str
    adapter: Mapping[str, Any]
    family: Family = "llama"
    tied: bool = True
    more_tokens: int = 0
    saved: bool | str = "auto"
    is_tied_after: bool = False
    """Whether the merged model's head is still its embeddings."""

    def __str__(self) -> str:
        return self.name


PLAIN = {"target_modules": ["q_proj"]}
EMBEDDED = {"target_modules": ["q_proj", "embed_tokens"]}
WHOLE = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
CASES = (
    Case("pattern-of-embeddings", {"target_modules": r".*(q_proj|embed_tokens)"}),
    Case("pattern-of-head", {"target_modules": r".*(q_proj|lm_head)"}),
    Case("base-of-embeddings", EMBEDDED),
    Case("base-of-both", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, tied=False),
    Case("saved", {"target_modules": ["q_proj"]}, "opt", saved=True, is_tied_after=True),
    Case("more", {"target_modules": ["q_proj"]}, more_tokens=5, saved=True, is_tied_after=True),
    Case("more-untied", {"target_modules": ["q_proj"]}, tied=False, more_tokens=5, saved=True),
    Case("more-whole-untied", WHOLE, tied=False, more_tokens=5),
    Case("more-whole", {**WHOLE, "modules_to_save": ["embed_tokens"]}, more_tokens=5),
)


def trained_on(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Put an adapter on a model, and move all that would be trained."""
    trained = get_peft_model(model, config).eval()
    for weight in trained.parameters():
        if weight.requires_grad:
            weight.data.add_(torch.randn_like(weight), alpha=0.05)
    return trained


@pytest.mark.parametrize("case", CASES, ids=str)
def test_merged_and_unmerged_answer_as_the_model_that_was_trained(
    case: Case, tmp_path: Path
) -> None:
    """Tensor by tensor, every tensor proved; and the unmerged one to the byte."""
    base = make_model(case.family, tmp_path / "base", tie_word_embeddings=case.tied)
    model = open_model(base, dtype=torch.float32, device=CPU)
    if case.more_tokens:
        tokens = model.get_input_embeddings().num_embeddings + case.more_tokens
        model.resize_token_embeddings(tokens, mean_resizing=False)
    torch.manual_seed(3)
    trained = trained_on(model, LoraConfig(r=4, task_type="CAUSAL_LM", **case.adapter))
    adapter = tmp_path / "tuned" / "adapter"
    trained.save_pretrained(adapter, save_embedding_layers=case.saved)
    prompts = built_in_probe(open_tokenizer(base))
    expected = probe_logits(trained, prompts)

    unmerged = open_adapted(base, adapter, torch.float32, CPU, None)
    assert torch.equal(probe_logits(unmerged.model, prompts), expected)

    for name in ("merged", "resume"):
        (tmp_path / name).mkdir()
    asked = MergeSpec(dtype="float32")
    settings = MergeSettings(merge=asked, load_in=None, contract=ContractSettings(max_length=128))
    inputs = {"model": base, "adapter": tmp_path / "tuned"}
    folders = Folders(inputs, tmp_path / "merged", tmp_path / "resume")
    outcome = merge.run(settings, folders, RecordingPulse())
    assert outcome.effective["merged"] == "tensor by tensor"
    merged = open_model(tmp_path / "merged", dtype=torch.float32, device=CPU)
    assert merged.config.tie_word_embeddings is case.is_tied_after
    assert distance(probe_logits(merged, prompts), expected) < 1e-5 * norm(expected)


def test_lora_layers_that_are_tied_are_refused_by_name(tmp_path: Path) -> None:
    """And layers that are trained whole are merged, tied or not."""
    base = make_model("llama", tmp_path / "base")
    for name, asked in (("lora", EMBEDDED), ("whole", WHOLE)):
        model = open_model(base, dtype=torch.float32, device=CPU)
        config = LoraConfig(r=4, task_type="CAUSAL_LM", ensure_weight_tying=True, **asked)
        trained = trained_on(model, config)
        trained.save_pretrained(tmp_path / name)
        opened = partial(open_adapted, base, tmp_path / name, torch.float32, CPU, None)
        if name == "lora":
            with pytest.raises(DataError, match="ensure_weight_tying"):
                opened()
        else:
            prompts = built_in_probe(open_tokenizer(base))
            assert torch.equal(
                probe_logits(opened().model, prompts), probe_logits(trained, prompts)
            )


@pytest.mark.parametrize(
    ("asked", "more_tokens", "is_saved", "goes_on"),
    [
        (PLAIN, 0, False, True),
        (PLAIN, 0, True, False),
        (PLAIN, 1, True, False),
        (WHOLE, 0, False, True),
        (WHOLE, 1, False, False),
    ],
    ids=["plain", "saved", "more rows", "trained whole", "more rows, trained whole"],
)
def test_training_does_not_go_on_from_embeddings_that_it_would_lose(
    asked: dict[str, Any], tmp_path: Path, *, more_tokens: int, is_saved: bool, goes_on: bool
) -> None:
    """An adapter is written without them, and without the tokenizer that has their rows."""
    base = make_model("llama", tmp_path / "base")
    model = open_model(base, dtype=torch.float32, device=CPU)
    rows = model.get_input_embeddings().num_embeddings + more_tokens
    model.resize_token_embeddings(rows, mean_resizing=False)
    trained = trained_on(model, LoraConfig(r=4, task_type="CAUSAL_LM", **asked))
    trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=is_saved)
    opened = open_model(base, dtype=torch.float32, device=CPU)
    if goes_on:
        open_adapter(opened, tmp_path / "adapter", is_trained=True)
        return
    with pytest.raises(DataError, match="brings embeddings of its own") as refused:
        open_adapter(opened, tmp_path / "adapter", is_trained=True)
    assert "finetune.adapter" in refused.value.fix


@pytest.mark.parametrize("is_beside", [True, False])
def test_tokenizer_beside_an_adapter_goes_where_the_adapter_goes(
    is_beside: bool, tmp_path: Path
) -> None:
    """Tokens that were added for training are in the merged model's tokenizer, and only then."""
    base = make_model("llama", tmp_path / "base")
    model = open_model(base, dtype=torch.float32, device=CPU)
    tokenizer = open_tokenizer(base)
    tokenizer.add_tokens(["<table>"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    trained = trained_on(model, LoraConfig(r=4, target_modules=["q_proj"]))
    trained.save_pretrained(tmp_path / "source", save_embedding_layers=True)
    if is_beside:
        tokenizer.save_pretrained(tmp_path / "source")
    for name in ("fetched", "merged", "resume"):
        (tmp_path / name).mkdir()
    source = {"source": tmp_path / "source"}
    fetch_adapter(Folders(source, tmp_path / "fetched", tmp_path / "resume"), RecordingPulse())
    inputs = {"model": base, "adapter": tmp_path / "fetched"}
    contract = ContractSettings(max_length=128)
    merge.run(
        MergeSettings(merge=MergeSpec(), load_in=None, contract=contract),
        Folders(inputs, tmp_path / "merged", tmp_path / "resume"),
        RecordingPulse(),
    )
    known = open_tokenizer(tmp_path / "merged").get_vocab()
    assert ("<table>" in known) is is_beside


@pytest.mark.parametrize("name", ["target_modules", "exclude_modules"])
def test_pattern_that_is_none_is_named_at_fetch(name: str, tmp_path: Path) -> None:
    """A shell's wildcard is no regular expression: told before the base is fetched."""
    base = make_model("llama", tmp_path / "base")
    model = open_model(base, dtype=torch.float32, device=CPU)
    trained = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"]))
    trained.save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {name: "*.q_proj"}
    path.write_text(json.dumps(config), encoding="utf-8")
    folders = Folders({"source": tmp_path / "source"}, tmp_path / "fetched", tmp_path / "resume")
    with pytest.raises(DataError, match=f"{name} is no pattern"):
        fetch_adapter(folders, RecordingPulse())
