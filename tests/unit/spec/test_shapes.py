"""A run begins and ends where its sections say, and a key holds what decides the result."""

from typing import Any

import pytest
from pydantic import ValidationError

from modelmill.spec.layout import make_plan, sources_of
from modelmill.spec.plan import Plan, Stage
from modelmill.spec.profile import Facts
from modelmill.spec.run import RunSpec
from modelmill.spec.settings import Pin

DATA = {"train": "train.jsonl", "test": "test.jsonl", "format": "messages"}


NO_ROWS = {"test": "test.jsonl", "format": "messages"}
HALF = {"text": "c4.txt", "text_share": 0.5}


def plan_of(**sections: Any) -> Plan:
    """Plan a run of a few sections."""
    run = RunSpec.model_validate({"model": {"source": "model"}, "data": DATA, **sections})
    pins = {source: Pin(address=source, digest=source) for source in sources_of(run)}
    return make_plan(run, Facts(accelerator="cpu", dtype="float32"), pins)


def names(plan: Plan) -> list[str]:
    """List the stages."""
    return [stage.name for stage in plan.stages]


def inputs(stage: Stage) -> dict[str, str]:
    """List what a stage reads."""
    return {each.role: each.stage for each in stage.inputs}


def test_given_adapter_is_merged_and_nothing_is_trained() -> None:
    """It comes before merge as a fine-tune would."""
    plan = plan_of(finetune={"adapter": "mine"}, quantize=[{"method": "gptq"}])
    assert names(plan) == [
        *("fetch-model", "fetch-data", "fetch-test", "fetch-adapter", "merge", "quantize-gptq-4"),
        *("infer-base", "infer-base-own", "infer-merged", "infer-gptq-4"),
    ]
    assert inputs(plan.stage("merge")) == {"model": "fetch-model", "adapter": "fetch-adapter"}


def test_first_adapter_enters_the_key_by_what_it_is() -> None:
    """Its address is where it lies; its content is what is trained further."""
    plan = plan_of(finetune={"init_adapter": "mine"})
    assert inputs(plan.stage("finetune"))["adapter"] == "fetch-adapter"
    assert inputs(plan.stage("merge"))["adapter"] == "finetune"
    run = RunSpec.model_validate(
        {"model": {"source": "model"}, "data": DATA, "finetune": {"init_adapter": "elsewhere"}}
    )
    pins = {
        source: Pin(address=source, digest="mine" if source == "elsewhere" else source)
        for source in sources_of(run)
    }
    pins["elsewhere"] = Pin(address="mine", digest="mine")
    moved = make_plan(run, Facts(accelerator="cpu", dtype="float32"), pins)
    assert moved.stage("finetune").key == plan.stage("finetune").key
    assert plan.stage("finetune").key != plan_of(finetune={}).stage("finetune").key


def test_model_that_nothing_is_done_to_is_asked_like_its_copies() -> None:
    """A form of its own would make it look better than copies that answer alike."""
    assert names(plan_of(quantize=[{"method": "gptq"}])) == [
        *("fetch-model", "fetch-data", "fetch-test", "quantize-gptq-4"),
        *("infer-base", "infer-gptq-4"),
    ]


def test_text_calibrates_without_training_rows() -> None:
    """A model is quantized with a text and a test file alone."""
    gptq = {"method": "gptq", "calibration": {"text": "c4.txt"}}
    plan = plan_of(data=NO_ROWS, quantize=[gptq])
    assert names(plan)[:4] == ["fetch-model", "fetch-test", "fetch-text", "quantize-gptq-4"]
    assert inputs(plan.stage("quantize-gptq-4")) == {"model": "fetch-model", "text": "fetch-text"}


def test_full_fine_tune_needs_no_merge() -> None:
    """What it leaves is quantized and judged as `finetuned`, in the dtype asked for."""
    plan = plan_of(finetune={"method": "full"}, quantize=[{"method": "bitsandbytes"}])
    assert names(plan)[3:] == [
        *("finetune", "quantize-nf4"),
        *("infer-base", "infer-base-own", "infer-finetuned", "infer-nf4"),
    ]
    assert inputs(plan.stage("quantize-nf4")) == {"model": "finetune"}
    other = plan_of(finetune={"method": "full"}, merge={"dtype": "float16"})
    assert other.stage("finetune").key != plan.stage("finetune").key


def test_adapter_is_judged_unmerged_on_the_base_it_was_trained_on() -> None:
    """The way the base was held enters the key."""
    plan = plan_of(finetune={"load_in": "nf4"}, infer={"adapter": True})
    stage = plan.stage("infer-adapter")
    assert inputs(stage) == {"model": "fetch-model", "test": "fetch-test", "adapter": "finetune"}
    assert plan.run.models() == ("base", "adapter", "merged")
    held = plan_of(finetune={"load_in": "fp4"}, infer={"adapter": True}).stage("infer-adapter")
    assert held.key != stage.key


def test_text_is_judged_by_likelihood_alone() -> None:
    """There is no best form to ask in where nothing is asked."""
    data = {"train": "a", "test": "b", "format": "text"}
    assert "infer-base-own" not in names(plan_of(data=data, finetune={}))
    with pytest.raises(ValidationError, match="only `nll` can judge"):
        plan_of(data=data, infer={"metrics": {"exact_match": {}}})


def test_gate_holds_against_the_model_that_was_quantized() -> None:
    """Unless another is named."""
    gate = {"models": ["nf4"], "max_worse": 0.1}
    quantize = [{"method": "bitsandbytes"}]
    for finetune, expected in (
        (None, "base"),
        ({}, "merged"),
        ({"adapter": "mine"}, "merged"),
        ({"method": "full"}, "finetuned"),
    ):
        plan = plan_of(finetune=finetune, quantize=quantize, gate=gate)
        assert plan.report.gate is not None
        assert plan.report.gate.against == expected


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"data": {"train": "a", "test": "b"}}, "template: required for format prompt_completion"),
        ({"data": {**DATA, "template": {"prompt": "a", "completion": "b"}}}, "template: has no"),
        ({"data": {**DATA, "too_long": "split"}}, "too_long: only text can be split"),
        (
            {"data": {**DATA, "format": "text", "loss_on": "last_turn"}},
            "loss_on: has no meaning for format text",
        ),
        ({"finetune": {"adapter": "a", "r": 8}}, "r: has no meaning beside `adapter`"),
        ({"finetune": {"init_adapter": "a", "r": 8}}, "r: is what the adapter of"),
        ({"finetune": {"method": "full", "load_in": "nf4"}}, "load_in: belongs to method lora"),
        ({"infer": {"adapter": True}}, "infer.adapter: this run has no adapter"),
        (
            {"finetune": {"method": "full"}, "infer": {"adapter": True}},
            "infer.adapter: this run has no adapter",
        ),
        ({"quantize": [{"method": "gptq", "calibration": {"text_share": 0.5}}]}, "text_share: "),
        ({"data": NO_ROWS, "quantize": [{"method": "gptq"}]}, "data.train: gptq needs training"),
        (
            {"data": NO_ROWS, "quantize": [{"method": "gptq", "calibration": HALF}]},
            "data.train: gptq needs training rows to calibrate on, or a calibration.text alone",
        ),
        (
            {"finetune": {}, "quantize": [{"method": "bitsandbytes", "name": "finetuned"}]},
            "the name 'finetuned' is taken",
        ),
    ],
)
def test_sections_that_do_not_fit_together_are_refused(sections: Any, said: str) -> None:
    """In the words of whoever has to change them."""
    with pytest.raises(ValidationError, match=said):
        plan_of(**sections)


def test_shape_survives_a_dump_of_all_its_fields() -> None:
    """Helm and plans write defaults out; they mean no more than their absence."""
    for finetune in ({"adapter": "mine"}, {"init_adapter": "mine"}, {"method": "full"}):
        run = plan_of(finetune=finetune).run
        assert RunSpec.model_validate(run.model_dump(mode="json")) == run
