"""`init` writes a run that is good as it stands, and never over anything."""

import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from modelmill.cli.init import TEMPLATES, example_runs, template_text, write_template
from modelmill.spec.errors import InputMissing, WouldBeLost
from modelmill.spec.loading import load_run


def modelmill(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "modelmill", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("template", TEMPLATES)
def test_template_loads(tmp_path: Path, template: str) -> None:
    """What `init` writes, `run` understands."""
    write_template(template, tmp_path / "run.yaml")
    run = load_run(tmp_path / "run.yaml")
    assert (run.finetune is None) == (template == "quantize-only")
    assert run.gate is not None


@pytest.mark.parametrize("template", TEMPLATES)
def test_line_that_a_user_would_change_says_what_it_costs(template: str) -> None:
    """Every value has words beside it; a template of prompts has them above it."""
    lines = [line for line in template_text(template).splitlines() if line.strip()]
    values = [line for line in lines if not re.fullmatch(r" *[a-z_]+:", line)]
    bare = [line.split(":")[0].strip() for line in values if "#" not in line]
    assert set(bare) <= {"prompt", "completion"}


def test_template_and_its_folder_are_the_same_list() -> None:
    """No template is forgotten, and none is only a name."""
    folder = files("modelmill.cli") / "templates"
    assert sorted(each.name for each in folder.iterdir()) == sorted(f"{n}.yaml" for n in TEMPLATES)
    assert len(example_runs()) == len(TEMPLATES)


def test_init_writes_a_file_and_names_the_next_two_commands(tmp_path: Path) -> None:
    """They work as they are printed; nothing is asked."""
    written = modelmill("init", folder=tmp_path)
    assert (written.returncode, written.stdout) == (0, "")
    commands = [line for line in written.stderr.splitlines() if line.startswith("modelmill ")]
    assert commands == ["modelmill validate run.yaml", "modelmill run run.yaml"]
    assert modelmill(*commands[0].split()[1:], folder=tmp_path).returncode == 0
    text = (tmp_path / "run.yaml").read_text(encoding="utf-8")
    assert text == template_text("text-to-sql")


def test_init_never_overwrites(tmp_path: Path) -> None:
    """It says what is there and how to get another file, and that command works."""
    (tmp_path / "run.yaml").write_text("mine", encoding="utf-8")
    refused = modelmill("init", "quantize-only", folder=tmp_path)
    assert refused.returncode == 77
    assert "stays as it is\n  at:  run.yaml" in refused.stderr
    command = "modelmill init quantize-only quantize-only.yaml"
    assert command in refused.stderr
    assert (tmp_path / "run.yaml").read_text(encoding="utf-8") == "mine"
    assert modelmill(*command.split()[1:], folder=tmp_path).returncode == 0
    with pytest.raises(WouldBeLost, match="stays as it is"):
        write_template("chat", tmp_path / "quantize-only.yaml")


def test_init_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """No folder is made that may be a slip of the keyboard."""
    with pytest.raises(InputMissing) as caught:
        write_template("chat", tmp_path / "nowhere" / "run.yaml")
    assert caught.value.fix == f"mkdir -p {tmp_path / 'nowhere'}"


def test_init_with_an_unknown_template_lists_them(tmp_path: Path) -> None:
    """A wrong name is the usual error of a command line."""
    refused = modelmill("init", "sql", folder=tmp_path)
    assert refused.returncode == 2
    for name in TEMPLATES:
        assert f"'{name}'" in refused.stderr
    assert list(tmp_path.iterdir()) == []
