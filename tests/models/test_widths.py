"""Every way to train leaves a model that answers like the one that was trained."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modelmill.models.adapter import open_adapter
from modelmill.models.open import LoadIn, open_config, open_model, open_tokenizer
from modelmill.models.probe import distance, load_probe, probe_logits
from modelmill.models.prompt import contract_for, encode_conversation, encode_row, load_contract
from modelmill.spec.errors import DataError, SpecError
from modelmill.spec.figures import Merged
from modelmill.spec.run import MergeSpec
from modelmill.spec.settings import ContractSettings, MergeSettings
from modelmill.stages import merge
from modelmill.stages.finetune.packed import leak_between
from modelmill.stages.stage import Folders

from ..tiny_stages import Family, RecordingPulse, make_conversation, make_rows, write_rows
from .conftest import Tune, Tuned, settings_of

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own


def merged_of(base: Path, tuned: Path, output: Path, load_in: LoadIn = None) -> Merged:
    """Merge in float32, so that only the merge can change anything."""
    output.mkdir()
    outcome = merge.run(
        MergeSettings(
            merge=MergeSpec(dtype="float32"),
            load_in=None if load_in == "nf4-single" else load_in,
            contract=ContractSettings(max_length=64),
        ),
        Folders(inputs={"model": base, "adapter": tuned}, output=output, resume=output),
        RecordingPulse(),
    )
    assert isinstance(outcome.figures, Merged)
    return outcome.figures


@pytest.mark.parametrize(
    "asked",
    [
        {"use_dora": True},
        {"use_rslora": True, "r": 64},
        {"target_modules": ("q_proj", "embed_tokens")},
        {"modules_to_save": ("embed_tokens",), "target_modules": ("v_proj",)},
        {"modules_to_save": ("lm_head", "norm"), "target_modules": ("v_proj",)},
        {"neftune_noise_alpha": 5.0, "lr_scheduler_type": "cosine_with_restarts"},
        {"gradient_checkpointing": True},
    ],
    ids=lambda asked: "-".join(map(str, asked)),
)
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_merged_model_answers_like_the_one_that_was_trained(
    family: Family,
    asked: dict[str, object],
    tune: Tune,
    model_of: Callable[[Family], Path],
    tmp_path: Path,
) -> None:
    """Also where the adapter is on weights that the base ties together."""
    if family == "bloom":
        names = {"q_proj": "query_key_value", "v_proj": "dense", "norm": "ln_f"}
        names |= {"embed_tokens": "word_embeddings"}
        asked = {
            name: tuple(names.get(each, each) for each in value)
            if isinstance(value, tuple)
            else value
            for name, value in asked.items()
        }
    base = model_of(family)
    tuned = tune(settings_of(num_train_epochs=2, **asked), model=base)
    assert tuned.figures.best_eval_loss is not None
    assert tuned.figures.curve[0].loss > tuned.figures.best_eval_loss
    figures = merged_of(base, tuned.folder, tmp_path / "merged")
    assert figures.difference < 1e-3
    assert figures.effect > 0.01
    # The model as it was trained: the adapter on the base, opened apart from the merge.
    prompts = load_probe(tuned.folder)
    trained, _ = open_adapter(
        open_model(base, dtype=torch.float32, device=CPU), tuned.folder / "adapter"
    )
    written = open_model(tmp_path / "merged", dtype=torch.float32, device=CPU)
    assert distance(probe_logits(written, prompts), probe_logits(trained, prompts)) < 1e-2


@pytest.mark.parametrize("load_in", ["nf4", "fp4", "int8"])
def test_quantized_base_learns_and_merges_onto_the_original(
    load_in: LoadIn, tune: Tune, model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """The distance to the model that was trained is measured for every way to hold the base."""
    tuned = tune(settings_of(load_in=load_in, num_train_epochs=2))
    assert tuned.figures.curve[0].loss > (tuned.figures.best_eval_loss or 99)
    figures = merged_of(model_of("llama"), tuned.folder, tmp_path / "merged", load_in)
    assert figures.training_distance is not None
    assert 0 < figures.training_distance < 1


def test_int8_is_nearest_to_the_base(model_of: Callable[[Family], Path]) -> None:
    """The order that the spec's words promise is the order of the numbers."""
    prompts = load_of(model_of("llama"))
    base = probe_logits(open_model(model_of("llama"), dtype=torch.float32, device=CPU), prompts)
    far = {
        kind: distance(
            probe_logits(
                open_model(model_of("llama"), dtype=torch.float32, device=CPU, load_in=kind),
                prompts,
            ),
            base,
        )
        for kind in ("int8", "nf4", "fp4")
    }
    assert far["int8"] < far["nf4"] < far["fp4"]


def load_of(folder: Path) -> tuple[object, ...]:
    """Make probe prompts for a model that nothing was trained on."""
    from modelmill.models.probe import built_in_probe

    return built_in_probe(open_tokenizer(folder))


def test_full_fine_tune_is_a_model_that_needs_nothing_else(
    tune: Tune, model_of: Callable[[Family], Path]
) -> None:
    """Every weight has moved, in the dtype asked for, and the contract is beside it."""
    asked = settings_of(method="full", learning_rate=1e-3, num_train_epochs=2)
    tuned = tune(asked.model_copy(update={"dtype": "float16"}))
    assert tuned.figures.trainable_parameters == tuned.figures.parameters
    model = open_model(tuned.folder, dtype=torch.float32, device=CPU)
    assert open_config(tuned.folder).dtype == torch.float16
    base = open_model(model_of("llama"), dtype=torch.float32, device=CPU)
    for (name, after), before in zip(model.named_parameters(), base.parameters(), strict=True):
        assert not torch.equal(after, before), name
    assert load_contract(tuned.folder).max_length == 64
    assert open_tokenizer(tuned.folder).chat_template
    assert tuned.figures.curve[0].loss > (tuned.figures.best_eval_loss or 99)


def test_training_goes_on_from_an_adapter(
    tuned: Tuned, tune: Tune, model_of: Callable[[Family], Path], data: Path
) -> None:
    """The first loss is where the first fine-tune ended, not where the base began."""
    again = tune(
        settings_of(
            init_adapter="s3://b/a", num_train_epochs=1, learning_rate=1e-3, warmup_steps=0
        ),
        inputs={"adapter": tuned.folder},
    )
    first = next(point.loss for point in tuned.figures.curve if point.loss is not None)
    next_first = next(point.loss for point in again.figures.curve if point.loss is not None)
    assert next_first < 0.9 * first
    config = json.loads((again.folder / "adapter/adapter_config.json").read_text())
    assert config["r"] == 16
    assert config["inference_mode"] is True
    before = load_file(tuned.folder / "adapter/adapter_model.safetensors")
    after = load_file(again.folder / "adapter/adapter_model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_adapter_from_elsewhere_is_merged_without_probe_or_tokenizer(
    tuned: Tuned, model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """A plain PEFT folder is enough; prompts of ours prove the merge."""
    (tmp_path / "given" / "adapter").mkdir(parents=True)
    for path in (tuned.folder / "adapter").iterdir():
        (tmp_path / "given" / "adapter" / path.name).write_bytes(path.read_bytes())
    figures = merged_of(model_of("llama"), tmp_path / "given", tmp_path / "merged")
    assert figures.difference < 1e-3
    assert figures.effect > 0.01
    assert load_contract(tmp_path / "merged").max_length == 64


def test_training_stops_when_nothing_gets_better(tune: Tune) -> None:
    """A threshold that nothing reaches ends training after so many evaluations."""
    tuned = tune(
        settings_of(
            num_train_epochs=20,
            eval_steps=4,
            early_stopping_patience=2,
            early_stopping_threshold=50.0,
        )
    )
    assert tuned.figures.stopped_early
    assert tuned.figures.steps == 12  # one evaluation to beat, and two in vain
    assert not tune(settings_of(early_stopping_patience=50)).figures.stopped_early


def test_packed_rows_learn_what_single_rows_learn(tune: Tune, data: Path) -> None:
    """Fewer sequences hold the same tokens, and the loss of the first step is the same."""
    single = tune(settings_of(num_train_epochs=1, batch_size=32, warmup_steps=0))
    packed = tune(settings_of(num_train_epochs=1, batch_size=32, warmup_steps=0, packing=True))
    assert packed.figures.packed_to is not None
    assert packed.figures.packed_to < single.figures.train_rows
    assert packed.figures.tokens == single.figures.tokens
    assert packed.figures.curve[0].loss == pytest.approx(single.figures.curve[0].loss, rel=1e-4)
    assert single.figures.packed_to is None


@pytest.mark.parametrize("family", ["bloom", "falcon-rw"])
def test_packing_is_refused_where_rows_would_see_each_other(
    family: Family, tune: Tune, model_of: Callable[[Family], Path]
) -> None:
    """Alibi takes its distances from the mask and not from the places that are given."""
    with pytest.raises(SpecError) as caught:
        tune(settings_of(packing=True), model=model_of(family))
    assert caught.value.problems[0].key == "finetune.packing"
    assert "would see the rows" in caught.value.problems[0].reason


def test_leak_is_measured(model_of: Callable[[Family], Path]) -> None:
    """The negative control: without its places the same model shows the neighbour."""
    model = open_model(model_of("llama"), dtype=torch.float32, device=CPU)
    assert leak_between(model, range(5, 20), range(20, 40)) < 1e-4
    plain = model.forward
    model.forward = lambda **given: plain(  # type: ignore[method-assign]
        **{name: value for name, value in given.items() if name != "position_ids"}
    )
    assert leak_between(model, range(5, 20), range(20, 40)) > 0.1


def test_conversations_are_learned_in_every_turn(tune: Tune, tmp_path: Path) -> None:
    """With the plain template a base model learns to end its turns."""
    rows = [
        make_conversation("table t1", "select column", f"where {n}", f"b = {n}").model_copy(
            update={"row": n}
        )
        for n in range(16)
    ]
    write_rows(rows, tmp_path / "train.jsonl")
    asked = settings_of(num_train_epochs=3)
    chat = ContractSettings(max_length=64, format="messages", chat_template="plain")
    tuned = tune(asked.model_copy(update={"contract": chat}), rows=tmp_path)
    contract = load_contract(tuned.folder)
    tokenizer = open_tokenizer(tuned.folder / "tokenizer")
    assert tokenizer.chat_template == contract.chat_template
    whole = encode_conversation(contract, tokenizer, rows[3])
    last = encode_row(contract, tokenizer, rows[3])
    assert whole.input_ids == last.input_ids
    [(start, end)] = whole.learned
    assert tokenizer.decode(whole.input_ids[start:end]) == "select column" + tokenizer.eos_token
    assert whole.input_ids[end - 1] == contract.eos[0] == whole.input_ids[-1]


def test_conversations_without_a_template_are_refused(tune: Tune, tmp_path: Path) -> None:
    """The message names the way out."""
    write_rows([make_conversation("a", "b")], tmp_path / "train.jsonl")
    chat = ContractSettings(max_length=64, format="messages")
    with pytest.raises(DataError, match="chat_template: plain"):
        tune(settings_of().model_copy(update={"contract": chat}), rows=tmp_path)


def test_text_is_split_to_windows(tune: Tune, tmp_path: Path, data: Path) -> None:
    """A long text is cut instead of lost, and all of it but each first token is learned."""
    text = " ".join(f"{row.prompt}{row.completion}" for row in make_rows(30, 5))
    row = make_rows(1, 1)[0].model_copy(update={"prompt": "", "completion": text})
    write_rows([row], tmp_path / "train.jsonl")
    tuned = tune(settings_of(too_long="split", num_train_epochs=1), rows=tmp_path)
    length = tuned.figures.lengths[-1].upto
    assert tuned.figures.train_rows > 5
    assert tuned.figures.train_rows == pytest.approx(length / 64, abs=2)
    with pytest.raises(DataError, match="more than 64 tokens"):
        tune(settings_of(num_train_epochs=1), rows=tmp_path)


def test_contract_of_a_base_for_conversations_ends_turns(
    model_of: Callable[[Family], Path],
) -> None:
    """The template's end of turn comes first, so it ends completions and stops generation."""
    tokenizer = open_tokenizer(model_of("llama"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    asked = ContractSettings(max_length=64, format="messages")
    contract = contract_for(model_of("llama"), tokenizer, asked)
    assert contract.eos[0] == tokenizer.convert_tokens_to_ids("<|end|>")
    assert contract.eos[1] == tokenizer.eos_token_id
