"""`explain` says of every key and code what the models, the plan and the errors say."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import BaseModel

from modelmill.cli.codes import ENDS, ON_A_CLUSTER, ends_of
from modelmill.cli.init import example_runs
from modelmill.spec.effect import stages_anew
from modelmill.spec.errors import CLASSES, Retry, SpecError, classes_of
from modelmill.spec.explain import ExplainedKey, explain_key, key_names
from modelmill.spec.profile import Profile
from modelmill.spec.quantize import METHODS
from modelmill.spec.run import RunSpec
from modelmill.spec.schema import sections
from modelmill.spec.settings import UNKEYED

EXAMPLES = example_runs()
NEEDS_MORE = "method: qat"
"""Possible only after `finetune.qat`, so no key of it changes alone."""


def explained(asked: str) -> ExplainedKey:
    """Explain one key."""
    [key] = explain_key(asked, EXAMPLES).keys
    return key


def rows_of(model: type[BaseModel]) -> list[str]:
    """List the keys of a document, as the reference does."""
    return [row.key for section in sections(model.model_json_schema()) for row in section.rows]


def test_key_has_type_limits_default_and_words() -> None:
    """All of it is what the field says."""
    assert explained("finetune.r") == ExplainedKey(
        document="run.yaml",
        key="finetune.r",
        form="",
        type="whole number (at least 1, at most 1024)",
        default="16",
        meaning=str(type(EXAMPLES[0].finetune).model_fields["r"].description),
        anew=(
            *("finetune", "merge", "quantize-gptq-4", "quantize-nf4"),
            *("infer-merged", "infer-gptq-4", "infer-nf4", "report"),
        ),
    )


@pytest.mark.parametrize(
    "asked", ["quantize.gptq.bits", "quantize[].bits", "quantize[0].bits", "quantize.bits"]
)
def test_key_of_a_list_is_found_however_it_is_written(asked: str) -> None:
    """Only what is made of that model is made again."""
    keys = {key.form: key for key in explain_key(asked, EXAMPLES).keys}
    assert {key.key for key in keys.values()} == {"quantize[].bits"}
    assert keys["method: gptq"].anew == ("quantize-gptq-4", "infer-gptq-4", "report")
    assert ("method: rtn" in keys) is (asked != "quantize.gptq.bits")


def test_key_of_a_form_that_no_example_has_is_tried_all_the_same() -> None:
    """In an example that has nothing else in the list."""
    assert explained("quantize.rtn.bits").anew == ("quantize-rtn-4", "infer-rtn-4", "report")


@pytest.mark.parametrize(
    ("asked", "anew"),
    [
        ("model.note", ("report",)),
        ("infer.shots", ("infer-base-own", "report")),
        ("infer.metrics.exact_match", ("report",)),
        ("quantize.gptq.name", ("report",)),
        ("merge.onto", ("merge", "quantize-gptq-4", "infer-merged", "infer-gptq-4", "report")),
        ("max_parallel", ()),
    ],
)
def test_key_says_what_is_computed_anew(asked: str, anew: tuple[str, ...] | None) -> None:
    """A metric is made from answers that are there; a name is a name; a place changes nothing."""
    assert explained(asked).anew == anew


def test_unkeyed_settings_compute_nothing_anew() -> None:
    """What is left out of keys costs a report; but for a source, which enters by its pin."""
    keys = [key for name in UNKEYED if "." in name for key in explain_key(name, EXAMPLES).keys]
    assert len(keys) > len(UNKEYED) // 2
    for key in (key for key in keys if key.form != NEEDS_MORE):
        is_source = key.key in ("finetune.init_adapter", "quantize[].calibration.text")
        assert (key.anew != ("report",)) == is_source


def test_value_that_means_the_same_is_not_taken_for_no_effect() -> None:
    """`infer.dtype: auto` is the profile's, so only some other values change anything."""
    assert explained("infer.dtype").anew == explained("infer.max_new_tokens").anew
    facts = explained("dtype")
    assert (facts.document, facts.anew) == ("profile", explained("infer.dtype").anew)


def test_what_is_computed_anew_follows_from_the_run_that_is_tried() -> None:
    """Without fine-tuning there is nothing of it to do again: the answer is not a list of ours."""
    run = EXAMPLES[0].model_copy(update={"finetune": None, "gate": None})
    schema = RunSpec.model_json_schema()
    [source] = [
        row for each in sections(schema) for row in each.rows if row.key == "data.max_length"
    ]
    assert "finetune" not in (stages_anew([run], source, {}, schema) or ())
    gone = replace(source, key="finetune.r")
    assert stages_anew([run], gone, {}, schema) is None


def test_every_key_of_the_reference_is_explained() -> None:
    """Each row can be asked for by its own name.

    Where nothing is said to be computed anew, the key has one value only, or another value needs
    more than this key changed.
    """
    silent = []
    for name in {*rows_of(RunSpec), *rows_of(Profile)}:
        keys = explain_key(name, EXAMPLES).keys
        assert name in [key.key for key in keys]
        silent += [key for key in keys if key.key == name and key.anew is None]
    silent = [key for key in silent if key.form != NEEDS_MORE]
    assert {key.key for key in silent} <= {
        *("data.template", "data.dataset_text_field", "finetune.adapter", "merge.onto"),
        *("finetune.qat", "finetune.qat.bits", "finetune.qat.group_size"),
        *("quantize[].method", "quantize[].type", "infer.metrics.plugins"),
        "quantize[].calibration.text_share",
        *("data.train.source", "data.train.weight"),
    }


def test_section_lists_its_keys_and_says_what_it_is() -> None:
    """Every form of an item of a list is there."""
    data = explain_key("data", EXAMPLES)
    assert data.about == "Required. What the model learns from and what it is judged on."
    assert [key.key for key in data.keys] == [k for k in rows_of(RunSpec) if k.startswith("data.")]
    assert {key.form for key in explain_key("quantize", EXAMPLES).keys} == {
        f"method: {method}" for method in METHODS
    }


def test_key_of_a_kind_of_stage_has_the_default_of_that_kind() -> None:
    """A model needs more memory than the default of everything."""
    key = explained("stages.finetune.memory")
    assert (key.key, key.default) == ("stages.finetune.memory", '"48Gi"')
    assert explained("stages.*.memory").default == '"2Gi"'


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("finetune.lora_alfa", "did you mean 'finetune.lora_alpha'?"),
        ("lora_alpha", "did you mean 'finetune.lora_alpha'?"),
        ("quantise", "did you mean 'quantize'?"),
        ("stages.fintune.gpu", "stages.*.gpu"),
        ("xyzzy", "sections: model, data, finetune"),
    ],
)
def test_wrong_key_is_answered_with_the_nearest(asked: str, said: str) -> None:
    """Also by its last part alone."""
    with pytest.raises(SpecError, match="there is no such key") as caught:
        explain_key(asked, EXAMPLES)
    assert said in str(caught.value)
    assert asked not in key_names()


@pytest.mark.parametrize("error", CLASSES)
def test_code_of_a_stage_says_meaning_retry_and_advice(error: type) -> None:
    """They are the error's own; narrower causes that share the code are told apart."""
    ends = [end for end in ends_of(error.exit_code) if end.of != ON_A_CLUSTER]
    assert [end.name for end in ends] == [each.__name__ for each in classes_of(error.exit_code)]
    for end, each in zip(ends, classes_of(error.exit_code), strict=True):
        assert end.meaning == (each.__doc__ or "").splitlines()[0]
        assert end.advice == each.advice
        assert end.retry.startswith(f"{each.retry.value}: ")


def test_code_of_a_command_about_a_cluster_is_told_apart() -> None:
    """`3` is nothing that a stage ends with; `79` is both."""
    assert [end.of for end in ends_of(3)] == [ON_A_CLUSTER]
    assert len(ends_of(79)) == 2
    assert [end.retry for end in ends_of(137)] == [f"counted: {Retry.COUNTED.words}"]
    assert "defect" in ends_of(99)[0].meaning
    assert all(end.advice for end in ENDS if end.code)


def test_explain_prints_and_ends_with_64_for_a_wrong_key(tmp_path: Path) -> None:
    """The command says what the functions above say, in each form."""

    def explain(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "modelmill", "explain", *arguments],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "80"},
            capture_output=True,
            text=True,
            check=False,
        )

    assert "computed anew  finetune, merge, " in explain("finetune.r").stdout
    assert json.loads(explain("finetune.r", "-o", "json").stdout)["keys"][0]["default"] == "16"
    assert "what to do: " in explain("74", "-o", "plain").stdout
    assert [end["code"] for end in json.loads(explain("79", "-o", "json").stdout)] == [79, 79]
    wrong = explain("finetune.lora_alfa")
    assert (wrong.returncode, wrong.stdout) == (64, "")
    assert "did you mean" in wrong.stderr
    assert list(tmp_path.iterdir()) == []
