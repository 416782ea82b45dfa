import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from modelmill.models.adapter import open_adapter
from modelmill.models.open import open_model, open_tokenizer
from modelmill.models.prompt import (
    EncodedRow,
    contract_for,
    encode_row,
    encode_text,
    load_contract,
)
from modelmill.spec.errors import DataError, DoesNotFit, Interrupted, SpecError
from modelmill.spec.finetune import FinetuneSpec
from modelmill.spec.settings import ContractSettings
from modelmill.stages.finetune.trainer import IGNORED, Trainer
from modelmill.stages.finetune.training import dataset_of, micro_batch_size

from ..tiny_stages import Family, RecordingPulse, make_model, make_row, make_rows, write_rows
from .conftest import Tune, Tuned, settings_of

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own


def test_loss_falls_and_the_curve_is_complete(tuned: Tuned) -> None:
    """Every step has a point, evaluation happens on the way and after the last step."""
    figures = tuned.figures
    losses = [point.loss for point in figures.curve if point.loss is not None]
    scored = {point.step: point.eval_loss for point in figures.curve if point.eval_loss is not None}
    assert len(losses) == figures.steps == 20
    assert losses[-1] < 0.7 * losses[0]
    assert list(scored) == [5, 10, 15, 20]
    assert figures.best_eval_loss == min(scored.values()) == scored[figures.best_step or 0]


@pytest.mark.parametrize("family", ["llama", "bloom", "falcon"])
def test_loss_of_labels_alone_is_the_loss_of_all_positions(
    family: Family, model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """Projecting labelled positions only gives TRL's own loss and gradients."""
    model = open_model(model_of(family), dtype=torch.float32, device=CPU).train()
    arguments = SFTConfig(
        tmp_path,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    ids = torch.randint(5, 60, (3, 12))
    labels = ids.clone()
    for row, prompt_length in enumerate((0, 4, 9)):
        labels[row, :prompt_length] = IGNORED
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    trainer = Trainer(
        model=model, args=arguments, train_dataset=dataset_of([EncodedRow([5, 6], 1)])
    )
    for places in (labels, labels.masked_fill(torch.arange(12) < 4, IGNORED)):
        losses, gradients = [], []
        for compute in (trainer.compute_loss, super(Trainer, trainer).compute_loss):
            model.zero_grad()
            loss = compute(model, {**batch, "labels": places}, num_items_in_batch=torch.tensor(20))
            loss.backward()
            losses.append(loss.item())
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert trainer.tokens == 72


def test_model_learns_to_stop(tune: Tune, tmp_path: Path) -> None:
    """The end of a completion becomes likely, though pad equals EOS."""
    # Untied: the row of a pad token starts at zero, and a tied head could never raise it.
    folder = make_model("llama", tmp_path / "model", tie_word_embeddings=False)
    rows = [row.model_copy(update={"completion": "select column"}) for row in make_rows(16, 3)]
    write_rows(rows, tmp_path / "train.jsonl")
    tuned = tune(rows=tmp_path, model=folder)
    contract = load_contract(tuned.folder)
    assert contract.pad == contract.eos[0]
    tokenizer = open_tokenizer(tuned.folder / "tokenizer")
    ids = encode_row(contract, tokenizer, rows[0]).input_ids
    base = open_model(folder, dtype=torch.float32, device=CPU)
    model, _ = open_adapter(base, tuned.folder / "adapter")

    def loss_of_end() -> float:
        logits = model(torch.tensor([ids[:-1]])).logits[0, -1]
        return -float(logits.log_softmax(-1)[ids[-1]].detach())

    after = loss_of_end()
    with model.disable_adapter():
        before = loss_of_end()
    assert before > 2
    assert after < 0.5


def test_batches_hold_the_contracts_ids_with_eos_in_the_loss(
    model_of: Callable[[Family], Path],
) -> None:
    """What the trainer sees: prompt and padding outside the loss, completion and EOS inside."""
    tokenizer = open_tokenizer(model_of("llama"))
    contract = contract_for(model_of("llama"), tokenizer, ContractSettings(max_length=64))
    rows = [
        encode_row(contract, tokenizer, make_row("table t1\nsql: ", "select column")),
        encode_row(contract, tokenizer, make_row("t", "b")),
    ]
    batch = DataCollatorForLanguageModeling(pad_token_id=contract.pad)(list(dataset_of(rows)))
    for row, ids, labels, mask in zip(
        rows, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
    ):
        length = len(row.input_ids)
        text = "t" if row is rows[1] else "table t1\nsql: "
        prompt = encode_text(contract, tokenizer, text)
        assert ids.tolist()[: len(prompt)] == prompt
        assert labels.tolist()[: len(prompt)] == [-100] * len(prompt)
        assert labels.tolist()[len(prompt) : length] == row.input_ids[len(prompt) :]
        assert labels[length - 1] == contract.eos[0]
        assert set(labels.tolist()[length:]) <= {-100}
        assert mask.sum() == length


def test_equal_recipe_gives_equal_bytes(tuned: Tuned, tune: Tune) -> None:
    """The same rows, settings and seed give the same adapter, byte by byte."""
    again = tune()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        path = Path("adapter") / name
        assert (again.folder / path).read_bytes() == (tuned.folder / path).read_bytes()


def test_micro_batch_is_memory_not_mathematics(tuned: Tuned, tune: Tune) -> None:
    """Another micro-batch sees the same rows in the same steps."""
    other = tune(settings_of(micro_batch_size=2)).figures.curve
    for point, same in zip(tuned.figures.curve, other, strict=True):
        assert (point.loss or point.eval_loss) == pytest.approx(
            same.loss or same.eval_loss, rel=1e-3
        )


def test_memory_that_is_too_small_halves_the_micro_batch(tuned: Tuned, tune: Tune) -> None:
    """The first try costs time and nothing else: weights and rows are those of a fresh start."""
    pulse = RecordingPulse(stop_after=7, stop_with=torch.OutOfMemoryError("CUDA out of memory"))
    again = tune(settings_of(micro_batch_size=4), pulse=pulse)
    assert again.figures.micro_batch_size == 2
    [warning] = pulse.warnings
    assert warning == (
        "Memory is too small for 4 rows at a time; taking 2 of them, the batch stays the same"
    )
    for point, same in zip(tuned.figures.curve, again.figures.curve, strict=True):
        assert (point.loss or point.eval_loss) == pytest.approx(
            same.loss or same.eval_loss, rel=1e-3
        )


def test_memory_that_is_too_small_for_one_row_does_not_fit(tune: Tune) -> None:
    """There is nothing left to halve."""
    pulse = RecordingPulse(stop_after=1, stop_with=torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(DoesNotFit, match="too small for 1 rows of up to"):
        tune(settings_of(micro_batch_size=1), pulse=pulse)


def test_attempt_after_two_that_were_killed_takes_a_quarter_of_the_rows(tune: Tune) -> None:
    """The conductor says how often; one row always remains."""
    asked = settings_of(num_train_epochs=1, micro_batch_size=4)
    asked = asked.model_copy(update={"micro_batch_halvings": 2})
    pulse = RecordingPulse()
    assert tune(asked, pulse=pulse).figures.micro_batch_size == 1
    [warning] = pulse.warnings
    assert warning.startswith("Earlier attempts were killed for their memory; taking 1 rows")


def test_output_is_complete_readable_and_names_no_machine(tuned: Tuned) -> None:
    """Everybody may read every file, and none mentions where it was made."""
    files = {str(path.relative_to(tuned.folder)) for path in tuned.folder.rglob("*.*")}
    assert files == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "tokenizer/chat_template.jinja",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "prompt.json",
        "probe.jsonl",
    }
    for name in files:
        path = tuned.folder / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert str(tuned.folder.parent).encode() not in path.read_bytes()


def test_progress_counts_steps(tuned: Tuned) -> None:
    """The pulse hears of every step until the last."""
    assert tuned.pulse.parts == ["load", "work", "save"]
    assert tuned.pulse.told[-1] == (20, 20, "steps")


def test_interruption_leaves_nothing(tune: Tune, tmp_path: Path) -> None:
    """A stage that is asked to stop in the middle writes no output."""
    before = set(tmp_path.parent.glob("tuned*"))
    pulse = RecordingPulse(stop_after=7, stop_with=Interrupted("asked to stop"))
    with pytest.raises(Interrupted):
        tune(pulse=pulse)
    made = set(tmp_path.parent.glob("tuned*")) - before
    assert [list(folder.iterdir()) for folder in made] == [[]] * len(made)


def test_long_rows_are_named_all_at_once(tune: Tune) -> None:
    """Every row over the limit is counted, the first ten with number and length."""
    pulse = RecordingPulse()
    with pytest.raises(DataError) as caught:
        tune(settings_of(max_length=24), pulse=pulse)
    assert "rows have more than 24 tokens: train row " in caught.value.what
    assert "and " in caught.value.what
    assert "too_long: drop" in caught.value.fix
    assert pulse.told == []


def test_long_rows_are_dropped_and_counted_if_asked(tune: Tune) -> None:
    """Dropping is a decision of the run, and the figures say how many."""
    figures = tune(settings_of(too_long="drop", max_length=22, num_train_epochs=1)).figures
    assert figures.too_long > 0
    assert figures.train_rows + figures.eval_rows + figures.too_long == 41


def test_no_row_left_is_refused(tune: Tune) -> None:
    """Training on nothing is not a success."""
    with pytest.raises(DataError, match="no training row is left: all 41"):
        tune(settings_of(too_long="drop", max_length=8))


def test_training_without_evaluation_keeps_the_last_weights(tune: Tune, tmp_path: Path) -> None:
    """A run without an eval split has no best step."""
    write_rows(make_rows(16, 1), tmp_path / "train.jsonl")
    figures = tune(settings_of(num_train_epochs=1), rows=tmp_path).figures
    assert figures.best_step is None
    assert figures.steps == 2


def test_unknown_target_modules_are_refused_with_those_that_exist(tune: Tune) -> None:
    """A misspelt layer, and an adapter on the head, are answered with the layers there are."""
    with pytest.raises(SpecError) as caught:
        tune(settings_of(target_modules=("q_prj", "v_proj", "lm_head"), modules_to_save=("nrm",)))
    assert [problem.key for problem in caught.value.problems] == [
        "finetune.target_modules.0",
        "finetune.target_modules.2",
        "finetune.modules_to_save.0",
    ]
    assert "q_proj" in caught.value.problems[0].suggestion


def test_loss_that_is_not_a_number_is_refused(
    tune: Tune, model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """A broken weight ends the stage at the first step instead of a useless adapter."""
    model = open_model(model_of("llama"), dtype=torch.float32, device=CPU)
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path)
    open_tokenizer(model_of("llama")).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="the loss is nan at step 1"):
        tune(model=tmp_path)


def test_training_of_one_warm_up_step_is_refused(tune: Tune, tmp_path: Path) -> None:
    """An adapter that learned nothing ends here, not in the merge."""
    write_rows(make_rows(8, 1), tmp_path / "train.jsonl")
    with pytest.raises(DataError, match="learned nothing"):
        tune(settings_of(num_train_epochs=1), rows=tmp_path)


def test_token_without_an_embedding_is_refused(
    tune: Tune, model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """A token that was added to the tokenizer only is named before anything is trained."""
    shutil.copytree(model_of("llama"), tmp_path / "model")
    write_rows([make_row("<new>")], tmp_path / "rows" / "train.jsonl")
    tokenizer = open_tokenizer(tmp_path / "model")
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match=r"gives token id \d+, but the model embeds"):
        tune(model=tmp_path / "model", rows=tmp_path / "rows")


def test_pad_without_an_embedding_is_not_used(
    tune: Tune, model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """Padding is masked, so a pad that was added to the tokenizer only is no reason to refuse."""
    shutil.copytree(model_of("llama"), tmp_path / "model")
    tokenizer = open_tokenizer(tmp_path / "model")
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path / "model")
    tuned = tune(settings_of(num_train_epochs=1), model=tmp_path / "model")
    contract = load_contract(tuned.folder)
    assert contract.pad == contract.eos[0]
    assert open_tokenizer(tuned.folder / "tokenizer").pad_token_id == contract.pad


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_row_beyond_the_last_position_is_refused(
    family: Family, tune: Tune, model_of: Callable[[Family], Path], tmp_path: Path
) -> None:
    """A row that max_length lets through is named before the model falls over it."""
    long = make_rows(8, 1)[0].model_copy(update={"prompt": "column " * 300})
    write_rows([*make_rows(8, 1), long], tmp_path / "train.jsonl")
    with pytest.raises(DataError, match="but the model can tell only 256 apart"):
        tune(settings_of(max_length=1024), model=model_of(family), rows=tmp_path)


def test_alibi_learns_from_rows_of_any_length(tune: Tune, tmp_path: Path) -> None:
    """Its config states a number of positions like all others, and none are stored."""
    model = make_model("falcon-rw", tmp_path / "model", max_position_embeddings=16)
    long = make_rows(8, 1)[0].model_copy(update={"prompt": "column " * 50})
    write_rows([*make_rows(8, 1), long], tmp_path / "train.jsonl")
    tuned = tune(settings_of(num_train_epochs=1), model=model, rows=tmp_path)
    assert tuned.figures.train_rows == 9


def test_nf4_adapter_is_trained_in_float32(tune: Tune) -> None:
    """QLoRA learns on 4-bit weights, and every layer's adapter takes part."""
    tuned = tune(settings_of(load_in="nf4"))
    losses = [point.loss for point in tuned.figures.curve if point.loss is not None]
    tensors = load_file(tuned.folder / "adapter" / "adapter_model.safetensors")
    assert losses[-1] < 0.8 * losses[0]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)


@given(
    batch=st.integers(1, 300),
    longest=st.integers(1, 20_000),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_auto_micro_batch_divides_the_batch(batch: int, longest: int, device: str) -> None:
    """Whatever the device and the rows, the batch stays what was asked."""
    spec, is_gpu = FinetuneSpec(batch_size=batch), device == "cuda"
    rows = micro_batch_size(spec, longest, is_gpu=is_gpu)
    assert batch % rows == 0
    assert 1 <= rows <= (4 if device == "cpu" else batch)
    half = micro_batch_size(spec, longest, is_gpu=is_gpu, halvings=1)
    assert batch % half == 0
    assert 1 <= half <= max(1, rows // 2)
