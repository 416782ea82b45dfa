"""Conversations, plain text and unmerged adapters are judged like everything else."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM, GenerationConfig

from modelmill.models.adapter import fresh_adapter, save_adapter
from modelmill.models.open import LoadIn, open_model, open_tokenizer
from modelmill.models.prompt import contract_for, encode_row, load_contract
from modelmill.models.weights import weight_bytes
from modelmill.spec.figures import Inferred
from modelmill.spec.finetune import FinetuneSpec
from modelmill.spec.names import PREDICTIONS
from modelmill.spec.records import Prediction, Row
from modelmill.spec.run import MergeSpec
from modelmill.spec.settings import ContractSettings, InferSettings, MergeSettings
from modelmill.stages import merge
from modelmill.stages.fetch.models import fetch_adapter
from modelmill.stages.infer import run
from modelmill.stages.infer.forms import ChatForm, FewShotChatForm
from modelmill.stages.stage import Folders

from ..tiny_stages import EOS, RecordingPulse, make_conversation, make_rows, write_rows

CHAT = ContractSettings(max_length=128, format="messages", chat_template="plain")
TEXT = ContractSettings(max_length=16, format="text")

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own


def conversation(number: int) -> Row:
    """Make a conversation of two turns each."""
    turns = (f"table t{number}", "select column", f"where {number}", f"b = {number}")
    return make_conversation(*turns, system="sql").model_copy(update={"row": number})


def infer(
    inputs: dict[str, Path], work: Path, **changes: object
) -> tuple[Inferred, list[Prediction]]:
    """Run the stage in float32."""
    asked = {
        "prompt": "contract",
        "shots": None,
        "max_new_tokens": 8,
        "batch_size": 4,
        "dtype": "float32",
        "nll": True,
        "contract": ContractSettings(max_length=128),
        "seed": None,
        **changes,
    }
    folders = Folders(inputs, work / "out", work / "resume")
    folders.output.mkdir(parents=True)
    folders.resume.mkdir(parents=True)
    outcome = run(InferSettings.model_validate(asked), folders, RecordingPulse())
    assert outcome is not None
    assert isinstance(outcome.figures, Inferred)
    lines = (folders.output / PREDICTIONS).read_text(encoding="utf-8").splitlines()
    return outcome.figures, [Prediction.model_validate_json(line) for line in lines]


def test_conversation_is_answered_after_its_last_question(llama: Path, tmp_path: Path) -> None:
    """The reference is the last turn; what was said before stands in the prompt."""
    write_rows([conversation(n) for n in range(6)], tmp_path / "data" / "test.jsonl")
    figures, predictions = infer(
        {"model": llama, "test": tmp_path / "data"}, tmp_path, contract=CHAT
    )
    assert figures.quarantined == 0
    assert figures.prompt_form == "contract"
    assert predictions[3].reference == "b = 3"
    assert predictions[3].prompt.splitlines() == ["table t3", "select column", "where 3"]
    tokenizer = open_tokenizer(llama)
    contract = contract_for(llama, tokenizer, CHAT)
    encoded = encode_row(contract, tokenizer, conversation(3))
    assert tokenizer.decode(encoded.input_ids[: encoded.prompt_length]).endswith(
        "<|user|>\nwhere 3\n<|assistant|>\n"
    )
    assert predictions[3].nll_tokens == len(encoded.input_ids) - encoded.prompt_length


def test_base_is_asked_in_its_best_form_for_conversations(llama: Path, tmp_path: Path) -> None:
    """Without a template of its own it gets solved conversations before the question."""
    rows = [conversation(n) for n in range(12)]
    for name, some in (("train", rows[:6]), ("eval", rows[6:9]), ("test", rows[9:])):
        write_rows(some, tmp_path / "data" / f"{name}.jsonl")
    data = tmp_path / "data"
    figures, predictions = infer(
        {"model": llama, "test": data, "data": data},
        tmp_path,
        contract=CHAT,
        prompt="own",
        shots=2,
        seed=0,
    )
    assert figures.prompt_form == "2-shot"
    assert len(predictions) == 3
    tokenizer = open_tokenizer(llama)
    form = FewShotChatForm(contract_for(llama, tokenizer, CHAT), tokenizer, tuple(rows[:2]))
    text = tokenizer.decode(form.encode(rows[9]))
    assert text.count("<|system|>") == 1
    assert text.count("<|assistant|>") == 6
    assert text.endswith("<|user|>\nwhere 9\n<|assistant|>\n")
    assert form.stop_text == "\n<|user|>"


def test_conversation_that_the_template_refuses_is_quarantined(llama: Path, tmp_path: Path) -> None:
    """The row says what the template said; the others are answered."""
    tokenizer = open_tokenizer(llama)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}"
        "{% endif %}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    model = tmp_path / "model"
    model.mkdir()
    for path in llama.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    tokenizer.save_pretrained(model)
    rows = [make_conversation("table t1", "select column"), conversation(1)]
    write_rows(rows, tmp_path / "data" / "test.jsonl")
    figures, predictions = infer(
        {"model": model, "test": tmp_path / "data"},
        tmp_path,
        contract=CHAT.model_copy(update={"chat_template": "tokenizer"}),
    )
    assert figures.quarantined == 1
    assert "no system turns" in predictions[1].error
    asked = ChatForm(open_tokenizer(model)).encode(rows[0])
    assert tokenizer.decode(asked) == "user: table t1</s>assistant: "


def test_text_has_a_likelihood_and_no_answer(llama: Path, tmp_path: Path) -> None:
    """Long texts are scored in pieces: every token but the first of each, weighted alike."""
    texts = [" ".join(row.completion for row in make_rows(n, n)) for n in (2, 9)]
    rows = [
        Row(row=number, prompt="", completion=text, fields={}) for number, text in enumerate(texts)
    ]
    write_rows(rows, tmp_path / "data" / "test.jsonl")
    figures, predictions = infer(
        {"model": llama, "test": tmp_path / "data"}, tmp_path, contract=TEXT
    )
    assert (figures.generated_tokens, figures.tokens_per_second) == (0, 0.0)
    assert [each.output for each in predictions] == ["", ""]
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    tokenizer = open_tokenizer(llama)
    for text, prediction in zip(texts, predictions, strict=True):
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        losses = []
        for start in range(0, len(ids), 16):
            piece = torch.tensor(ids[start : start + 16])
            if len(piece) > 1:
                with torch.inference_mode():
                    logits = model(piece[None]).logits[0, :-1]
                losses += functional.cross_entropy(logits, piece[1:], reduction="none").tolist()
        assert prediction.nll_tokens == len(losses)
        assert prediction.nll == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("load_in", [None, "nf4", "int8"])
def test_adapter_is_judged_unmerged(
    load_in: LoadIn, llama: Path, data: Path, tmp_path: Path
) -> None:
    """On the base as it was held in training; its likelihoods are not the base's."""
    base = open_model(llama, dtype=torch.float32, device=torch.device("cpu"))
    torch.manual_seed(0)
    adapted = fresh_adapter(base, FinetuneSpec(r=4), ("q_proj", "v_proj"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3)
    save_adapter(adapted, tmp_path / "tuned" / "adapter")
    inputs = {"model": llama, "test": data, "adapter": tmp_path / "tuned"}
    figures, predictions = infer(inputs, tmp_path / "adapter", base_load_in=load_in)
    assert (figures.method, figures.bits) == {
        None: ("lora", 16),
        "nf4": ("lora on nf4", 4),
        "int8": ("lora on int8", 8),
    }[load_in]
    assert figures.size_bytes == weight_bytes(llama) + weight_bytes(tmp_path / "tuned" / "adapter")
    _, plain = infer({"model": llama, "test": data}, tmp_path / "base")
    assert all(one.nll != other.nll for one, other in zip(predictions, plain, strict=True))
    if load_in is None:
        merged = adapted.merge_and_unload()
        contract = contract_for(llama, open_tokenizer(llama), ContractSettings(max_length=128))
        for each in predictions[:3]:
            row = Row(row=0, prompt=each.prompt, completion=each.reference, fields={})
            encoded = encode_row(contract, open_tokenizer(llama), row)
            ids = torch.tensor(encoded.input_ids)
            with torch.inference_mode():
                logits = merged(ids[None]).logits[0]
            start = encoded.prompt_length
            by_hand = functional.cross_entropy(logits[start - 1 : -1], ids[start:])
            assert each.nll == pytest.approx(by_hand.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("has_a_row", "asked"),
    [
        (False, {"target_modules": ["q_proj", "v_proj"]}),
        (True, {"target_modules": ["q_proj", "v_proj"]}),
        (False, {"target_modules": ["q_proj", "embed_tokens"]}),
        (False, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    ],
)
def test_pad_that_a_trainer_added_need_not_be_embedded(
    has_a_row: bool, asked: dict[str, list[str]], llama: Path, data: Path, tmp_path: Path
) -> None:
    """Unmerged and merged answer alike, and where it has a row it stays the pad."""
    base = open_model(llama, dtype=torch.float32, device=torch.device("cpu"))
    tokenizer = open_tokenizer(llama)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    if has_a_row:
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.manual_seed(0)
    trained = get_peft_model(base, LoraConfig(r=4, **asked))
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3)
    trained.save_pretrained(tmp_path / "source", save_embedding_layers=has_a_row)
    tokenizer.save_pretrained(tmp_path / "source")
    for name in ("tuned", "merged", "resume"):
        (tmp_path / name).mkdir()
    source = {"source": tmp_path / "source"}
    fetch_adapter(Folders(source, tmp_path / "tuned", tmp_path / "resume"), RecordingPulse())

    inputs = {"model": llama, "adapter": tmp_path / "tuned"}
    _, unmerged = infer({**inputs, "test": data}, tmp_path / "unmerged")
    settings = MergeSettings(
        merge=MergeSpec(dtype="float32"), load_in=None, contract=ContractSettings(max_length=128)
    )
    merge.run(settings, Folders(inputs, tmp_path / "merged", tmp_path / "resume"), RecordingPulse())
    _, merged = infer({"model": tmp_path / "merged", "test": data}, tmp_path / "answers")
    assert not any(each.error for each in unmerged)
    assert [each.output for each in merged] == [each.output for each in unmerged]

    pad = tokenizer.pad_token_id if has_a_row else EOS
    assert load_contract(tmp_path / "merged").pad == pad
    assert open_tokenizer(tmp_path / "merged").pad_token_id == pad
    assert GenerationConfig.from_pretrained(tmp_path / "merged").pad_token_id == pad
