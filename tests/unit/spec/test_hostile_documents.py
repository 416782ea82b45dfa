"""A document that is built to do harm, or holds a secret by mistake, is refused in words.

Every case is a real file; what is checked is what a user would read.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.spec.errors import Problem, SpecError
from modelmill.spec.loading import load_profile, load_run, parse_run
from modelmill.spec.redaction import redacted, secret_in, secrets_in

GOOD = """\
model: {source: model}
data:
  train: train.jsonl
  test: test.jsonl
  template: {prompt: "{question}", completion: "{answer}"}
"""

# Put together here, so that no scanner takes this file for a leak.
AWS_ID = "AKIA" + "IOSFODNN7EXAMPLE"
HF_TOKEN = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ012345"
GITHUB = "ghp_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789"
PRIVATE_KEY = "-----BEGIN RSA " + "PRIVATE KEY-----"
USER_AND_PASSWORD = "https://alice:" + "opensesame@store.example.com/x"
SIGNED = "https://b.example.com/k?X-Amz-" + "Signature=0123456789abcdef"

BOMBS = {
    "brackets": ("x: " + "[" * 30_000, "line 6: nested deeper than 32 levels"),
    "indentation": (
        "x:\n" + "".join(f"{' ' * depth}-\n" for depth in range(1, 300)),
        "nested deeper than 32 levels",
    ),
    "dashes on one line": ("x:\n  " + "- " * 3_000 + "1\n", "line 7: nested deeper"),
    "alias of itself": ("x: &a [*a]\n", "32 levels once aliases are followed"),
    "merge of itself": ("x: &a {<<: *a}\n", "32 levels once aliases are followed"),
    "aliases of aliases": (
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        "more than 20000 values once aliases are followed",
    ),
    "aliases of a long text": (
        f"x: &a '{'a' * 16_000}'\ny: [{', '.join(['*a'] * 50)}]\n",
        "more than 262144 characters once aliases are followed",
    ),
    "one huge value": (f"x: '{'a' * 20_000}'\n", "line 6: a value of 20000 characters; at most"),
    "one huge file": (f"# {'a' * 70_000}\n", "larger than 64 KiB"),
    "one huge number": (f"seed: {'9' * 5_000}\n", "4300 digits"),
    "call of a function": (
        "x: !!python/object/apply:os.system ['true']\n",
        "line 6: could not determine a constructor",
    ),
    "key that is a list": ("? [a]\n: b\n", "line 6: a key must be a text"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bomb_is_refused_with_the_limit_it_breaks(tmp_path: Path, case: str) -> None:
    """A few bytes cannot become gigabytes, or end the interpreter; the limit is in the words."""
    more, said = BOMBS[case]
    path = tmp_path / "run.yaml"
    path.write_text(GOOD + more, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_run(path)
    assert len(caught.value.problems) == 1
    assert said in str(caught.value)


@pytest.mark.parametrize("load", [load_run, load_profile])
def test_file_without_an_end_is_not_read_to_its_end(tmp_path: Path, load: object) -> None:
    """Only as much is read as can be a run, whatever the file is."""
    path = tmp_path / "endless.yaml"
    path.symlink_to("/dev/zero")
    assert callable(load)
    with pytest.raises(SpecError, match="larger than 64 KiB"):
        load(path)


def test_nesting_within_the_limit_is_no_bomb(tmp_path: Path) -> None:
    """What is said about such a file is what is wrong with its keys."""
    path = tmp_path / "run.yaml"
    path.write_text(f"{GOOD}x: {'[' * 31}{']' * 31}\n", encoding="utf-8")
    with pytest.raises(SpecError, match="x: unknown key"):
        load_run(path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.template=" + '{"a":' * 5_000 + "1" + "}" * 5_000, "nested deeper than 32 levels"),
        ("data.test=" + "[" * 60_000, "nested deeper than 32 levels"),
        ("data.template.prompt=" + "a" * 20_000, "a value of 20000 characters"),
        ("data.test=" + "[" + "1," * 25_000 + "1]", "more than 20000 values"),
        ("data.test=" + "a" * 70_000, "larger than 64 KiB"),
        (".".join("a" * 5_000) + "=1", "nested deeper than 32 levels"),
        ("no equals sign " + "x" * 5_000, "write it as KEY.KEY=VALUE"),
    ],
    ids=["deep JSON", "deep YAML", "long text", "many values", "large", "deep key", "no value"],
)
def test_bomb_on_the_command_line_is_refused(tmp_path: Path, override: str, said: str) -> None:
    """`--set` has the limits of the file, and its whole text is not said back."""
    path = tmp_path / "run.yaml"
    path.write_text(GOOD, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_run(path, [override])
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "template",
    [
        "{question.__class__.__init__.__globals__}",
        "{question!r}",
        "{question:>1000000000}",
        "{__import__('os').system('true')}",
        "{0}",
    ],
)
def test_template_that_calls_code_is_refused(tmp_path: Path, template: str) -> None:
    """Fields have names; nothing else of `str.format`, and nothing of Python, has a meaning."""
    path = tmp_path / "run.yaml"
    path.write_text(GOOD.replace("{question}", template), encoding="utf-8")
    with pytest.raises(SpecError, match=r"line 5: data.template: .* is not a field name in braces"):
        load_run(path)


SECRETS = {
    "aws": (f"report: {{slice: {AWS_ID}}}\n", "line 6: report.slice", "an AWS access key id"),
    "hugging face": (
        f"gate: {{models: [{HF_TOKEN}], max_worse: 0}}\n",
        "line 6: gate.models[0]",
        "a Hugging Face token",
    ),
    "github": (f"hub_token: {GITHUB}\n", "line 6: hub_token", "a GitHub token"),
    "private key": (
        f"report:\n  slice: |\n    {PRIVATE_KEY}\n    c2VjcmV0\n",
        "line 7: report.slice",
        "a private key",
    ),
    "address": (
        f"quantize: ['{USER_AND_PASSWORD}']\n",
        "line 6: quantize[0]",
        "a user and a password in an address",
    ),
    "signed": (f"seed: '{SIGNED}'\n", "line 6: seed", "the signature of a pre-signed address"),
    "in a key": (f"{HF_TOKEN}: 1\n", "line 6: ***", "a Hugging Face token"),
}
PARTS = ("AKIA", HF_TOKEN[3:9], GITHUB[4:9], "c2Vj", "opensesame", "0123456789abcdef")


@pytest.mark.parametrize("case", SECRETS)
def test_secret_in_a_run_is_named_by_key_and_line_and_never_said(tmp_path: Path, case: str) -> None:
    """Neither the refusal nor what else is wrong with that key echoes the value."""
    more, where, what = SECRETS[case]
    path = tmp_path / "run.yaml"
    path.write_text(GOOD + more, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_run(path)
    assert f"{where}: looks like {what}" in str(caught.value)
    assert [part for part in PARTS if part in str(caught.value)] == []


def test_secret_in_a_run_that_is_good_otherwise_is_refused(tmp_path: Path) -> None:
    """A note is free text, and goes into reports."""
    path = tmp_path / "run.yaml"
    text = GOOD.replace("source: model", f"source: model, note: 'see {USER_AND_PASSWORD}'")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=r"line 1: model.note: looks like a user and a password"):
        load_run(path)


@pytest.mark.parametrize(
    "text",
    [
        f"note: {HF_TOKEN}\nnote: {HF_TOKEN}\n",
        f"x: *{HF_TOKEN}\n",
        f"x: !{HF_TOKEN} 1\n",
        f"seed: '{'x' * 20} {HF_TOKEN}'\n",
    ],
    ids=["twice", "as an alias", "as a tag", "where the value is cut"],
)
def test_secret_in_a_file_that_cannot_be_read_is_not_said(tmp_path: Path, text: str) -> None:
    """Words of the parser are redacted too."""
    path = tmp_path / "run.yaml"
    path.write_text(GOOD + text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_run(path)
    assert HF_TOKEN[:12] not in str(caught.value)


def test_secret_on_the_command_line_is_refused_and_not_said(tmp_path: Path) -> None:
    """The file has no line for it; the command's output does not repeat it."""
    (tmp_path / "run.yaml").write_text(GOOD, encoding="utf-8")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "modelmill", "validate", "run.yaml"),
            *("--set", f"data.test={USER_AND_PASSWORD}"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 64
    assert "\n  data.test: looks like a user and a password in an address" in ended.stderr
    assert "opensesame" not in ended.stdout + ended.stderr


def test_secret_in_a_profile_or_in_values_is_refused(tmp_path: Path) -> None:
    """What comes through Helm is kept in its release as well."""
    path = tmp_path / "profile.yaml"
    path.write_text(f"proxy: {{http_proxy: '{USER_AND_PASSWORD}'}}\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"line 1: proxy.http_proxy: looks like a user") as caught:
        load_profile(path)
    assert "opensesame" not in str(caught.value)
    with pytest.raises(SpecError, match="seed: looks like an AWS access key id"):
        parse_run({"model": {"source": "m"}, "seed": AWS_ID}, "values: run")


@pytest.mark.parametrize(
    "text",
    [
        "hf:bigscience/bloom-1b1@6f4195539db0eef1c9d010289f32e0645d9a2354",
        "s3://bucket/a:b@c/data.jsonl",
        "s3://bucket/prefix@2024",
        "### Question\n{question}\n### SQL\n",
        "mail bob:alice@example.com",
        "hf_model",
        "sha256:" + "0" * 64,
        "https://store.example.com:9000/x",
        "BEGIN PRIVATE",
    ],
)
def test_text_of_a_run_is_no_secret(text: str) -> None:
    """What people write into runs every day is left alone."""
    assert secret_in(text) == ""
    assert redacted(text) == text


@given(
    before=st.text(st.characters(exclude_categories=["L", "N", "Cs"], exclude_characters="_")),
    secret=st.sampled_from([AWS_ID, HF_TOKEN, GITHUB, PRIVATE_KEY, USER_AND_PASSWORD, SIGNED]),
    after=st.text(st.characters(exclude_categories=["L", "N", "Cs"], exclude_characters="_")),
)
def test_secret_is_found_anywhere_and_gone_after_redaction(
    before: str, secret: str, after: str
) -> None:
    """What redaction leaves holds no secret; and a document finds what its values hold."""
    text = f"{before}{secret}{after}"
    assert secret_in(text)
    assert secret_in(redacted(text)) == ""
    data = json.loads(json.dumps({"a": [{"b": text}]}))
    assert [path for path, _ in secrets_in(data)] == [("a", 0, "b")]


def test_problem_of_any_origin_is_redacted() -> None:
    """Whoever raises the error, the words are safe to keep."""
    problem = Problem(HF_TOKEN, f"got {AWS_ID}", suggestion=f"did you mean {GITHUB}?")
    error = SpecError(USER_AND_PASSWORD, [problem])
    assert [part for part in PARTS if part in str(error)] == []
