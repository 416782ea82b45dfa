"""`-o plain` can be read aloud: a line for each value, and nothing for the eye."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from modelmill.cli.main import cli
from modelmill.cli.show import print_record, print_table

from ...terminal import ESCAPE, on_a_terminal

MODELMILL = (sys.executable, "-m", "modelmill")
TALLY = ("explain", "merge")


def piped(folder: Path, *arguments: str, **environment: str) -> str:
    """Run a command whose output goes through a pipe."""
    ended = subprocess.run(
        [*MODELMILL, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout


def test_plain_says_each_value_after_its_name(tmp_path: Path) -> None:
    """A paragraph for each record; no padding, no heads to remember."""
    text = piped(tmp_path, *TALLY, "-o", "plain")
    about, *records = text.rstrip("\n").split("\n\n")
    assert about == "How the adapter becomes part of the weights."
    assert [record.splitlines()[0] for record in records] == ["key: merge.onto", "key: merge.dtype"]
    for line in "\n".join(records).splitlines():
        assert re.fullmatch(r"(key|type|default|meaning): \S.*\S", line)
        assert "  " not in line


def test_table_is_padded(tmp_path: Path) -> None:
    """The test above can fail."""
    assert "   " in piped(tmp_path, *TALLY)


def test_plain_for_everything_is_asked_for_once(tmp_path: Path) -> None:
    """Whoever needs it says so in the environment, and an option still wins."""
    asked = piped(tmp_path, *TALLY, MODELMILL_OUTPUT="plain")
    assert asked == piped(tmp_path, *TALLY, "-o", "plain")
    assert json.loads(piped(tmp_path, *TALLY, "-o", "json", MODELMILL_OUTPUT="plain"))["keys"]


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        ((*TALLY, "-o", "plain"), {}),
        (TALLY, {"NO_COLOR": "1"}),
        (("explain", "64", "-o", "plain"), {}),
        (("version", "-o", "plain"), {}),
    ],
)
def test_terminal_is_sent_text_only(
    tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str]
) -> None:
    """Neither colours nor cursor movements; plain is the same text as through a pipe."""
    code, shown = on_a_terminal([*MODELMILL, *arguments], tmp_path, environment)
    assert code == 0
    assert ESCAPE not in shown
    if "plain" in arguments:
        text = shown.decode().replace("\r\n", "\n")
        assert text.startswith(piped(tmp_path, *arguments))


def test_terminal_is_sent_bold_heads_otherwise(tmp_path: Path) -> None:
    """The test above can fail."""
    _, shown = on_a_terminal([*MODELMILL, *TALLY], tmp_path, {"NO_COLOR": ""})
    assert ESCAPE in shown


def test_every_command_that_prints_a_table_can_print_plainly() -> None:
    """Where there is `-o json` there is `-o plain`, but for Jobs, which are documents."""

    def outputs(group: click.Group) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                found |= outputs(command)
            for each in command.params:
                if each.name == "output" and isinstance(each.type, click.Choice):
                    found[name] = list(each.type.choices)
        return found

    choices = outputs(cli)
    assert choices.pop("render") == ["yaml", "json"]
    assert len(choices) > 8
    assert {tuple(each) for each in choices.values()} == {("table", "json", "plain")}


def test_record_leaves_out_what_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty cell, or a dash, keeps columns in line; aloud it is noise."""
    with click.Context(click.Command("x")) as context:
        context.params["output"] = "plain"
        print_record([("model", "base"), ("time", "\N{EN DASH}"), ("from run", "")])
        print_table(("a", "b"), [])
    printed = capsys.readouterr()
    assert printed.out == "model: base\n"
    assert printed.err == "There is nothing to show.\n"
