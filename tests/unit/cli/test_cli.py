"""The command line starts fast, says what is wrong, and ends with the right code."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from modelmill.cli.codes import INTERRUPTED, ClusterCommand
from modelmill.cli.options import ACCELERATORS
from modelmill.cli.run import going_on
from modelmill.conduct.standing import state_of
from modelmill.spec.accelerators import NAMES
from modelmill.spec.errors import Interrupted
from modelmill.spec.records import RunRecord

GOOD = """\
model: {source: model}
data: {test: test.jsonl, template: {prompt: "{question}", completion: "{answer}"}}
"""


def modelmill(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "modelmill", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_loads_nothing_heavy() -> None:
    """Help and shell completion are for people who wait."""
    code = (
        "import sys; sys.argv = ['modelmill', '--help']\n"
        "from modelmill.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'boto3', 'torch', 'kubernetes', 'transformers', 'pydantic', 'rich', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr.strip() == "[]"


def script_of_the_package() -> str:
    """Write what an installer makes of the entry point."""
    project = Path(__file__).parents[3] / "pyproject.toml"
    entry = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["scripts"]["modelmill"]
    module, function = entry.split(":")
    return f"from {module} import {function}; {function}()"


@pytest.mark.parametrize("start", [("-m", "modelmill"), ("-c", script_of_the_package())])
def test_interrupt_while_the_command_is_loaded_ends_in_words(
    tmp_path: Path, start: tuple[str, ...]
) -> None:
    """Ctrl-C in the first moments, here while click is imported, gives no traceback."""
    interrupts = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "click.py").write_text(interrupts, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, *start, "version"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (Interrupted.exit_code, "Interrupted.\n")


def test_good_file_is_said_to_be_good(tmp_path: Path) -> None:
    """Data goes to stdout, talk to stderr."""
    (tmp_path / "run.yaml").write_text(GOOD, encoding="utf-8")
    ended = modelmill("validate", "run.yaml", "-o", "json", folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["model"]["source"] == "model"


def test_wrong_file_ends_with_64_and_all_problems(tmp_path: Path) -> None:
    """No traceback, no half answer."""
    (tmp_path / "run.yaml").write_text(GOOD + "sed: 1\nseed: x\n", encoding="utf-8")
    ended = modelmill("validate", "run.yaml", folder=tmp_path)
    assert ended.returncode == 64
    assert ended.stdout == ""
    assert "did you mean 'seed'?" in ended.stderr or "unknown key" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("validate", "nothing.yaml"), 66, "no such file"),
        (("explain", "256"), 64, "no such exit code"),
        (("explain", "9" * 5000), 64, "no such exit code"),
        (("validate", f"{__file__}/run.yaml"), 66, "no such file"),
        (("validate", "a" * 300), 64, "cannot be read (File name too long)"),
        (("init", "chat", f"{__file__}/run.yaml"), 77, "cannot be written (Not a directory)"),
        (("report", "run", "--store", "bucket"), 64, "s3://"),
        (("status", "run", "--store", "bucket"), 7, "s3://"),
        (("run", "run.yaml", "--name", "Not_A_Name"), 64, "lower-case"),
        (("nonsense",), 2, "No such command"),
    ],
)
def test_wrong_command_says_what_to_do(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """Each cause has its own code and its own words."""
    (tmp_path / "run.yaml").write_text(GOOD, encoding="utf-8")
    ended = modelmill(*arguments, folder=tmp_path)
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "again", "command"),
    [
        (("run", "my run.yaml"), (), "modelmill run 'my run.yaml'"),
        (("run", "a.yaml", "--again", "merge"), (), "modelmill run a.yaml"),
        (
            ("run", "--again=merge", "a.yaml"),
            ("infer-base",),
            "modelmill run a.yaml --again infer-base",
        ),
    ],
)
def test_command_that_goes_on_asks_for_nothing_twice(
    arguments: tuple[str, ...], again: tuple[str, ...], command: str
) -> None:
    """A stage asked for again has been granted; what broke is asked for."""
    assert going_on(arguments, again) == command


PROFILE = "images: {registry: r.example.com}\nstore: {url: 's3://bucket'}\n"


def test_render_prints_a_job_per_stage(tmp_path: Path) -> None:
    """Neither the sources nor a cluster are looked at; YAML and JSON say the same."""
    (tmp_path / "run.yaml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "profile.yaml").write_text(PROFILE, encoding="utf-8")
    words = ("render", "run.yaml", "--name", "mine", "--profile", "profile.yaml")
    as_json = modelmill(*words, "-o", "json", folder=tmp_path)
    as_yaml = modelmill(*words, folder=tmp_path)
    assert (as_json.returncode, as_yaml.returncode) == (0, 0), as_json.stderr + as_yaml.stderr
    jobs = json.loads(as_json.stdout)
    stages = [job["metadata"]["labels"]["modelmill/stage"] for job in jobs]
    assert stages == ["fetch-model", "fetch-test", "infer-base", "report"]
    assert list(YAML(typ="safe", pure=True).load_all(as_yaml.stdout)) == jobs


def test_render_for_a_place_that_is_no_cluster_says_what_is_missing(tmp_path: Path) -> None:
    """A profile of a laptop has neither images nor a store that pods reach."""
    (tmp_path / "run.yaml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "profile.yaml").write_text("max_parallel: 2\n", encoding="utf-8")
    ended = modelmill(
        "render", "run.yaml", "--name", "mine", "--profile", "profile.yaml", folder=tmp_path
    )
    assert ended.returncode == 64
    assert "images.registry: required on Kubernetes" in ended.stderr
    assert "store.url: required on Kubernetes" in ended.stderr


def test_version_is_the_package_version(tmp_path: Path) -> None:
    """One number for everything."""
    ended = modelmill("version", "-o", "json", folder=tmp_path)
    assert json.loads(ended.stdout) == {"modelmill": "0.1.0"}


def test_accelerators_of_the_option_are_those_there_are() -> None:
    """Spelled twice, so that `--help` loads no models of data."""
    assert ACCELERATORS == NAMES


def test_ctrl_c_of_a_command_about_a_run_stops_no_run() -> None:
    """A script must not take it for the end of the run, which is 75."""

    @click.command(cls=ClusterCommand)
    def waiting() -> None:
        raise KeyboardInterrupt

    ended = CliRunner().invoke(waiting)
    assert (ended.exit_code, ended.stderr.count("this command only")) == (INTERRUPTED, 1)


@pytest.mark.parametrize(
    ("cancelled", "words"), [("2030", "cancelled"), ("", "to go on: modelmill run FILE --name r")]
)
def test_interrupted_run_has_not_failed(cancelled: str, words: str) -> None:
    """Whoever stopped it can go on, and is told so."""
    created = "2030-01-01T00:00:00Z"
    record = RunRecord(name="r", created=created, cancelled=cancelled, exit_code=75)
    assert state_of(record, lambda _: "").endswith(words)
