"""Jobs of a project keep the contract of backends, on a site that really runs their scripts."""

import json
import random
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from modelmill.conduct.backend import NotNow
from modelmill.conduct.cml import CmlBackend
from modelmill.conduct.cml_client import Project
from modelmill.conduct.cml_seen import RunSeen
from modelmill.conduct.conductor import Conducted
from modelmill.spec.errors import InputMissing, PermissionRefused, SiteUnreachable
from modelmill.spec.names import (
    ENV_ATTEMPT,
    ENV_KEY,
    ENV_NUMBER,
    ENV_RUN,
    ENV_STAGE,
    ENVIRONMENT_OF,
    kind_of,
)
from modelmill.spec.profile import Profile

from ..workshop import Workshop
from . import backend_contract
from .backend_contract import *  # noqa: F403 - the tests of every backend
from .backend_contract import Bench
from .cml_jobs import PROJECT
from .cml_server import KEY, CmlServer, Fault
from .conftest import Preparer, wait_until

SCRIPTS = Path(__file__).parents[2] / "examples" / "cml"
RUNTIMES = {"light": "runtime/light", "quantize": "runtime/gpu"}
SMALL = {"termination_grace_period_seconds": 10, "memory": "1536Mi", "cpu": "500m"}
SAVING = {"termination_grace_period_seconds": 40}
"""A machine that does much else takes its time to end a stage well."""


@dataclass(frozen=True)
class CmlBehaviour:
    """Tells stand-ins by the project's environment, or puts a script in their place."""

    workshop: Workshop
    site: CmlServer

    def __call__(self, stage: str, asked: dict[str, Any]) -> None:
        """Let a stand-in do what is asked of it."""
        self.site.environment["MODELMILL_STAND_IN"] = json.dumps({stage: asked})

    def script(self, stage: str, script: str) -> None:
        """Let a shell script run instead of the stage."""
        self.workshop.write_environment(ENVIRONMENT_OF[kind_of(stage)], script)


@pytest.fixture
def site(workshop: Workshop) -> Iterator[CmlServer]:
    """Open a site whose project is the workshop's folder, with the scripts that ship."""
    shutil.copytree(SCRIPTS, workshop.folder / "examples" / "cml", dirs_exist_ok=True)
    environment = {**store_variables(), "MODELMILL_PYTHON": sys.executable}
    with CmlServer(workshop.folder, environment) as site:
        yield site
    workshop.lay_out_environments()


def store_variables() -> dict[str, str]:
    """Repeat what the SDK is told here, as the project's environment would."""
    import os

    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


@pytest.fixture
def bench(
    site: CmlServer, workshop: Workshop, fetched: Conducted, prepared: Preparer
) -> Iterator[Bench]:
    """Make a backend with keys that nothing else has."""
    given = new_run(fetched, prepared)
    backend = backend_of(site, given)
    yield Bench(given, backend, CmlBehaviour(workshop, site))
    backend.close()


def new_run(fetched: Conducted, prepared: Preparer) -> Conducted:
    """Prepare a run whose rows and model are fetched, and its other stages nobody's."""
    tokens = random.SystemRandom().randrange(1, 65536)
    changes: dict[str, Any] = {"infer.max_new_tokens": tokens, "finetune": "{}"}
    assert fetched.run == "fetched"
    return prepared("bench", **{"data.test": "fetched.jsonl"}, **changes)


def backend_of(site: CmlServer, given: Conducted) -> CmlBackend:
    """Look at the site as a conductor does, more often."""
    project = Project(site.url, PROJECT, KEY, request_seconds=5, retry_budget_seconds=2)
    return CmlBackend(project, given.store, given.run, profile_of(given), look_seconds=0.2)


def profile_of(given: Conducted, timeout_seconds: int = 0, **infer: str) -> Profile:
    """Describe the project, perhaps with more for infer."""
    return Profile.model_validate(
        {
            "accelerator": "cpu",
            "cml": {"runtimes": RUNTIMES, "timeout_seconds": timeout_seconds},
            "store": {"url": given.store.url},
            "stages": {"merge": SMALL, "infer": {**SMALL, **SAVING, **infer}},
        }
    )


def change(bench: Bench, **changes: Any) -> None:
    """Let the profile be another one from now on."""
    bench.backend.profile = profile_of(bench.given, **changes)  # type: ignore[attr-defined]


def test_job_of_a_stage_has_what_the_profile_says(bench: Bench, site: CmlServer) -> None:
    """Cores, memory, runtime and script; configuration is in no argument, and the key nowhere."""
    bench.ended(bench.backend.start(bench.order("infer-base")))
    [job] = site.jobs.values()
    assert job.settings == {
        "project_id": PROJECT,
        "name": "modelmill-bench-infer-base",
        "script": "examples/cml/stage.py",
        "cpu": 0.5,
        "memory": 1.5,
        "nvidia_gpu": 0,
        "runtime_identifier": "runtime/gpu",
        "environment": {"MODELMILL_RUN": "bench"},
    }
    [run] = job.runs
    assert run.arguments == ""
    assert KEY not in json.dumps(run.environment)


def test_job_is_used_again(bench: Bench, site: CmlServer) -> None:
    """An attempt is a run of it; another profile changes it first."""
    bench.behave("infer-base", {"exit": 71})
    bench.ended(bench.backend.start(bench.order("infer-base")))
    change(bench, memory="3Gi")
    bench.ended(bench.backend.start(bench.order("infer-base", 2)))
    [job] = site.jobs.values()
    assert (job.settings["memory"], len(job.runs)) == (3.0, 2)
    assert [each.number for each in bench.backend.attempts()] == [1, 2]


def test_stage_has_as_many_threads_as_its_job_has_cores(bench: Bench, site: CmlServer) -> None:
    """As a plan counts them: the profile's, whatever the node or the project says."""
    site.environment["OMP_NUM_THREADS"] = "64"
    change(bench, cpu="2500m")
    bench.behave.script("infer-base", 'echo "threads=$OMP_NUM_THREADS"')
    attempt = bench.ended(bench.backend.start(bench.order("infer-base")))
    assert bench.backend.log(attempt) == b"threads=3\n"


def test_stage_does_not_have_the_key_of_the_site(bench: Bench) -> None:
    """It works on what strangers have made."""
    bench.behave.script("infer-base", "env; exit 70")
    over = bench.ended(bench.backend.start(bench.order("infer-base")))
    assert b"MODELMILL_STAGE=infer-base" in bench.backend.log(over)
    assert KEY.encode() not in bench.backend.log(over)


def test_stopped_attempt_says_that_nothing_half_done_was_published(bench: Bench) -> None:
    """The request goes through the store, so it ends by itself and not by the site's hand."""
    bench.behave("infer-base", {"dawdle": 600})
    attempt = bench.begun(bench.backend.start(bench.order("infer-base")))
    wait_until(lambda: b"dawdling" in bench.backend.log(attempt))
    bench.backend.stop(attempt)
    over = bench.ended(attempt)
    assert over.exit_code == 75
    assert over.message.startswith("Asked to stop; nothing half-done was published")


def test_attempt_that_waits_for_a_place_says_so_and_is_stopped_at_once(
    bench: Bench, site: CmlServer
) -> None:
    """Nothing runs that could save anything."""
    site.scheduling_seconds = 60
    attempt = bench.backend.start(bench.order("infer-base"))
    [waiting] = bench.attempts(attempt)
    assert (waiting.has_begun, waiting.is_stale) == (False, False)
    assert waiting.message == "Waiting for the site to find a place for its job"
    bench.backend.stop(attempt)
    assert bench.ended(attempt).exit_code == 75


def test_attempt_that_waits_in_another_size_is_stale(bench: Bench, site: CmlServer) -> None:
    """Nobody asks for it in that size any more."""
    site.scheduling_seconds = 60
    attempt = bench.backend.start(bench.order("infer-base"))
    change(bench, memory="3Gi")
    [waiting] = bench.attempts(attempt)
    assert waiting.is_stale


def test_pod_that_is_killed_is_a_fault_of_the_place(bench: Bench, site: CmlServer) -> None:
    """The site says that it failed, and nobody has left a word."""
    (site.folder / "examples" / "cml" / "stage.py").write_text(
        "raise SystemExit(1)", encoding="utf-8"
    )
    over = bench.ended(bench.backend.start(bench.order("infer-base")))
    assert over.exit_code == 71
    assert over.message.startswith("The site says that its job failed, and it left no last words")


def test_attempt_that_takes_too_long_is_told_how_long(bench: Bench) -> None:
    """The limit is the profile's."""
    bench.behave("infer-base", {"dawdle": 600})
    change(bench, timeout_seconds=1)
    over = bench.ended(bench.backend.start(bench.order("infer-base")))
    assert (over.exit_code, over.message.splitlines()[0]) == (71, "It took longer than 1 s")


def test_other_conductor_sees_what_lives_and_not_what_failed_before(
    bench: Bench, site: CmlServer
) -> None:
    """A new conductor is somebody's wish to try again."""
    bench.behave("infer-base", {"exit": 71})
    bench.ended(bench.backend.start(bench.order("infer-base")))
    bench.behave("infer-base", {"dawdle": 600})
    attempt = bench.begun(bench.backend.start(bench.order("infer-base", 2)))
    other = backend_of(site, bench.given)
    assert [(each.id, each.is_live) for each in other.attempts()] == [(attempt.id, True)]


def test_attempt_is_seen_although_the_site_does_not_give_back_what_it_was_told(
    bench: Bench, site: CmlServer
) -> None:
    """Otherwise a conductor would start another one at every look."""
    site.gives_back, site.scheduling_seconds = False, 60
    attempt = bench.backend.start(bench.order("infer-base"))
    [seen] = bench.backend.attempts()
    assert (seen.id, seen.key, seen.is_live) == (attempt.id, attempt.key, True)


def test_runs_of_another_run_are_not_ours(bench: Bench, site: CmlServer) -> None:
    """Names of jobs can begin alike."""
    site.scheduling_seconds = 60
    longer = backend_of(site, bench.given)
    longer.run = "bench-2"
    longer.start(bench.order("infer-base"))
    assert len(longer.attempts()) == 1
    assert bench.backend.attempts() == ()
    longer.close()


@pytest.mark.parametrize("fault", ["409", "500", "503", "drop"])
def test_start_that_is_not_possible_now_is_possible_later(
    bench: Bench, site: CmlServer, fault: Fault
) -> None:
    """A full quota and a bad moment are nobody's failure."""
    site.scheduling_seconds = 60
    site.plan(fault, "POST .*/runs")
    with pytest.raises(NotNow):
        bench.backend.start(bench.order("infer-base"))
    assert bench.backend.attempts() == ()
    assert bench.attempts(bench.backend.start(bench.order("infer-base")))[0].is_live


def test_start_whose_answer_is_lost_is_seen(bench: Bench, site: CmlServer) -> None:
    """So the conductor watches it, and does not start another."""
    site.plan("lost", "POST .*/runs")
    with pytest.raises(NotNow):
        bench.backend.start(bench.order("infer-base"))
    [attempt] = bench.backend.attempts()
    assert (attempt.stage, attempt.is_live) == ("infer-base", True)


def test_job_whose_answer_is_lost_is_used(bench: Bench, site: CmlServer) -> None:
    """No second one of its name is made."""
    site.plan("lost", "POST .*/jobs$")
    with pytest.raises(NotNow):
        bench.backend.start(bench.order("infer-base"))
    site.scheduling_seconds = 60
    bench.backend.start(bench.order("infer-base"))
    assert len(site.jobs) == 1


def test_runtime_that_the_site_does_not_have_is_a_mistake(bench: Bench, site: CmlServer) -> None:
    """The site names it, and nobody tries again."""
    site.runtimes = ()
    with pytest.raises(PermissionRefused, match="runtime runtime/gpu not found"):
        bench.backend.start(bench.order("infer-base"))


def test_site_that_is_away_changes_nothing(bench: Bench, site: CmlServer) -> None:
    """What was seen last stands; the stage goes on meanwhile."""
    bench.behave("infer-base", {"dawdle": 600})
    attempt = bench.begun(bench.backend.start(bench.order("infer-base")))
    assert isinstance(bench.backend, CmlBackend)
    bench.backend.project = replace(bench.backend.project, retry_budget_seconds=0.1)
    site.plan("503", "GET", times=2)
    wait_until(lambda: not site.faults or not bench.backend.attempts())
    assert [each.is_live for each in bench.attempts(attempt)] == [True]


def test_site_that_never_answers_is_said(bench: Bench, site: CmlServer) -> None:
    """Nothing is known, so nothing can be decided."""
    backend = backend_of(site, bench.given)
    backend.project = replace(backend.project, retry_budget_seconds=0.1)
    site.plan("503", "GET", times=9)
    with pytest.raises(SiteUnreachable, match="503"):
        backend.attempts()
    site.faults.clear()


def test_project_that_is_not_there_is_said(bench: Bench, site: CmlServer) -> None:
    """Its id is in the words."""
    backend = backend_of(site, bench.given)
    backend.project = replace(backend.project, project_id="none-such")
    with pytest.raises(InputMissing, match="no project 'none-such'"):
        backend.attempts()


class ByArguments(Project):
    """Passes configuration on as arguments, as one should not."""

    def create_run(self, job_id: str, environment: Mapping[str, str]) -> RunSeen:
        """Leave in the environment only what the listing needs, and say the rest in one string."""
        kept = {name: environment[name] for name in LISTED}
        words = " ".join(f"{name}={environment[name]}" for name in environment if name not in kept)
        body = {"project_id": self.project_id, "job_id": job_id, "arguments": words}
        path = f"{self._path}/jobs/{job_id}/runs"
        return self._post("POST", path, {**body, "environment": kept}, RunSeen)


LISTED = (ENV_RUN, ENV_STAGE, ENV_KEY, ENV_NUMBER, ENV_ATTEMPT)


def test_backend_that_passes_configuration_as_arguments_fails_the_contract(
    bench: Bench, site: CmlServer
) -> None:
    """The platform strips blanks: several settings become one.  Otherwise all would be well."""
    contract = backend_contract.test_attempt_that_succeeds_is_live_until_it_has_committed
    script = site.folder / "examples" / "cml" / "stage.py"
    told = "os.environ.update(word.split('=', 1) for word in sys.argv[1:])"
    text = script.read_text(encoding="utf-8").replace("import os", "import os, sys", 1)
    script.write_text(text.replace("python =", f"{told}\npython =", 1), encoding="utf-8")
    project = backend_of(site, bench.given).project
    bench.backend.project = ByArguments(  # type: ignore[attr-defined]
        project.url, project.project_id, project.key
    )
    with pytest.raises(AssertionError):
        contract(bench)
    site.strips_blanks = False
    site.jobs.clear()
    contract(bench)
