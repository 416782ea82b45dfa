"""Quantization-aware training: rounded while it learns, packed without loss, better for it."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from modelmill.models.families import linear_in_features
from modelmill.models.gptq import open_unpacked, unpack
from modelmill.models.grid import Grid
from modelmill.models.open import open_model, open_tokenizer
from modelmill.models.prompt import encode_row, load_contract
from modelmill.spec.errors import DataError, SpecError
from modelmill.spec.finetune import FinetuneSpec
from modelmill.spec.memory import quantized_bytes
from modelmill.spec.records import Row
from modelmill.spec.settings import ContractSettings, FinetuneSettings
from modelmill.stages import finetune
from modelmill.stages.infer.opened import open_any
from modelmill.stages.quantize.qat import pack
from modelmill.stages.stage import Folders

from ..quantize.running import FILES, ModelOf, qat, quantize, rtn, shape_of
from ..tiny_stages import Family, RecordingPulse, make_model, make_row, write_rows

pytestmark = pytest.mark.filterwarnings("ignore")  # the engines' own

CPU = torch.device("cpu")
CHAT = "chat_template.jinja"
"""Of the contract, which training has written."""

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write sixteen answers to learn by heart."""
    folder = tmp_path_factory.mktemp("rows")
    answers = ["".join(random.Random(number).choices("abcdefgh", k=8)) for number in range(16)]
    learned = [
        make_row(f"n{number}:", answer).model_copy(update={"row": number})
        for number, answer in enumerate(answers)
    ]
    for name in ("train", "eval"):
        write_rows(learned, folder / f"{name}.jsonl")
    return folder


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> Train:
    """Give a function that learns them with every weight."""

    def run(model: Path, epochs: float = 1, **changes: object) -> Path:
        asked = {
            "method": "full",
            "num_train_epochs": epochs,
            "learning_rate": 2e-3,
            "batch_size": 16,
            "precision": "float32",
            **changes,
        }
        settings = FinetuneSettings(
            finetune=FinetuneSpec.model_validate(asked),
            contract=ContractSettings(max_length=128),
            too_long="error",
            dtype="float32",
            seed=1,
        )
        output = tmp_path_factory.mktemp("trained")
        resume = tmp_path_factory.mktemp("resume")
        finetune.run(settings, Folders({"model": model, "data": rows}, output, resume), PULSE)
        return output

    return run


PULSE = RecordingPulse()


@pytest.fixture(scope="module")
def trained(train: Train, model_of: ModelOf) -> Path:
    """Train a tiny llama in 4 bits, for a moment."""
    return train(model_of("llama"), qat={"bits": 4})


@given(st.sampled_from([4, 8]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_packed_codes_are_read_by_the_other_reading(
    bits: int, words: int, width: int, seed: int
) -> None:
    """What is written with the highest bit too comes back by code that shares no line with it."""
    generator = torch.Generator().manual_seed(seed)
    size = (words * 32 // bits, width)
    codes = torch.randint(0, 1 << bits, size, generator=generator, dtype=torch.int32)
    packed = pack(codes, bits)
    assert packed.shape == (words, width)
    assert torch.equal(unpack(packed, bits), codes)


@pytest.mark.parametrize(
    ("family", "bits"),
    [("llama", 4), ("falcon", 4), ("falcon-rw", 8), ("gpt2", 8), ("opt", 4)],
)
def test_packed_model_answers_to_the_bit_like_the_trained_one(
    family: Family, bits: int, train: Train, tmp_path: Path
) -> None:
    """Read by the independent dequantizer, every weight and every logit is equal in float32."""
    model = make_model(family, tmp_path / "model")
    folder = train(model, qat={"bits": bits, "group_size": 32})
    figures = quantize(qat(bits, group_size=32), folder, tmp_path, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *FILES,
        "quantize_config.json",
        CHAT,
    }
    plain = open_model(folder, dtype=torch.float32, device=CPU)
    packed = open_unpacked(tmp_path / "out", bits=bits, dtype=torch.float32)
    found = dict(packed.named_parameters())
    for name, weight in plain.named_parameters():
        assert torch.equal(found[name], weight), name
    ids = torch.arange(20, 84).reshape(2, 32)
    with torch.inference_mode():
        assert torch.equal(packed(ids).logits, plain(ids).logits)
    assert (figures.method, figures.bits, figures.group_size) == ("qat", bits, 32)
    assert figures.modules == len(linear_in_features(plain))
    told = quantized_bytes(shape_of(model), qat(bits), 32)
    assert figures.size_bytes == pytest.approx(told, rel=0.15)


def test_written_model_computes_what_training_computed(
    train: Train, model_of: ModelOf, tmp_path: Path
) -> None:
    """Weights on the grid, the others as float16 has them, and all of it in float32."""
    folder = train(model_of("llama"), qat={"bits": 4})
    model = open_model(folder, dtype=torch.float32, device=CPU)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    layers = linear_in_features(model)
    for name, weight in model.named_parameters():
        if name.removesuffix(".weight") in layers:
            Grid(4, 64).codes(weight.detach())
        else:
            assert torch.equal(weight.half().float(), weight), name


def test_files_say_what_they_are(trained: Path, tmp_path: Path) -> None:
    """Both configs name the format as every reader needs it; infer calls the model qat."""
    quantize(qat(4), trained, tmp_path, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    assert said == json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (said["bits"], said["group_size"], said["sym"]) == (4, 64, True)
    assert (said["desc_act"], said["checkpoint_format"]) == (False, "gptq")
    opened = open_any(tmp_path / "out", torch.float32, CPU)
    assert (opened.method, opened.bits) == ("qat", 4)


def test_packing_twice_gives_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    """Equal models are equal files, and the copy of a tied head is all that `compat` adds."""
    for name, compat in (("one", ()), ("two", ()), ("copy", ("auto-gptq",))):
        quantize(qat(4, compat=compat), trained, tmp_path, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("one", "copy")]
    head = open_model(trained, dtype=torch.float16, device=CPU).get_output_embeddings().weight
    assert head.nbytes <= sizes[1] - sizes[0] < head.nbytes + 200


def test_model_that_was_not_rounded_in_training_is_refused(
    model_of: ModelOf, trained: Path, tmp_path: Path
) -> None:
    """Negative control: nothing is rounded silently, neither a plain model nor one of 16 bits."""
    with pytest.raises(DataError, match=r"down_proj are not on the grid of 4 bits"):
        quantize(qat(4), model_of("llama"), tmp_path, tmp_path / "plain")
    cast = open_model(trained, dtype=torch.bfloat16, device=CPU)
    cast.save_pretrained(tmp_path / "cast")
    open_tokenizer(trained).save_pretrained(tmp_path / "cast")
    with pytest.raises(DataError, match="in float32"):
        quantize(qat(4), tmp_path / "cast", tmp_path, tmp_path / "out")


def test_group_size_that_does_not_divide_is_refused_before_training(
    train: Train, model_of: ModelOf
) -> None:
    """The rule is GPTQ's: a width of 64 cannot be cut into groups of 128."""
    with pytest.raises(SpecError, match=r"128 does not divide .*\(64\)") as caught:
        train(model_of("llama"), qat={"group_size": 128})
    assert caught.value.what.startswith("finetune.qat")


def test_learning_while_rounded_beats_rounding_what_was_learned(
    train: Train, model_of: ModelOf, rows: Path, tmp_path: Path
) -> None:
    """At 4 bits, after a hundred steps; unrounded in training, packing would bring nothing."""
    whole = train(model_of("llama"), epochs=100)
    aware = train(model_of("llama"), epochs=100, qat={"bits": 4})
    quantize(rtn(4), whole, tmp_path, tmp_path / "rtn")
    quantize(qat(4), aware, tmp_path, tmp_path / "qat")
    by_rtn, by_qat = (
        nll(open_unpacked(tmp_path / name, bits=4, dtype=torch.float32), whole, rows)
        for name in ("rtn", "qat")
    )
    assert by_qat < 0.5 * by_rtn
    # Negative control: the same grid after training is no better than the engine's rounding.
    late = open_model(whole, dtype=torch.float32, device=CPU)
    for name in linear_in_features(late):
        layer = late.get_submodule(name)
        layer.weight.data = Grid(4, 64).rounded(layer.weight.data)
    assert nll(late, whole, rows) > 0.8 * by_rtn
    # Nor is it the training that differs: in full precision both have learned the answers.
    assert nll(open_model(whole, dtype=torch.float32, device=CPU), whole, rows) < by_qat


def nll(model: PreTrainedModel, folder: Path, rows: Path) -> float:
    """Average over the tokens of all answers."""
    tokenizer, contract = open_tokenizer(folder), load_contract(folder)
    losses: list[torch.Tensor] = []
    for line in (rows / "eval.jsonl").read_text(encoding="utf-8").splitlines():
        row = encode_row(contract, tokenizer, Row.model_validate_json(line))
        ids = torch.tensor(row.input_ids)
        with torch.inference_mode():
            logits = model(ids[None]).logits[0, :-1].log_softmax(-1)
        losses.append(-logits.gather(1, ids[1:, None])[row.prompt_length - 1 :])
    return torch.cat(losses).mean().item()
