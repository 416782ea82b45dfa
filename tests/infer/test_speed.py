"""The engine that the speed is measured in: chosen by the plan's rules, and never in the way."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from modelmill.models.open import open_tokenizer
from modelmill.models.prompt import contract_for
from modelmill.models.vllm.job import Job, engine_arguments
from modelmill.spec.errors import DeviceFault, Interrupted
from modelmill.spec.profile import Facts
from modelmill.spec.run import RunSpec
from modelmill.spec.serving import engine_for, serving_of
from modelmill.spec.settings import ContractSettings
from modelmill.stages.infer import speed
from modelmill.stages.infer.generate import Generator
from modelmill.stages.infer.speed import artifact_of
from modelmill.stages.infer.vllm_engine import PROCESS, VllmEngine
from modelmill.stages.infer.workers import Workers

from ..processes import wait_until_gone
from ..tiny_stages import RecordingPulse
from .test_infer import NEW_TOKENS, figures_of, infer, settings_for

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own

STAND_IN = Path(__file__).with_name("stand_in")
ALONE = Workers(1, 1)
HALF = settings_for(dtype="bfloat16")
WHY = "16-bit on CUDA"


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-in where the other process finds it."""
    paths = [str(STAND_IN), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose as on a GPU, with vLLM installed."""
    monkeypatch.setattr(
        speed, "engine_for", lambda artifact, **_: engine_for(artifact, is_gpu=True)
    )
    monkeypatch.setattr(speed, "installed", lambda: "0.33.0")


def vllm_engine(model: Path, stop_text: str | None = None, **changes: object) -> VllmEngine:
    """Make the engine for a tiny model."""
    tokenizer = open_tokenizer(model)
    contract = contract_for(model, tokenizer, ContractSettings(max_length=128))
    every = {
        "folder": model,
        "dtype": "float32",
        "tokenizer": tokenizer,
        "contract": contract,
        "max_new_tokens": NEW_TOKENS,
        "stop_text": stop_text,
        "memory_share": 0.5,
        "limit_seconds": 300,
        **changes,
    }
    return VllmEngine(**every)  # type: ignore[arg-type]


def transformers_engine(model: Path, stop_text: str | None = None) -> Generator:
    """Make the other engine, by the same rules."""
    opened = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    other = vllm_engine(model)
    return Generator(opened, other.tokenizer, other.contract, NEW_TOKENS, stop_text)


def test_engines_answer_alike(llama: Path, vllm: None) -> None:
    """Texts and counted tokens are the same, ended by an id, by a text, and by the length."""
    plain = transformers_engine(llama)
    prompts = [plain.tokenizer(f"table t{n} column\nsql: ")["input_ids"] for n in range(12)]
    (free,) = plain.answer([prompts], ALONE)
    stop_text = free.texts[0][:4][-2:]
    (expected,) = transformers_engine(llama, stop_text).answer([prompts], ALONE)
    found = vllm_engine(llama, stop_text).answer(prompts)
    assert found.texts == expected.texts
    assert expected.texts != free.texts
    # A text that ends an answer leaves a padding behind it, which transformers' count has too.
    ended = [text != before for text, before in zip(expected.texts, free.texts, strict=True)]
    assert found.tokens == [
        count - is_cut for count, is_cut in zip(expected.tokens, ended, strict=True)
    ]
    assert found.seconds > 0


@pytest.mark.usefixtures("vllm")
def test_chosen_engine_gives_the_speed_and_nothing_else(
    llama: Path, data: Path, tmp_path: Path, chosen: None, caplog: pytest.LogCaptureFixture
) -> None:
    """What is judged is to the byte what it is without it; engine and reason are told."""
    caplog.set_level(logging.INFO)
    pulse = RecordingPulse()
    outcome, _ = infer(llama, data, tmp_path / "vllm", HALF, pulse)
    figures = figures_of(outcome)
    assert figures.speed is not None
    assert (figures.speed.engine, figures.speed.why) == ("vllm 0.33.0", WHY)
    assert figures.tokens_per_second == figures.speed.tokens / figures.speed.seconds
    assert figures.engine.startswith("transformers")
    assert figures.speed.equal_answers is not None
    assert figures.speed.equal_answers > 0
    assert f"The speed is that of vllm 0.33.0: {WHY};" in caplog.text
    assert pulse.warnings == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "installed", lambda: None)
        without, _ = infer(llama, data, tmp_path / "without", HALF)
    written = [
        (tmp_path / name / "out/predictions.jsonl").read_bytes() for name in ("vllm", "without")
    ]
    assert written[0] == written[1]
    told = figures_of(without).speed
    assert told is not None
    assert told.engine == figures.engine
    assert told.why == f"vLLM is faster ({WHY}), but is not installed here"


def test_engine_that_fails_loses_no_answer(
    llama: Path, data: Path, tmp_path: Path, chosen: None
) -> None:
    """Without vLLM in the other process; the reason is reported, the speed is transformers'."""
    pulse = RecordingPulse()
    outcome, predictions = infer(llama, data, tmp_path, HALF, pulse)
    figures = figures_of(outcome)
    assert len(predictions) == 19
    assert figures.speed is not None
    assert figures.speed.engine == figures.engine
    assert figures.tokens_per_second == figures.generated_tokens / figures.generate_seconds
    assert figures.speed.why == (
        f"{WHY}, but vLLM failed: ModuleNotFoundError: No module named 'vllm'"
    )
    assert pulse.warnings == [f"The speed is that of {figures.engine}: {figures.speed.why}"]


def test_engine_that_is_not_waited_for_is_ended(llama: Path, vllm: None) -> None:
    """Whether the stage is asked to stop or the time is over: no process stays on the device."""

    def stop() -> None:
        raise Interrupted("asked to stop")

    with pytest.raises(Interrupted):
        vllm_engine(llama, waiting=stop).answer([[5, 6]])
    with pytest.raises(DeviceFault, match="not done within 0 s"):
        vllm_engine(llama, limit_seconds=0).answer([[5, 6]])
    assert wait_until_gone(PROCESS) == []


def test_float32_is_answered_by_transformers(
    llama: Path, data: Path, tmp_path: Path, chosen: None
) -> None:
    """Other dtypes than 16 bits are not for vLLM, and the reason says so."""
    outcome, _ = infer(llama, data, tmp_path)
    told = figures_of(outcome).speed
    assert told is not None
    assert told.why == "the run computes in float32, and vLLM is for 16 bits"


@pytest.mark.parametrize(
    "written",
    [
        {"method": "gptq", "bits": 4},
        {"method": "rtn", "bits": 3},
        {"method": "gptq", "bits": 4, "sym": False},
        {"method": "gptq", "bits": 8, "desc_act": True},
        {"method": "bitsandbytes"},
    ],
)
def test_stage_chooses_by_the_files_what_the_plan_shows(
    written: dict[str, object], llama: Path, tmp_path: Path
) -> None:
    """One rule on both sides, for what a checkpoint says of itself."""
    config = json.loads((llama / "config.json").read_text())
    packing = {"bits": 4, "sym": True, "desc_act": False, **written}
    method = "bitsandbytes" if written["method"] == "bitsandbytes" else "gptq"
    config["quantization_config"] = {**packing, "quant_method": method}
    (tmp_path / "config.json").write_text(json.dumps(config))
    run = RunSpec.model_validate(
        {
            "model": {"source": "model"},
            "data": {
                "train": "train.jsonl",
                "test": "test.jsonl",
                "template": {"prompt": "{question}", "completion": "{answer}"},
            },
            "quantize": [written],
        }
    )
    planned = serving_of(run, Facts(accelerator="cuda", dtype="bfloat16"), None)[-1]
    found = engine_for(artifact_of(tmp_path, has_adapter=False), is_gpu=True)
    assert found == (planned.engine, planned.why)


def test_vllm_is_given_room_for_the_longest_answer() -> None:
    """A context of the model's own length would take memory that answers could use."""
    job = Job(
        model="model",
        dtype="bfloat16",
        prompts=((1, 2, 3), (1,)),
        max_new_tokens=4,
        eos=(1,),
        stop_text=None,
        memory_share=0.5,
    )
    assert engine_arguments(job)["max_model_len"] == 7
