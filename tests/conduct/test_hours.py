"""Whoever runs a stage once more is told what it took, and pays for what it takes."""

from ..workshop import Workshop

PROFILE = """\
accelerator: cpu
prices: {currency: EUR, per_hour: {cpu: 36000}}
"""


def test_stage_that_runs_once_more_is_foretold_by_what_it_took(workshop: Workshop) -> None:
    """`plan` says so, the run keeps it, and the report has it beside what was held."""
    (workshop.folder / "priced.yaml").write_text(PROFILE, encoding="utf-8")
    more = ("run.yaml", "--name", "priced", "--profile", "priced.yaml")
    first = workshop.modelmill("run", *more)
    assert first.returncode == 0, first.stderr
    assert "hours without a GPU" in first.stdout
    assert "EUR in all." in first.stdout

    again = ("--again", "infer-base")
    shown = workshop.modelmill("plan", *more, *again)
    assert shown.returncode == 0, shown.stderr
    assert "infer-base: measured before: " in shown.stderr
    assert "fetch-test: committed already" in shown.stderr.replace("fetch-model, ", "")
    planned = {row["stage"]: row["hours"] for row in workshop.read("plan", *more, *again)}
    low, high = planned["infer-base"]["low_hours"], planned["infer-base"]["high_hours"]
    assert 0 < low < high
    assert planned["fetch-test"]["high_hours"] == 0

    ended = workshop.modelmill("run", *more, *again)
    assert ended.returncode == 0, ended.stderr
    report = workshop.read("report", "priced")
    stages = {stage["stage"]: stage["spending"] for stage in report["stages"]}
    assert stages["infer-base"]["low_hours"] == low
    assert stages["infer-base"]["price"] == 36000 * stages["infer-base"]["hours"]
    assert report["spending"]["gpu"] is None
    assert report["spending"]["price"] == sum(each["price"] for each in stages.values())
    text = (workshop.folder / "reports/priced/report.md").read_text(encoding="utf-8")
    assert "infer-base: measured before: " in text
