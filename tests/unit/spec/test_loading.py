"""What a user writes becomes one model, however it is spelled, or a list of all problems."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from ruamel.yaml import YAML

from modelmill.spec.canonical import sha256_of
from modelmill.spec.errors import InputMissing, SpecError
from modelmill.spec.loading import load_profile, load_run, parse_run, parse_yaml
from modelmill.spec.template import fill_template, template_fields

from .strategies import runs

GOOD = """\
model: {source: model}
data:
  train: train.jsonl
  test: test.jsonl
  template: {prompt: "{question}", completion: "{answer}"}
"""


def problems_of(tmp_path: Path, text: str) -> list[str]:
    """Load a text that is wrong and list what is said about it."""
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_run(path)
    return [str(problem).strip() for problem in caught.value.problems]


def as_yaml(data: Any, path: Path) -> None:
    """Write data the way a person would."""
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(data, file)


def through_helm(data: Any) -> Any:
    """Do what Go does to numbers on their way through Helm: all become float64."""
    if isinstance(data, dict):
        return {key: through_helm(value) for key, value in data.items()}
    if isinstance(data, list):
        return [through_helm(value) for value in data]
    if isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    return data


@given(data=runs())
def test_yaml_json_and_helm_give_one_digest(
    data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Hashes are taken over what is meant, not over how it is spelled."""
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    as_yaml(data, path)
    spellings = [
        load_run(path),
        parse_run(json.loads(json.dumps(data)), "json"),
        parse_run(through_helm(data), "values.yaml"),
    ]
    assert len({sha256_of(run.model_dump(mode="json")) for run in spellings}) == 1


def test_numbers_are_those_of_yaml_1_2() -> None:
    """`2e-4` is a number, `no` is a word and `0o17` is fifteen."""
    data, _ = parse_yaml("a: 2e-4\nb: no\nc: 0o17\n", "x")
    assert data == {"a": 2e-4, "b": "no", "c": 15}


def test_every_problem_is_named_at_once_with_its_line(tmp_path: Path) -> None:
    """One look at the message is enough to mend the file."""
    text = GOOD + (
        "finetune: {lora_dropuot: 0.1, r: 0}\n"
        "learning_rate: 3\n"
        "quantize: [{method: gptq, bits: 5}, {method: gtpq}]\n"
    )
    assert problems_of(tmp_path, text) == [
        "line 6: finetune.r: should be greater than or equal to 1 (got 0)",
        "line 6: finetune.lora_dropuot: unknown key; did you mean 'lora_dropout'?",
        "line 7: learning_rate: unknown key; did you mean 'finetune.learning_rate'?",
        "line 8: quantize[0].bits: should be 2, 3, 4 or 8 (got 5)",
        (
            "line 8: quantize[1].method: should be one of 'gptq', 'autoround', 'rtn', "
            "'qat', 'bitsandbytes', 'bitnet'"
        ),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gate: {models: [gptq-4], max_worse: 0}\n", "'gptq-4' is not a model of this run"),
        (
            (
                "finetune: {}\n"
                "gate: {models: [merged], against: base, metric: exact_match, max_worse: 0}\n"
            ),
            "'exact_match' is not computed",
        ),
        ("quantize: [{method: gptq}, {method: gptq}]\n", "two models are called 'gptq-4'"),
        ("quantize: [{method: gptq, name: merged}]\n", "is taken"),
        ("finetune: {batch_size: 8, micro_batch_size: 3}\n", "not a multiple"),
        ("seed: 9007199254740993\n", "less than or equal to 4294967295"),
        ("model: {source: x}\n", "duplicate key"),
        ("finetune: [\n", "line 7"),
    ],
)
def test_impossible_combination_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """What cannot work is said before anything runs."""
    assert said in " ".join(problems_of(tmp_path, GOOD + text))


@pytest.mark.parametrize("source", ["hf:datasets/a/b/c", "http://x/y", "s3://bucket"])
def test_source_of_an_unknown_kind_is_refused(tmp_path: Path, source: str) -> None:
    """The message says which kinds there are."""
    said = problems_of(tmp_path, GOOD.replace("source: model", f"source: '{source}'"))
    assert len(said) == 1
    assert "s3" in said[0] or "hf:org/name" in said[0]


def test_list_of_sources_is_judged_item_by_item(tmp_path: Path) -> None:
    """What is wrong inside a list is said there, and not that it is no text."""
    items = '[{source: "http://x/y"}, {sorce: a.csv, weight: 0}]'
    assert problems_of(tmp_path, GOOD.replace("train: train.jsonl", f"train: {items}")) == [
        (
            "line 3: data.train[0].source: 'http://' is not a kind of source; "
            "use s3://, hf: or a local path"
        ),
        "line 3: data.train[1].source: required and not given",
        "line 3: data.train[1].weight: should be greater than 0 (got 0)",
        "line 3: data.train[1].sorce: unknown key; did you mean 'source'?",
    ]


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("[]", "the list is empty"),
        ("[{source: a.csv}, {source: a.csv}]", "'a.csv' stands twice; give it the sum"),
        ("5", "should be a valid string or should be a valid list (got 5)"),
        ("hf:org/name", "data on a hub is hf:datasets/org/name@revision/path"),
    ],
)
def test_training_source_that_cannot_be(tmp_path: Path, train: str, said: str) -> None:
    """One sentence for one mistake."""
    problems = problems_of(tmp_path, GOOD.replace("train: train.jsonl", f"train: {train}"))
    assert len(problems) == 1
    assert said in problems[0]


def test_list_of_one_source_is_that_source(tmp_path: Path) -> None:
    """One meaning has one form, and so the same keys."""
    path = tmp_path / "run.yaml"
    path.write_text(GOOD.replace("train: train.jsonl", "train: [{source: train.jsonl}]"))
    assert load_run(path).data.train == "train.jsonl"


@pytest.mark.parametrize("template", ["{a.b}", "{a[0]}", "{a!r}", "{}", "{", "}", "{a:>9}"])
def test_template_that_reaches_into_objects_is_refused(tmp_path: Path, template: str) -> None:
    """A template can name fields and nothing else."""
    said = problems_of(tmp_path, GOOD.replace('"{question}"', f'"{template}"'))
    assert said[0].startswith("line 5: data.template")


def test_template_fills_fields_and_leaves_their_braces() -> None:
    """What a field holds is never read as a template."""
    assert template_fields("{{}} {a} {b} {a}") == ("a", "b")
    assert fill_template("{{}} {a} {b}", {"a": "{b}", "b": "}"}) == "{} {b} }"


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing file is an input that is missing, not a wrong spec."""
    with pytest.raises(InputMissing, match="no such file") as raised:
        load_run(tmp_path / "nothing.yaml")
    assert "modelmill init" in raised.value.fix
    with pytest.raises(InputMissing, match="no such file") as raised:
        load_profile(tmp_path / "nothing.yaml")
    assert "--profile" in raised.value.fix


def test_file_without_anything_in_it_is_said_in_words_of_yaml(tmp_path: Path) -> None:
    """Nobody who writes one knows the names of our classes."""
    assert problems_of(tmp_path, "") == ["should be a mapping of keys to values (got nothing)"]


def test_alias_bomb_is_refused() -> None:
    """A few lines that unfold into millions of values cost nothing."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(SpecError, match="aliases"):
        parse_yaml("\n".join(lines), "bomb")


def test_keys_of_another_method_are_no_keys_here(tmp_path: Path) -> None:
    """Neither offered nor listed: whoever followed that would be sent back."""
    text = GOOD + "quantize: [{method: bitsandbytes, bits: 4}, {method: gptq, bit: 4}]\n"
    assert problems_of(tmp_path, text) == [
        "line 6: quantize[0].bits: unknown key; known here: double_quant, method, name, type",
        "line 6: quantize[1].bit: unknown key; did you mean 'bits'?",
    ]


def test_setting_from_the_command_line_wins(tmp_path: Path) -> None:
    """`--set` reaches into mappings and lists, and is checked like the file."""
    path = tmp_path / "run.yaml"
    path.write_text(GOOD + "quantize: [{method: gptq}]\n", encoding="utf-8")
    run = load_run(path, ["finetune.r=8", "quantize.0.bits=8"])
    assert run.finetune is not None
    assert (run.finetune.r, run.models()) == (8, ("base", "merged", "gptq-8"))
    with pytest.raises(SpecError, match="did you mean"):
        load_run(path, ["finetune.lora_r=8"])


def test_profile_is_optional() -> None:
    """A single machine needs no profile."""
    assert load_profile(None).max_parallel == 1


def test_one_slice_field_and_a_list_of_it_are_one_run() -> None:
    """A list of one digests as the field alone, which is what older plans say."""
    parse = {"model": {"source": "m"}, "data": YAML(typ="safe").load(GOOD)["data"]}
    one, listed, two = (
        parse_run({**parse, "report": {"slice": fields}}, "run")
        for fields in ("level", ["level"], ["level", "topic"])
    )
    assert one == listed
    assert one.report.slice == "level"
    assert two.report.slice == ("level", "topic")


def test_run_without_plugins_is_written_as_before_there_were_any() -> None:
    """An upgrade does not give a plan another digest, and so not another report."""
    run = parse_run({"model": {"source": "m"}, "data": YAML(typ="safe").load(GOOD)["data"]}, "run")
    assert list(run.infer.metrics.model_dump()) == ["nll", "exact_match", "sql_execution"]


def test_what_is_wrong_with_plugins_and_slices_is_said(tmp_path: Path) -> None:
    """Names have a grammar, settings are JSON that Helm keeps, and a gate needs its metric."""
    text = (
        "infer: {metrics: {plugins: {Rouge-L: {}, rouge: 1, fine: {a: .nan}}}}\n"
        "gate: {models: [base], metric: rouge, max_worse: 0}\n"
        "report: {slice: [a, a]}\n"
    )
    said = problems_of(tmp_path, GOOD + text)
    assert len(said) == 5
    for start in (
        "line 6: infer.metrics.plugins.Rouge-L",
        "line 6: infer.metrics.plugins.rouge: should be a mapping of keys to values",
        "line 6: infer.metrics.plugins.fine.a: should be a finite number",
        "line 7: gate.metric: should be 'nll', ",
        "line 8: report.slice: a field is named twice",
    ):
        assert any(each.startswith(start) for each in said), start
    large = "infer: {metrics: {plugins: {fine: {a: [9007199254740993]}}}}\n"
    (said_of_large,) = problems_of(tmp_path, GOOD + large)
    assert "9007199254740993 is larger than what Helm keeps" in said_of_large
    gate = "gate: {models: [base], against: base, metric: plugins.fine, max_worse: 0}\n"
    assert "line 6: gate.metric: 'plugins.fine' is not computed; add it to infer.metrics" in (
        problems_of(tmp_path, GOOD + gate)
    )
