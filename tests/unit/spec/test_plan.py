"""Keys change when, and only when, something that decides a result changes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.spec.layout import make_plan, sources_of
from modelmill.spec.plan import RECIPES, Plan, plan_bytes
from modelmill.spec.profile import Facts
from modelmill.spec.run import RunSpec
from modelmill.spec.settings import Pin

from .strategies import runs

GOLDEN = Path(__file__).parent / "golden_keys.json"
CPU = Facts(accelerator="cpu", dtype="float32")

DEMO: dict[str, Any] = {
    "model": {"source": "model"},
    "data": {
        "train": "train.jsonl",
        "test": "test.jsonl",
        "template": {"prompt": "{question}\n", "completion": "{answer}"},
    },
    "finetune": {},
    "quantize": [{"method": "gptq"}, {"method": "bitsandbytes"}],
}


def plan_of(
    data: Mapping[str, Any],
    facts: Facts = CPU,
    again: Mapping[str, int] | None = None,
    changed: str = "",
) -> Plan:
    """Plan a run whose sources have made-up pins; `changed` names one with other content."""
    run = RunSpec.model_validate(data)
    pins = {
        source: Pin(address=source, digest=f"{source}{'-new' if source == changed else ''}")
        for source in sources_of(run)
    }
    return make_plan(run, facts, pins, again)


def keys_of(plan: Plan) -> dict[str, str]:
    """List the keys by stage."""
    return {stage.name: stage.key for stage in plan.stages}


def changed_stages(before: Plan, after: Plan) -> set[str]:
    """List the stages of both plans whose keys differ."""
    old, new = keys_of(before), keys_of(after)
    return {name for name in old.keys() & new.keys() if old[name] != new[name]}


def test_keys_are_what_they_were_when_artifacts_were_committed() -> None:
    """An upgrade of modelmill invalidates nothing; raise a recipe number to mean otherwise."""
    present = {"recipes": dict(RECIPES), "keys": keys_of(plan_of(DEMO))}
    assert present == json.loads(GOLDEN.read_text(encoding="utf-8"))


@given(runs())
def test_plan_survives_its_own_text(data: dict[str, Any]) -> None:
    """A stage that reads a plan sees what the conductor planned."""
    plan = plan_of(data)
    assert Plan.model_validate_json(plan_bytes(plan)) == plan
    assert plan_bytes(Plan.model_validate_json(plan_bytes(plan))) == plan_bytes(plan)


@given(runs())
def test_inputs_come_before_the_stages_that_need_them(data: dict[str, Any]) -> None:
    """Plan order is an order in which stages can run, and inputs carry the right keys."""
    seen: dict[str, str] = {}
    for stage in plan_of(data).stages:
        for each in stage.inputs:
            assert seen[each.stage] == each.key
        seen[stage.name] = stage.key


@given(runs(), st.sampled_from(["train.jsonl", "test.jsonl", "eval.jsonl"]))
def test_changed_source_changes_exactly_what_depends_on_it(
    data: dict[str, Any], source: str
) -> None:
    """Every descendant of a changed source has a new key, and nothing else has."""
    before, after = plan_of(data), plan_of(data, changed=source)
    reads = {"test.jsonl": "fetch-test"}.get(source, "fetch-data")
    expected: set[str] = set()
    if any(s == source for s in sources_of(before.run)):
        expected.add(reads)
        for stage in before.stages:
            if any(each.stage in expected for each in stage.inputs):
                expected.add(stage.name)
    assert changed_stages(before, after) == expected & keys_of(before).keys()


def test_changed_test_row_retrains_nothing() -> None:
    """Only infer looks at test rows."""
    changed = changed_stages(plan_of(DEMO), plan_of(DEMO, changed="test.jsonl"))
    assert changed == {name for name in keys_of(plan_of(DEMO)) if "infer" in name} | {"fetch-test"}


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [
        ("finetune", "micro_batch_size", 2),
        ("finetune", "gradient_checkpointing", True),
        ("report", "samples", 1),
        ("model", "note", "a word"),
    ],
)
def test_what_cannot_change_a_result_changes_no_key(
    section: str, setting: str, value: object
) -> None:
    """Memory, naming and showing are not part of a recipe."""
    other = {**DEMO, section: {**DEMO.get(section, {}), setting: value}}
    assert changed_stages(plan_of(DEMO), plan_of(other)) == set()


def test_renamed_quantization_is_found_again() -> None:
    """A name is for people; the artifact under it is the same."""
    other = {**DEMO, "quantize": [{"method": "gptq", "name": "small"}, {"method": "bitsandbytes"}]}
    assert keys_of(plan_of(other))["quantize-small"] == keys_of(plan_of(DEMO))["quantize-gptq-4"]


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"finetune": {"r": 8}}, "finetune"),
        ({"finetune": {"learning_rate": 1e-3}}, "finetune"),
        ({"merge": {"dtype": "float16"}}, "merge"),
        ({"infer": {"max_new_tokens": 7}}, "infer-base"),
        ({"seed": 1}, "fetch-data"),
    ],
)
def test_what_can_change_a_result_changes_its_stage(change: dict[str, Any], first: str) -> None:
    """The first stage that reads a setting gets a new key; those before keep theirs."""
    before, after = plan_of(DEMO), plan_of({**DEMO, **change})
    changed = changed_stages(before, after)
    order = list(keys_of(before))
    assert first in changed
    assert not changed & set(order[: order.index(first)])


def test_changing_only_the_quantization_reuses_finetune_and_merge() -> None:
    """Again with 3 bits costs a quantize and an infer."""
    after = plan_of({**DEMO, "quantize": [{"method": "gptq", "bits": 3}]})
    new = set(keys_of(after).values()) - set(keys_of(plan_of(DEMO)).values())
    assert {name for name, key in keys_of(after).items() if key in new} == {
        "quantize-gptq-3",
        "infer-gptq-3",
    }


def test_accelerator_matters_where_numbers_depend_on_it() -> None:
    """A merge on another class of device is the same merge of the same adapter."""
    cuda = plan_of(DEMO, Facts(accelerator="cuda", dtype="float32"))
    changed = changed_stages(plan_of(DEMO), cuda)
    assert "finetune" in changed
    assert not changed & {"fetch-model", "fetch-data", "fetch-test"}
    quantize_only = {k: v for k, v in DEMO.items() if k != "finetune"}
    assert "fetch-model" not in changed_stages(
        plan_of(quantize_only), plan_of(quantize_only, Facts(accelerator="cuda", dtype="float32"))
    )


def test_again_computes_a_stage_and_what_follows() -> None:
    """`--again merge` leaves the fine-tune alone."""
    changed = changed_stages(plan_of(DEMO), plan_of(DEMO, again={"merge": 1}))
    assert "merge" in changed
    assert "infer-merged" in changed
    assert not changed & {"finetune", "infer-base", "fetch-data"}


def calibrated(**calibration: object) -> dict[str, Any]:
    """Ask for GPTQ on something, twice, and for NF4, which looks at nothing."""
    gptq = {"method": "gptq", "calibration": calibration}
    return {**DEMO, "quantize": [gptq, {**gptq, "bits": 3}, {"method": "bitsandbytes"}]}


def inputs_of(plan: Plan, stage: str) -> dict[str, str]:
    """List the inputs of a stage by role."""
    return {each.role: each.stage for each in plan.stage(stage).inputs}


def test_text_to_calibrate_on_has_a_stage_of_its_own() -> None:
    """It is fetched once, stands for the training rows or beside them, and retrains nothing."""
    rows, text = plan_of(calibrated()), plan_of(calibrated(text="c4.txt"))
    mix = plan_of(calibrated(text="c4.txt", text_share=0.5))
    changed = {"quantize-gptq-4", "quantize-gptq-3", "infer-gptq-4", "infer-gptq-3"}
    assert changed_stages(rows, text) == changed_stages(text, mix) == changed
    assert keys_of(text).keys() - keys_of(rows).keys() == {"fetch-text"}
    assert inputs_of(text, "quantize-gptq-4") == {"model": "merge", "text": "fetch-text"}
    both = {"model": "merge", "data": "fetch-data", "text": "fetch-text"}
    assert inputs_of(mix, "quantize-gptq-4") == both
    other = plan_of(calibrated(text="c4.txt"), changed="c4.txt")
    assert changed_stages(text, other) == changed | {"fetch-text"}
    moved = plan_of(calibrated(text="s3://texts/c4.txt"))
    assert "fetch-text" in changed_stages(text, moved)


def test_texts_to_calibrate_on_may_differ() -> None:
    """Two methods, two texts, two stages that fetch them; the key is of the text, not its place."""
    run = calibrated(text="c4.txt")
    run["quantize"][1] = {"method": "gptq", "bits": 3, "calibration": {"text": "code.jsonl"}}
    plan = plan_of(run)
    assert inputs_of(plan, "quantize-gptq-3")["text"] == "fetch-text-2"
    alone = plan_of({**DEMO, "quantize": run["quantize"][1:]})
    assert keys_of(alone)["fetch-text"] == keys_of(plan)["fetch-text-2"]
    assert keys_of(alone)["quantize-gptq-3"] == keys_of(plan)["quantize-gptq-3"]
