"""Whole runs, from the submitter to the report."""

import json

from .conftest import Team


def test_run_from_submit_to_report(team: Team) -> None:
    """In a namespace that enforces *restricted*, every stage runs once and the report is there."""
    ended = team.submit("--name", "short", "--wait")
    assert ended.returncode == 0, ended.stderr + json.dumps(team.status("short"), indent=1)
    stages = team.status("short")["stages"]
    assert {(row["state"], row["attempts"]) for row in stages} == {("committed", 1)}
    assert team.modelmill("report", "short").returncode == 0
    again = team.submit("--name", "short", "--wait")
    assert again.returncode == 0, again.stderr
    assert [row["attempts"] for row in team.status("short")["stages"]] == [1] * len(stages)
