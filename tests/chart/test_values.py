"""What a user writes in values is what the conductor reads, or is refused in words."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import helm_python
import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from modelmill.conduct.doctor import OLDEST
from modelmill.spec.canonical import sha256_of
from modelmill.spec.loading import load_profile, load_run, parse_run, parse_yaml
from modelmill.spec.profile import Profile
from modelmill.spec.values import Values
from tests.unit.spec.strategies import profiles, runs

from .conftest import CHART, PROFILE, RUN, Render, one, values

MIXED = [
    {"source": "hf:datasets/org/rows/data", "weight": 0.5},
    {"source": "train.csv", "weight": 2},
]
CALIBRATED = {"method": "gptq", "calibration": {"text": "./local.txt"}}


def digest(model: Any) -> str:
    """Digest a parsed model, as keys and plans do."""
    return sha256_of(model.model_dump(mode="json"))


@given(data=runs(), profile=profiles())
@settings(max_examples=20)
def test_run_and_profile_come_through_helm_as_they_are(
    render: Render, data: dict[str, Any], profile: dict[str, Any], tmp_path_factory: Any
) -> None:
    """A run file, and the same under `run:` in values, are one spec with one digest."""
    config = one(
        render({"run": data, "profile": profile, "submitted": True}), "ConfigMap", "config"
    )
    folder: Path = tmp_path_factory.mktemp("config")
    for name, text in config["data"].items():
        (folder / name).write_text(text, encoding="utf-8")
    assert digest(load_run(folder / "run.json")) == digest(parse_run(data, "run"))
    assert load_profile(folder / "profile.json") == Profile.model_validate(profile)


@given(data=runs(), profile=profiles())
@settings(max_examples=20)
def test_values_that_a_program_writes_mean_what_a_person_meant(
    render: Render, data: dict[str, Any], profile: dict[str, Any]
) -> None:
    """Every default written out, every absence as null: the same spec with the same digest."""
    given = Values.model_validate({"run": data, "profile": profile, "submitted": True})
    config = one(render(given.model_dump(mode="json")), "ConfigMap", "config")
    assert digest(parse_run(json.loads(config["data"]["run.json"]), "run")) == digest(given.run)
    assert Profile.model_validate_json(config["data"]["profile.json"]) == given.profile


def test_values_that_ship_are_the_defaults_of_the_code() -> None:
    """A default that stands twice cannot become two."""
    shipped, _ = parse_yaml((CHART / "values.yaml").read_text(encoding="utf-8"), "values.yaml")
    assert isinstance(shipped, dict)
    assert shipped.pop("run") == {}
    given = Values.model_validate({**shipped, "run": RUN})
    assert given == Values.model_validate({"run": RUN})


def test_values_in_the_readme_can_be_installed(render: Render) -> None:
    """What a page shows is what the chart takes."""
    page = (CHART / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    shown, _ = parse_yaml(block, "README.md")
    assert isinstance(shown, dict)
    assert one(render(shown), "Job")


def test_chart_and_package_have_one_version(chart: helm_python.Chart) -> None:
    """The chart of a release starts the images of that release."""
    assert chart.metadata["appVersion"] == chart.version == version("modelmill")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rnu": {}}, "'rnu' not allowed"),
        ({"run": {**RUN, "sed": 1}}, "'sed' not allowed"),
        ({"run": {**RUN, "finetune": {"lora_r": 8}}}, "'lora_r' not allowed"),
        ({"run": {**RUN, "seed": "one"}}, "got string, want integer"),
        ({"run": {**RUN, "seed": 0.5}}, "want integer"),
        ({"run": {"model": {"source": "s3://a/b"}}}, "missing property 'data'"),
        ({"run": {}}, "missing properties 'model', 'data'"),
        ({"profile": {**PROFILE, "stage": {}}}, "'stage' not allowed"),
        ({"profile": {**PROFILE, "stages": {"finetun": {}}}}, "invalid propertyName 'finetun'"),
        ({"profile": {**PROFILE, "stages": {"merge": {"mem": "1Gi"}}}}, "'mem' not allowed"),
        ({"profile": {**PROFILE, "stages": {"merge": {"memory": "1 GB"}}}}, "does not match"),
        ({"profile": {**PROFILE, "store": {"access_key": "x"}}}, "'access_key' not allowed"),
        ({"rbac": {"create": "yes"}}, "want boolean"),
        # Nothing in it that a submitter may not create.
        ({"network_policy": {"create": True}}, "'network_policy' not allowed"),
    ],
)
def test_typo_fails_before_anything_is_created(
    render: Render, wrong: dict[str, Any], said: str
) -> None:
    """The schema is closed and names the key."""
    with pytest.raises(helm_python.HelmValuesError, match="values don't meet") as caught:
        render({**values(), **wrong})
    assert said in str(caught.value)


def test_global_values_of_a_parent_chart_are_let_through(render: Render) -> None:
    """Helm puts `global` into every chart; it is the only key that is not ours."""
    assert render(values(**{"global": {"anything": 1}}))


@pytest.mark.parametrize(
    ("wrong", "name", "said"),
    [
        ({}, "a-name-of-21-letters-", "at most 20"),
        ({}, "1st", "starting with a letter"),
        ({"profile": {}}, "r", "profile.images.registry"),
        ({"profile": {}}, "r", "profile.store.url"),
        ({"run": {**RUN, "model": {"source": "./model"}}}, "r", "'./model' is a local path"),
        ({"run": {**RUN, "finetune": {"adapter": "./mine"}}}, "r", "'./mine' is a local path"),
        (
            {"run": {**RUN, "data": {**RUN["data"], "eval": "eval.jsonl"}}},
            "r",
            "run.data.eval: 'eval.jsonl' is a local path",
        ),
        (
            {"run": {**RUN, "data": {**RUN["data"], "train": MIXED}}},
            "r",
            "run.data.train[1].source: 'train.csv' is a local path",
        ),
        (
            {"run": {**RUN, "quantize": [{"method": "rtn"}, CALIBRATED]}},
            "r",
            "run.quantize[1].calibration.text: './local.txt' is a local path",
        ),
        (
            {"run": {**RUN, "model": {**RUN["model"], "note": "hf_" + "aB3" * 10}}},
            "r",
            "looks like a credential",
        ),
        (
            {"run": {**RUN, "model": {**RUN["model"], "note": "x" * 70_000}}},
            "r",
            "more than 64 KiB",
        ),
        (
            {"profile": {**PROFILE, "pods": {"annotations": {"a": "AKIA" + "ABCDEFGH12345678"}}}},
            "r",
            "looks like a credential",
        ),
        (
            {"run": {**RUN, "model": {**RUN["model"], "note": "https://me:word@host/x"}}},
            "r",
            "looks like a credential",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_words(
    render: Render, wrong: dict[str, Any], name: str, said: str
) -> None:
    """What a schema cannot tell, the chart does, before anything is created."""
    with pytest.raises(helm_python.HelmRenderError) as caught:
        render({**values(), **wrong}, name=name)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "profile",
    [
        {"stages": {"merge": {"shards": 4}}},
        {"stages": {"quantize": {"ranks": 2}}},
        {"stages": {"infer": {"fsdp": "always"}}},
        {"stages": {"finetune": {"ranks": 2}}},
        {"stages": {"finetune": {"gpu": 2, "ranks": 4}}},
    ],
)
def test_what_a_kind_cannot_have_is_refused_as_the_conductor_would(
    render: Render, profile: dict[str, Any]
) -> None:
    """In the same words, but before anything is created."""
    with pytest.raises(ValidationError) as theirs:
        Profile.model_validate(profile)
    [said] = [each["msg"].removeprefix("Value error, ") for each in theirs.value.errors()]
    with pytest.raises(helm_python.HelmRenderError) as ours:
        render(values(profile))
    assert f"profile.{said}" in str(ours.value)


@pytest.mark.parametrize(
    "profile",
    [
        {"stages": {"infer": {"shards": 4}, "merge": {"shards": 1, "ranks": 0, "fsdp": "auto"}}},
        {"stages": {"finetune": {"gpu": 4, "ranks": 4, "fsdp": "always"}}},
        {"accelerator": "cpu", "stages": {"finetune": {"ranks": 2}}},
    ],
)
def test_what_a_kind_can_have_is_let_through(render: Render, profile: dict[str, Any]) -> None:
    """What the conductor takes, the chart takes."""
    assert Profile.model_validate(profile)
    assert render(values(profile))


def test_all_problems_are_named_at_once(render: Render) -> None:
    """One look at the message is enough."""
    wrong = {"run": {**RUN, "model": {"source": "m"}}, "profile": {}}
    with pytest.raises(helm_python.HelmRenderError) as caught:
        render(wrong, name="9")
    for words in ("release name", "images.registry", "store.url", "run.model.source"):
        assert words in str(caught.value)


def test_submitted_run_may_name_what_the_submitter_has_uploaded(render: Render) -> None:
    """A local path is then a name for a copy in the store."""
    local = {**RUN, "model": {"source": "./model"}}
    assert render({**values(), "run": local, "submitted": True})
    calibrated = {**RUN, "quantize": [CALIBRATED]}
    assert render({**values(), "run": calibrated, "submitted": True})


def test_sources_on_a_hub_need_no_submitter(render: Render) -> None:
    """A cluster reads them itself."""
    data = {**RUN["data"], "train": MIXED[:1], "test": "hf:datasets/org/rows@v1/test.jsonl"}
    quantize = [{"method": "gptq", "calibration": {"text": "hf:datasets/org/texts@v1/text.txt"}}]
    run = {**RUN, "model": {"source": "hf:org/name"}, "data": data, "quantize": quantize}
    assert render(values(run=run))


def test_schema_that_ships_is_closed_everywhere() -> None:
    """No mapping with fixed keys takes another one."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    open_ones = [
        name
        for name, node in {"": schema, **schema["$defs"]}.items()
        if "properties" in node and node.get("additionalProperties") is not False
    ]
    assert open_ones == []


def test_chart_and_doctor_want_the_same_kubernetes() -> None:
    """Helm refuses an older cluster before anything is created; doctor says it before that."""
    text = (CHART / "Chart.yaml").read_text(encoding="utf-8")
    assert f'kubeVersion: ">={OLDEST[0]}.{OLDEST[1]}.0-0"' in text
