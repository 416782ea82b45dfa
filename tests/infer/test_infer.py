"""The stage on tiny random models."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelmill.models.open import open_tokenizer
from modelmill.models.prompt import contract_for, encode_row
from modelmill.spec.errors import DataError, Interrupted
from modelmill.spec.figures import Inferred
from modelmill.spec.names import PREDICTIONS
from modelmill.spec.records import Prediction, Row
from modelmill.spec.settings import ContractSettings, InferSettings
from modelmill.stages.infer import prefix, run
from modelmill.stages.infer.forms import ChatForm, FewShotForm, cut
from modelmill.stages.rows import load_rows
from modelmill.stages.stage import Folders, Outcome

from ..tiny_stages import EOS, Family, RecordingPulse, make_model, make_row, make_rows, write_rows

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own

NEW_TOKENS = 10
LONG = "which column has the largest number of rows? " * 6


def settings_for(**changes: object) -> InferSettings:
    """Ask for float32 answers in the contract's form."""
    return InferSettings.model_validate(
        {
            "prompt": "contract",
            "shots": None,
            "max_new_tokens": NEW_TOKENS,
            "batch_size": 4,
            "dtype": "float32",
            "nll": True,
            "contract": ContractSettings(max_length=128),
            "seed": None,
            **changes,
        }
    )


def infer(
    model: Path,
    data: Path,
    work: Path,
    settings: InferSettings | None = None,
    pulse: RecordingPulse | None = None,
) -> tuple[Outcome, list[Prediction]]:
    """Run the stage; what it resumes from stays in `work` for the next call."""
    output = work / "out"
    resume = work / "resume"
    for folder in (output, resume):
        folder.mkdir(parents=True, exist_ok=True)
    folders = Folders({"model": model, "test": data, "data": data}, output, resume)
    outcome = run(settings or settings_for(), folders, pulse or RecordingPulse())
    assert outcome is not None
    lines = (output / PREDICTIONS).read_text(encoding="utf-8").splitlines()
    return outcome, [Prediction.model_validate_json(line) for line in lines]


def figures_of(outcome: Outcome) -> Inferred:
    """Narrow the figures."""
    assert isinstance(outcome.figures, Inferred)
    return outcome.figures


def test_every_row_is_answered_once_and_in_order(llama: Path, data: Path, tmp_path: Path) -> None:
    """Records carry the row's own fields, and the figures add up."""
    pulse = RecordingPulse()
    outcome, predictions = infer(llama, data, tmp_path, pulse=pulse)
    rows = load_rows(data / "test.jsonl")
    assert [(each.row, each.prompt, each.reference, each.fields) for each in predictions] == [
        (row.row, row.prompt, row.completion, row.fields) for row in rows
    ]
    figures = figures_of(outcome)
    assert figures.rows == 19
    assert figures.quarantined == 0
    assert figures.generated_tokens == sum(each.tokens for each in predictions)
    assert figures.tokens_per_second == pytest.approx(
        figures.generated_tokens / figures.generate_seconds
    )
    assert (figures.method, figures.bits, figures.prompt_form) == ("none", 16, "contract")
    assert pulse.told[-1] == (19, 19, "rows")


@pytest.mark.parametrize("family", ["llama", "bloom", "falcon", "falcon-rw"])
def test_answers_do_not_depend_on_the_batch(family: Family, data: Path, tmp_path: Path) -> None:
    """In float32, left padding changes neither answers nor likelihoods."""
    model = make_model(family, tmp_path / "model")
    _, batched = infer(model, data, tmp_path / "batched", settings_for(batch_size=7))
    _, single = infer(model, data, tmp_path / "single", settings_for(batch_size=1))
    assert [each.output for each in batched] == [each.output for each in single]
    assert len({each.output for each in single}) > 3
    for one, other in zip(batched, single, strict=True):
        assert one.nll == pytest.approx(other.nll, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "bloom", "falcon", "falcon-rw"])
def test_shared_beginning_is_read_once_and_changes_nothing(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that begin alike get the answers and likelihoods of prompts read whole."""
    model = make_model(family, tmp_path / "model")
    rows = [row.model_copy(update={"prompt": LONG + row.prompt}) for row in make_rows(9, 4)]
    write_rows(rows, tmp_path / "data" / "test.jsonl")
    asked = settings_for(contract=ContractSettings(max_length=256))
    _, shared = infer(model, tmp_path / "data", tmp_path / "shared", asked)
    monkeypatch.setattr(prefix, "WORTH_TOKENS", math.inf)
    _, whole = infer(model, tmp_path / "data", tmp_path / "whole", asked)
    assert [each.output for each in shared] == [each.output for each in whole]
    assert len({each.output for each in whole}) > 3
    for one, other in zip(shared, whole, strict=True):
        assert one.nll == pytest.approx(other.nll, rel=1e-4)


def test_answers_are_those_of_a_plain_loop(llama: Path, data: Path, tmp_path: Path) -> None:
    """Taking the likeliest token until EOS, one row at a time, gives the same text."""
    _, predictions = infer(llama, data, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    for each in predictions[:6]:
        ids = tokenizer(each.prompt, add_special_tokens=False)["input_ids"]
        new: list[int] = []
        with torch.inference_mode():
            while len(new) < NEW_TOKENS and EOS not in new:
                new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        assert each.tokens == len(new)
        assert each.output == tokenizer.decode([token for token in new if token != EOS])


def test_nll_is_the_mean_over_completion_and_end(llama: Path, data: Path, tmp_path: Path) -> None:
    """Computed by hand, one row at a time, over all logits."""
    _, predictions = infer(llama, data, tmp_path)
    tokenizer = open_tokenizer(llama)
    contract = contract_for(llama, tokenizer, ContractSettings(max_length=128))
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    for each in predictions:
        encoded = encode_row(contract, tokenizer, make_row(each.prompt, each.reference))
        ids = torch.tensor(encoded.input_ids)
        with torch.inference_mode():
            scores = functional.log_softmax(model(ids[None]).logits[0], dim=-1)
        positions = range(encoded.prompt_length, len(ids))
        by_hand = -sum(scores[place - 1, ids[place]].item() for place in positions)
        assert encoded.input_ids[-1] == EOS
        assert each.nll_tokens == len(positions)
        assert each.nll == pytest.approx(by_hand / len(positions), rel=1e-4)


def test_resumed_answers_equal_uninterrupted_ones(llama: Path, data: Path, tmp_path: Path) -> None:
    """Stopped after every batch in turn, with a torn line each time, nothing is lost or doubled."""
    whole, expected = infer(llama, data, tmp_path / "whole")
    stopped = 0
    for _ in range(10):
        asked = Interrupted("asked to stop")
        pulse = RecordingPulse(stop_after=2, stop_with=asked)  # once told, then one batch
        try:
            outcome, predictions = infer(llama, data, tmp_path / "cut", pulse=pulse)
        except Interrupted:
            stopped += 1
            with (tmp_path / "cut" / "resume" / PREDICTIONS).open("ab") as file:
                file.write(b'{"row": 3, "prom')
        else:
            break
    assert stopped == 5
    assert predictions == expected
    assert figures_of(outcome).generated_tokens == figures_of(whole).generated_tokens
    assert figures_of(outcome).generate_seconds > 0


def test_prompt_that_does_not_fit_is_quarantined(llama: Path, tmp_path: Path) -> None:
    """The row says why; the others are answered."""
    rows = make_rows(5, 4)
    long = rows[2].model_copy(update={"prompt": "column " * 200})
    write_rows([*rows[:2], long, *rows[3:]], tmp_path / "data" / "test.jsonl")
    outcome, predictions = infer(llama, tmp_path / "data", tmp_path)
    assert figures_of(outcome).quarantined == 1
    assert "more than the 128 that fit" in predictions[2].error
    assert [bool(each.error) for each in predictions] == [False, False, True, False, False]
    assert predictions[2].output == ""
    assert predictions[2].nll is None


@pytest.mark.parametrize("family", ["gpt2", "codegen"])
def test_prompt_beyond_the_last_position_is_quarantined(family: Family, tmp_path: Path) -> None:
    """Also where the config calls its positions by an old name; the model would fall over it."""
    model = make_model(family, tmp_path / "model")
    rows = make_rows(3, 4)
    long = rows[1].model_copy(update={"prompt": "column " * 300})
    write_rows([rows[0], long, rows[2]], tmp_path / "data" / "test.jsonl")
    asked = settings_for(contract=ContractSettings(max_length=1024))
    _, predictions = infer(model, tmp_path / "data", tmp_path, asked)
    assert [bool(each.error) for each in predictions] == [False, True, False]
    assert f"more than the {256 - NEW_TOKENS} that fit" in predictions[1].error


def test_file_without_an_answerable_row_is_refused(llama: Path, tmp_path: Path) -> None:
    """A table of nothing but quarantined rows would look like a result."""
    write_rows(
        [row.model_copy(update={"prompt": "column " * 200}) for row in make_rows(2, 4)],
        tmp_path / "data" / "test.jsonl",
    )
    with pytest.raises(DataError, match="not one of 2 test rows"):
        infer(llama, tmp_path / "data", tmp_path)


def test_model_with_broken_weights_answers_nothing(data: Path, tmp_path: Path) -> None:
    """Scores that are not numbers quarantine a row instead of entering a mean."""
    model = make_model("llama", tmp_path / "model")
    broken = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(math.nan)
    broken.save_pretrained(model)
    with pytest.raises(DataError, match="not finite"):
        infer(model, data, tmp_path)


def test_tokenizer_of_another_model_is_refused(llama: Path, data: Path, tmp_path: Path) -> None:
    """Before a token that the model does not know ends as an index beyond its embeddings."""
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    tokenizer = open_tokenizer(model)
    tokenizer.add_tokens([load_rows(data / "test.jsonl")[0].prompt[:9]])
    tokenizer.save_pretrained(model)
    with pytest.raises(DataError, match="the model embeds only"):
        infer(model, data, tmp_path)


def test_padding_that_no_model_embeds_is_no_reason_to_refuse(
    llama: Path, data: Path, tmp_path: Path
) -> None:
    """Many tokenizers beside adapters have had one added; answers are those without it."""
    _, expected = infer(llama, data, tmp_path / "without")
    model = tmp_path / "model"
    shutil.copytree(llama, model)
    tokenizer = open_tokenizer(model)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(model)
    _, found = infer(model, data, tmp_path / "with")
    assert found == expected


def test_own_form_is_chosen_and_told(llama: Path, data: Path, tmp_path: Path) -> None:
    """Without a chat template few-shot is the only form; both score where there is one."""
    asked = settings_for(prompt="own", shots=3, seed=0)
    outcome, predictions = infer(llama, data, tmp_path / "shots", asked)
    assert figures_of(outcome).prompt_form == "3-shot"
    assert len(predictions) == 19
    chat = make_model("llama", tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(chat)
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}answer:{% endif %}"
    )
    tokenizer.save_pretrained(chat)
    outcome, _ = infer(chat, data, tmp_path / "both", asked)
    scores = outcome.effective["prompt_scores"]
    assert isinstance(scores, dict)
    assert set(scores) == {"chat", "3-shot"}
    assert figures_of(outcome).prompt_form in scores
    _, again = infer(chat, data, tmp_path / "both")
    assert len(again) == 19


def test_forms_render_what_they_say(llama: Path) -> None:
    """Chat puts the template around the prompt, few-shot puts examples before it."""
    tokenizer = open_tokenizer(llama)
    contract = contract_for(llama, tokenizer, ContractSettings(max_length=128))
    shots = tuple(
        Row(row=n, prompt=f"### Q\nq{n}\n### A\n", completion=f"a{n}", fields={}) for n in (1, 2)
    )
    form = FewShotForm(contract, tokenizer, shots)
    asked = tokenizer.decode(form.encode(make_row("### Q\nnew\n### A\n")))
    assert asked == "### Q\nq1\n### A\na1\n\n### Q\nq2\n### A\na2\n\n### Q\nnew\n### A\n"
    assert cut("a3\n\n### Q\nq4", form) == "a3"
    assert cut("a\n\nb", form) == "a\n\nb"
    tokenizer.chat_template = "<s>{{ messages[0]['content'] }}|"
    assert tokenizer.decode(ChatForm(tokenizer).encode(make_row("hi"))) == "<s>hi|"


def test_prefix_is_what_all_prompts_begin_with(llama: Path) -> None:
    """It is used where it is long enough, and leaves every prompt a token of its own."""
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    common = list(range(2, 2 + prefix.WORTH_TOKENS))
    found = prefix.read_prefix(model, [[*common, 7, 8], [*common, 9], [*common, 7]])
    assert found.ids == common
    assert found.cache(3) is not found.cache(3)
    assert prefix.read_prefix(model, [[*common, 7], common]) is prefix.NO_PREFIX
    assert prefix.read_prefix(model, [[*common, 7]]) is prefix.NO_PREFIX
    assert prefix.NO_PREFIX.cache(3) is None
