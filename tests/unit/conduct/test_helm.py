"""The Helm on a laptop is found, old enough ones are refused, and its refusals become words."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modelmill.conduct.helm import chart, find_helm
from modelmill.spec.errors import InputMissing, PermissionRefused, SpecError

Fake = Callable[[str], Path]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Put a shell script called helm in front of PATH."""

    def make(script: str) -> Path:
        program = tmp_path / "helm"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return program

    return make


@pytest.mark.parametrize("version", ["v3.14.0", "v3.20.1", "v4.3.1+g123", "4.0.0"])
def test_helm_that_is_new_enough_is_taken(fake: Fake, version: str) -> None:
    """Three and four, with or without a v."""
    program = fake(f"echo {version}")
    assert find_helm("space", None).program == str(program)


@pytest.mark.parametrize("version", ["v2.17.0", "v3.13.9", "nonsense", ""])
def test_helm_that_is_too_old_is_refused(fake: Fake, version: str) -> None:
    """It says which one it found and which one it needs."""
    program = fake(f"echo {version}")
    with pytest.raises(InputMissing, match="Helm is too old") as caught:
        find_helm("space", None)
    assert caught.value.at == str(program)
    assert "3.14 or newer" in caught.value.fix


def test_missing_helm_is_said_with_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop without helm cannot submit, and knows what to do."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputMissing, match="no `helm` on PATH") as caught:
        find_helm("space", None)
    assert "helm.sh" in caught.value.fix


def test_install_speaks_for_one_namespace_and_context(fake: Fake, tmp_path: Path) -> None:
    """Values come as a file; the chart is the one that ships."""
    fake(f'echo "v4.0.0"; echo "$@" >> {tmp_path}/said; cat "$6" >> {tmp_path}/said 2>/dev/null')
    find_helm("space", "there").install("my-run", {"run": {}})
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert f"upgrade my-run {chart()} --install --values " in said
    assert "--namespace space --kube-context there" in said
    assert '{"run": {}}' in said


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("values don't meet the specifications of the schema(s)", SpecError),
        ("execution error at (modelmill/templates/anchor.yaml:1:4): run.x is local", SpecError),
        ('jobs.batch is forbidden: User "me" cannot create', PermissionRefused),
    ],
)
def test_refusal_is_said_in_helms_words(fake: Fake, words: str, error: type[Exception]) -> None:
    """What the chart refuses is the user's to mend; what the cluster refuses is not."""
    fake(f'[ "$1" = version ] && echo v4.0.0 && exit; echo "Error: {words}" >&2; exit 1')
    with pytest.raises(error, match=words[:12].replace("(", ".")):
        find_helm("space", None).upgrade("my-run")
