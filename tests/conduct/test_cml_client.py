"""The client of a site follows its pages, waits out its bad moments, and keeps its key secret."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelmill.conduct.answers import Conflict, NotThere, Refused, Unavailable
from modelmill.conduct.cml_client import Project, open_project
from modelmill.conduct.cml_seen import JobRequest, RunSeen
from modelmill.spec.errors import ModelmillError, PermissionRefused, SpecError
from modelmill.spec.project import ProjectPlace

from .cml_jobs import PROJECT
from .cml_server import KEY, CmlServer, Fault
from .conftest import wait_until

WANTED = JobRequest(
    name="modelmill-a-merge",
    script="nap.py",
    cpu=2,
    memory=4.5,
    nvidia_gpu=1,
    runtime_identifier="runtime/gpu",
    environment={"MODELMILL_RUN": "a"},
    timeout=90,
    kill_on_timeout=True,
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[CmlServer]:
    """Open a site whose project has a script that takes its time."""
    script = "import os, time; time.sleep(float(os.environ.get('NAP', '0')))"
    (tmp_path / "nap.py").write_text(script, encoding="utf-8")
    with CmlServer(tmp_path) as site:
        yield site


@pytest.fixture
def project(site: CmlServer) -> Project:
    """See the project as its owner does."""
    return Project(site.url, PROJECT, KEY, request_seconds=0.5, retry_budget_seconds=3.0)


def test_job_is_read_as_it_was_made(project: Project) -> None:
    """Numbers that come back as text, and an environment as JSON, are what was asked for."""
    made = project.create_job(WANTED)
    assert made.variables == {"MODELMILL_RUN": "a"}
    assert WANTED.differs_from(made) == {}
    assert project.jobs("modelmill-a-") == (made,)
    changed = project.update_job(made.id, {"memory": 9.0})
    assert WANTED.differs_from(changed) == {"memory": 4.5}


def test_listing_of_many_pages_is_whole(project: Project) -> None:
    """It is in order, and has no job that only contains the name."""
    names = [f"modelmill-a-{number}" for number in range(5)]
    for name in (*names, "not modelmill-a-5"):
        project.create_job(WANTED.model_copy(update={"name": name}))
    assert [job.name for job in project.jobs("modelmill-a-")] == names


def test_run_is_told_what_is_meant_for_it(project: Project) -> None:
    """It is listed with its environment, and stopped by its id."""
    job = project.create_job(WANTED)
    run = project.create_run(job.id, {"NAP": "60", "WORDS": "two words, {} and =\n"})
    wait_until(lambda: project.runs(job.id)[0].status == "ENGINE_RUNNING")
    assert project.runs(job.id)[0].variables["WORDS"] == "two words, {} and =\n"
    project.stop_run(run)
    wait_until(lambda: project.runs(job.id)[0].status == "ENGINE_STOPPED")


def test_second_run_of_a_job_is_a_conflict(project: Project) -> None:
    """The site says so with 400, and lists a run that it has skipped."""
    job = project.create_job(WANTED)
    project.create_run(job.id, {"NAP": "60"})
    with pytest.raises(Conflict, match=f"job run for job {job.id} already active"):
        project.create_run(job.id, {})
    assert [run.status for run in project.runs(job.id)][1] == "ENGINE_SKIPPED"


@pytest.mark.parametrize("fault", ["500", "503", "429", "drop", "slow"])
def test_listing_is_repeated_until_it_is_answered(
    site: CmlServer, project: Project, fault: Fault
) -> None:
    """A bad moment of the site is nobody's failure."""
    project.create_job(WANTED)
    site.plan(fault, "GET .*/jobs")
    assert len(project.jobs("modelmill-a-")) == 1
    assert len([request for request in site.seen if request.startswith("GET")]) == 2


def test_site_that_stays_away_is_unavailable(site: CmlServer, project: Project) -> None:
    """The budget of time ends the attempts."""
    site.plan("500", times=100)
    with pytest.raises(Unavailable, match="500: Internal Server Error"):
        replace(project, retry_budget_seconds=0.5).jobs("")


@pytest.mark.parametrize("fault", ["500", "drop", "slow", "lost"])
def test_start_is_asked_for_once(site: CmlServer, project: Project, fault: Fault) -> None:
    """Nobody knows whether a run came of it, so another request might make a second one."""
    job = project.create_job(WANTED)
    site.plan(fault, "POST .*/runs")
    with pytest.raises(Unavailable):
        project.create_run(job.id, {})
    assert len([request for request in site.seen if request.endswith("/runs")]) == 1


def test_what_is_not_a_site_is_said(site: CmlServer, project: Project) -> None:
    """A page to sign in is no answer."""
    site.plan("page")
    with pytest.raises(Unavailable, match="a proxy may have answered"):
        project.jobs("")


def test_redirect_is_not_followed(site: CmlServer, project: Project) -> None:
    """The key would go along; without one, no other host hears of it."""
    site.plan("302", times=9)
    with pytest.raises(Refused, match="302"):
        project.jobs("")
    assert len(site.seen) == 1


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("404", NotThere), ("409", Conflict), ("401", PermissionRefused), ("403", PermissionRefused)],
)
def test_refusal_is_told_at_once(
    site: CmlServer, project: Project, fault: Fault, expected: type[Exception]
) -> None:
    """Asking again would not help."""
    site.plan(fault)
    with pytest.raises(expected):
        project.jobs("")
    assert len(site.seen) == 1


def test_wrong_runtime_is_refused_in_the_words_of_the_site(project: Project) -> None:
    """They name it."""
    wrong = WANTED.model_copy(update={"runtime_identifier": "runtime/none"})
    with pytest.raises(Refused, match="runtime runtime/none not found"):
        project.create_job(wrong)


def test_wrong_key_says_what_to_do_and_not_what_it_is(site: CmlServer) -> None:
    """Neither the error nor a dump of the client has it."""
    project = Project(site.url, PROJECT, "a-wrong-key")
    with pytest.raises(PermissionRefused, match="make an API v2 key") as refused:
        project.jobs("")
    assert "a-wrong-key" not in str(refused.value) + repr(project)


def test_project_is_the_one_we_are_inside_of() -> None:
    """The profile's words come first."""
    inside = {
        "CDSW_DOMAIN": "ml.example.com",
        "CDSW_PROJECT_ID": PROJECT,
        "CDSW_APIV2_KEY": KEY,
    }
    found = open_project(ProjectPlace(), inside)
    assert (found.url, found.project_id) == ("https://ml.example.com", PROJECT)
    named = ProjectPlace(url="https://other.example.com", project_id="x-1")
    found = open_project(named, inside)
    assert (found.url, found.project_id) == ("https://other.example.com", "x-1")


def test_everything_that_is_missing_is_named_at_once() -> None:
    """Three variables, three problems."""
    with pytest.raises(SpecError) as missing:
        open_project(ProjectPlace(), {})
    assert isinstance(missing.value, ModelmillError)
    assert [problem.key for problem in missing.value.problems] == [
        "CDSW_APIV2_KEY",
        "CDSW_DOMAIN",
        "CDSW_PROJECT_ID",
    ]


def test_unreadable_environment_is_nobodys(site: CmlServer, project: Project) -> None:
    """A job that somebody else has made may hold anything."""
    job = project.create_job(WANTED)
    site.jobs[job.id].settings["environment"] = json.loads('["a list"]')
    [seen] = project.jobs("modelmill-a-")
    assert seen.variables == {}


def test_state_that_nobody_knows_is_no_end() -> None:
    """A later version of the API may have more of them; a second attempt would be worse."""
    seen = {"id": "1", "created_at": "2026-11-27T21:00:00Z"}
    assert RunSeen.model_validate({**seen, "status": "ENGINE_RESTARTING"}).is_live
    assert RunSeen.model_validate(seen).is_live
    assert not RunSeen.model_validate({**seen, "status": "ENGINE_TIMEDOUT"}).is_live
