"""A laptop submits runs to a project, goes on with them, cancels and forgets them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelmill.store.runs import read_run
from modelmill.store.s3 import Store

from ..workshop import Answer, Workshop
from .cml_jobs import PROJECT
from .cml_server import KEY, CmlServer
from .conftest import wait_until

SCRIPTS = Path(__file__).parents[2] / "examples" / "cml"


@pytest.fixture
def site(workshop: Workshop) -> Iterator[CmlServer]:
    """Open a site whose project has the scripts that ship, where profiles look for them."""
    for name in ("stage.py", "conduct.py"):
        path = workshop.folder / "examples" / "cml" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((SCRIPTS / name).read_bytes())
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with CmlServer(workshop.folder, {**variables, "MODELMILL_PYTHON": sys.executable}) as site:
        yield site


@pytest.fixture
def profile(workshop: Workshop, site: CmlServer, store: Store) -> Path:
    """Describe the project as somebody outside of it has to."""
    path = workshop.folder / "profile.json"
    document = {
        "accelerator": "cpu",
        "cml": {
            "url": site.url,
            "project_id": PROJECT,
            "runtimes": {"light": "runtime/light"},
        },
        "store": {"url": store.url},
        "max_parallel": 3,
        "stages": {"infer": {"termination_grace_period_seconds": 40}},
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def submit(workshop: Workshop, profile: Path, *more: str, **environment: str) -> Answer:
    """Submit the workshop's run."""
    words = ("submit", "run.yaml", "--backend", "cml", "--profile", str(profile))
    told = {"CDSW_APIV2_KEY": KEY, **environment}
    return workshop.modelmill(*words, *more, **told)


def command(workshop: Workshop, store: Store, *words: str) -> Answer:
    """Give a command about a run."""
    return workshop.modelmill(*words, "--store", store.url, CDSW_APIV2_KEY=KEY)


def names(site: CmlServer) -> set[str]:
    """Name the jobs of the site."""
    return {job.settings["name"] for job in site.jobs.values()}


def test_run_is_driven_by_a_job_to_its_report(
    workshop: Workshop, profile: Path, site: CmlServer, store: Store
) -> None:
    """Every stage was a job, and so was the conductor; the key is nowhere, and `rm` removes all."""
    answer = submit(workshop, profile, "--name", "whole", "--wait")
    assert answer.returncode == 0, answer.stderr
    assert f"is in project {PROJECT} at {site.url}" in answer.stderr
    stages = {"fetch-model", "fetch-data", "fetch-test", "infer-base", "report"}
    assert names(site) == {f"modelmill-whole-{stage}" for stage in {*stages, "conductor"}}
    # Its end is in run.json a moment before its process ends.
    wait_until(lambda: {run.status for run in site.all_runs()} == {"ENGINE_SUCCEEDED"})
    assert all(run.arguments == "" for run in site.all_runs())
    kept = b"".join(
        found.body for item in store.list("runs/whole/") if (found := store.get(item.key))
    )
    assert b"infer-base committed in" in kept
    assert KEY.encode() not in kept

    logs = command(workshop, store, "logs", "whole", "infer-base")
    assert "infer-base committed in" in logs.stdout
    assert command(workshop, store, "status", "whole", "--exit-code").returncode == 0
    site.create_job({"name": "modelmill-whole-2-merge", "script": "x", "environment": {}})
    assert command(workshop, store, "rm", "whole").returncode == 0
    assert names(site) == {"modelmill-whole-2-merge"}


def test_run_that_was_cancelled_goes_on(
    workshop: Workshop, profile: Path, site: CmlServer, store: Store
) -> None:
    """Cancelling stops the stage by its own hand; resuming takes a new run of the same jobs."""
    behave(site, {"infer-base": {"dawdle": 600}})
    assert (
        submit(workshop, profile, "--name", "halted", "--set", "infer.max_new_tokens=33").returncode
        == 0
    )
    wait_until(lambda: statuses(site, "infer-base") == ["ENGINE_RUNNING"], 300)
    cancelled = command(workshop, store, "cancel", "halted", "--timeout", "300")
    assert cancelled.returncode == 0, cancelled.stderr
    assert command(workshop, store, "status", "halted", "--exit-code").returncode == 6
    wait_until(lambda: statuses(site, "conductor") == ["ENGINE_FAILED"])

    behave(site, {})
    assert command(workshop, store, "resume", "halted").returncode == 0
    ended = command(workshop, store, "wait", "halted")
    assert ended.returncode == 0, ended.stderr
    assert statuses(site, "infer-base") == ["ENGINE_FAILED", "ENGINE_SUCCEEDED"]


def test_run_is_driven_from_here(
    workshop: Workshop, profile: Path, site: CmlServer, store: Store
) -> None:
    """No job is there for the conductor, and the command ends as the run."""
    behave(site, {"infer-base": {"exit": 70}})
    answer = submit(
        workshop, profile, "--name", "here", "--set", "infer.max_new_tokens=34", "--here"
    )
    assert answer.returncode == 3, answer.stderr
    assert "infer-base failed with 70" in answer.stderr
    assert "modelmill-here-conductor" not in names(site)
    record = read_run(store, "here")
    assert record is not None
    assert (record.exit_code, record.owner) == (70, f"project {PROJECT} at {site.url}")


def test_new_submission_takes_over_from_the_conductor_that_drives(
    workshop: Workshop, profile: Path, site: CmlServer, store: Store
) -> None:
    """It has a job beside the other's, which ends well as soon as it sees that it is superseded."""
    behave(site, {"infer-base": {"dawdle": 600}})
    assert (
        submit(workshop, profile, "--name", "twice", "--set", "infer.max_new_tokens=35").returncode
        == 0
    )
    wait_until(lambda: statuses(site, "infer-base") == ["ENGINE_RUNNING"], 300)
    assert (
        submit(workshop, profile, "--name", "twice", "--set", "infer.max_new_tokens=35").returncode
        == 0
    )
    wait_until(lambda: statuses(site, "conductor") == ["ENGINE_SUCCEEDED"], 300)
    assert statuses(site, "conductor (2)") == ["ENGINE_RUNNING"]
    assert statuses(site, "infer-base") == ["ENGINE_RUNNING"]
    assert command(workshop, store, "cancel", "twice").returncode == 0


def test_dry_run_shows_the_plan_and_asks_nothing_of_the_site(
    workshop: Workshop, profile: Path, site: CmlServer, store: Store
) -> None:
    """Neither is anything written."""
    answer = submit(workshop, profile, "--name", "planned", "--dry-run")
    assert answer.returncode == 0, answer.stderr
    assert "infer-base" in answer.stdout
    assert (site.seen, read_run(store, "planned")) == ([], None)


def test_key_that_the_site_does_not_accept_ends_with_words(
    workshop: Workshop, profile: Path, site: CmlServer
) -> None:
    """They say which variable it comes from, and do not repeat it."""
    answer = submit(workshop, profile, "--name", "denied", CDSW_APIV2_KEY="a-wrong-key")
    assert answer.returncode == 7
    assert "The site does not accept the API key" in answer.stderr
    assert "set CDSW_APIV2_KEY" in answer.stderr
    assert "a-wrong-key" not in answer.stderr
    assert site.jobs == {}


def test_submission_without_a_project_names_everything_that_is_missing(
    workshop: Workshop, store: Store
) -> None:
    """Nothing is asked of anybody first."""
    place: dict[str, Any] = {"cml": {"runtimes": {"light": "r"}}, "store": {"url": store.url}}
    path = workshop.folder / "nowhere.json"
    path.write_text(json.dumps(place), encoding="utf-8")
    answer = submit(workshop, path, CDSW_APIV2_KEY="")
    assert answer.returncode == 7
    assert "environment: 3 problems" in answer.stderr
    path.write_text("{}", encoding="utf-8")
    answer = submit(workshop, path)
    assert "cml.runtimes.light: required on CML" in answer.stderr
    assert "store.url: required on CML" in answer.stderr


def behave(site: CmlServer, asked: dict[str, Any]) -> None:
    """Let stand-ins do what is asked of them."""
    site.environment["MODELMILL_STAND_IN"] = json.dumps(asked)


def statuses(site: CmlServer, stage: str) -> list[str]:
    """List how the runs of a stage's job are."""
    return [
        run.status
        for job in site.jobs.values()
        if job.settings["name"].endswith(f"-{stage}")
        for run in job.runs
    ]


@pytest.mark.parametrize("words", [(), ("conductor",), ("stage", "doctor")])
def test_script_that_asks_for_nothing_known_is_told_what_there_is(words: tuple[str, ...]) -> None:
    """One line with the choices, and no traceback."""
    asked = [sys.executable, "-m", "modelmill.conduct.in_project", *words]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert answer.returncode == 64
    expected = f"should be one of stage, conduct, doctor (got {' '.join(words)!r})"
    assert expected in answer.stderr
    assert "Traceback" not in answer.stderr
