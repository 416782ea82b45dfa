"""Metric plug-ins and comparisons from the command line on, with real processes and a store."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelmill.store.embedded import EmbeddedStore

from ..workshop import Workshop

PLUGIN = Path(__file__).parents[1] / "plugin"
GATE = "gate={models: [merged], against: base, metric: plugins.word_overlap, max_worse: 0.1}"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Lay out runs whose light stages, fetch and report, are the real ones."""
    folder = tmp_path_factory.mktemp("compare")
    shutil.copytree(PLUGIN, folder / "site")
    paths = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    workshop = Workshop(folder, {"PYTHONPATH": os.pathsep.join(paths)})
    workshop.lay_out()
    workshop.write_environment("light", f'exec "{sys.executable}" "$@"')
    with EmbeddedStore(workshop.home / "store"):
        yield workshop


def asking(**plugins: dict[str, Any]) -> tuple[str, str]:
    """Ask for metrics."""
    return "--set", f"infer.metrics={json.dumps({'nll': {}, 'plugins': plugins})}"


def test_plugin_of_an_installed_package_judges_a_run(workshop: Workshop) -> None:
    """Found by its entry point where the report is made, scored, gated by, and shown."""
    ended = workshop.modelmill(
        *("run", "run.yaml", "--name", "one", "--set", "finetune={}", "--set", GATE),
        *asking(word_overlap={"least": 0.5}, short={}),
        *("--set", "report.slice=[question]", "-o", "json"),
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["scales"]["plugins.word_overlap"]["made_by"] == "word-overlap 1.2"
    (merged,) = [model for model in report["models"] if model["model"] == "merged"]
    assert merged["metrics"]["plugins.word_overlap"]["value"] == 1.0
    assert merged["verdict"] == "good"
    assert [flips["metric"] for flips in merged["flips"]] == ["plugins.short"]
    assert report["problems"] == []


def test_unknown_plugin_is_found_out_before_anything_runs(workshop: Workshop) -> None:
    """No stage is started, and the message lists what is installed."""
    ended = workshop.modelmill(
        *("run", "run.yaml", "--name", "none", "--set", "infer.max_new_tokens=7"),
        *asking(rouge={}, word_overlap={"least": 7}),
    )
    assert ended.returncode == 64
    assert "rouge: not installed where the report is made; there: distance, " in ended.stderr
    assert "word_overlap.least: Input should be less than or equal to 1" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert workshop.modelmill("status", "none").returncode != 0


def test_submitter_needs_no_plugin(workshop: Workshop) -> None:
    """Validating looks at the name's form only: the image may have what a laptop lacks."""
    good = workshop.modelmill("validate", "run.yaml", *asking(rouge={}))
    assert good.returncode == 0, good.stderr
    wrong = workshop.modelmill("validate", "run.yaml", *asking(**{"Rouge-L": {}}))
    assert wrong.returncode == 64
    assert "infer.metrics.plugins.Rouge-L" in wrong.stderr


def test_failing_plugin_ends_the_run_and_can_be_mended(workshop: Workshop) -> None:
    """The report is there with all other metrics; mended, only the report is made again."""
    command = (
        *("run", "run.yaml", "--name", "weak"),
        *asking(fragile={"question": "test 3", "way": "nan"}, short={}),
    )
    ended = workshop.modelmill(*command)
    assert ended.returncode == 65
    assert "'fragile' (word-overlap 1.2) returned nan" in ended.stderr
    assert "test row 3" in ended.stderr
    assert "Traceback" not in ended.stderr
    report = workshop.read("report", "weak")
    assert {"nll", "plugins.short"} <= report["models"][0]["metrics"].keys()
    assert report["problems"][0]["exit_code"] == 65
    source = workshop.folder / "site" / "word_overlap.py"
    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace('float("nan")', "0.0"), encoding="utf-8")
    assert workshop.modelmill(*command).returncode == 65
    mended = workshop.modelmill(*command, "--again", "report")
    assert mended.returncode == 0, mended.stderr
    assert workshop.read("report", "weak")["problems"] == []
    stages = {row["stage"]: row["attempts"] for row in workshop.read("status", "weak")[0]["stages"]}
    assert stages["infer-base"] <= 1


def test_two_runs_are_set_side_by_side(workshop: Workshop) -> None:
    """On stdout a table or the document, on disk a page and the same document."""
    workshop.modelmill(
        *("run", "run.yaml", "--name", "two", "--set", "finetune={r: 4}", "--set", GATE),
        *asking(word_overlap={"least": 0.5}, short={"characters": 4}),
        MODELMILL_STAND_IN=json.dumps({"infer-merged": {"nll": 0.5}}),
    )
    shown = workshop.modelmill("report", "--compare", "one", "two")
    assert shown.returncode == 0, shown.stderr
    assert "finetune.r" in shown.stdout
    assert "better" in shown.stdout
    assert "plugins.short is not compared: its settings differ" in shown.stderr
    page = Path(shown.stdout.splitlines()[-1])
    assert page.name == "compare.html"
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    document = workshop.read("report", "--compare", "one", "two")
    assert document == json.loads((page.parent / "compare.json").read_text(encoding="ascii"))
    assert document["rows"]["same_by"] == "key"
    assert (document["a"]["state"], document["b"]["state"]) == ("done", "done")
    (merged,) = [model for model in document["models"] if model["model"] == "merged"]
    differences = {score["metric"]: score["difference"] for score in merged["scores"]}
    assert differences["nll"]["value"] == pytest.approx(-0.5)
    assert differences["nll"]["change"] == "better"
    assert differences["plugins.word_overlap"]["value"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--compare", "one", "one"), 64, "cannot be compared with itself"),
        (("--compare", "one", "absent"), 66, "There is no run 'absent'"),
        (("one", "--compare", "one", "two"), 2, "name either a RUN, or two runs"),
        ((), 2, "name either a RUN, or two runs"),
    ],
)
def test_what_cannot_be_compared_is_said(
    workshop: Workshop, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """In words, with the code of its cause."""
    ended = workshop.modelmill("report", *arguments)
    assert ended.returncode == code
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
