"""A doctor looks at a project: all that is missing at once, and with --pods from inside of it."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelmill.conduct import cml_trial
from modelmill.conduct.cml_client import Project
from modelmill.conduct.cml_doctor import Patient, examine
from modelmill.spec.profile import Profile
from modelmill.store import trial
from modelmill.store.crew import PART_BYTES
from modelmill.store.s3 import Store

from ..workshop import Workshop
from .cml_jobs import PROJECT
from .cml_server import KEY, CmlServer

SCRIPTS = Path(__file__).parents[2] / "examples" / "cml"

Found = dict[str, tuple[str, str]]
"""By check, its state, and what was found with what mends it."""
Look = Callable[..., Found]


@pytest.fixture
def site(workshop: Workshop) -> Iterator[CmlServer]:
    """Open a site whose project has credentials, and environments that really start."""
    shutil.copytree(SCRIPTS, workshop.folder / "examples" / "cml", dirs_exist_ok=True)
    for name in ("light", "train", "quantize"):
        workshop.write_environment(name, f'exec "{sys.executable}" "$@"')
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with CmlServer(workshop.folder, {**variables, "MODELMILL_PYTHON": sys.executable}) as site:
        yield site
    workshop.lay_out_environments()


@pytest.fixture
def look(site: CmlServer, store: Store, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Examine the project, with changes to a profile that is right."""
    # How a store is examined is tested elsewhere; here it only has to be good.
    monkeypatch.setattr(trial, "RACES", 1)
    monkeypatch.setattr(trial, "SAMPLE_BYTES", PART_BYTES)

    def examine_it(key: str = KEY, *, with_pods: bool = False, **changes: Any) -> Found:
        monkeypatch.setenv("CDSW_APIV2_KEY", key)
        profile = Profile.model_validate({**document(site, store), **changes})
        findings = examine(Patient(profile, None, with_pods))
        return {each.check: (each.state, f"{each.words}: {each.fix}") for each in findings}

    return examine_it


def document(site: CmlServer, store: Store, **cml: Any) -> dict[str, Any]:
    """Write a profile for the site."""
    place = {"url": site.url, "project_id": PROJECT, "runtimes": {"light": "runtime/light"}}
    return {"cml": {**place, **cml}, "store": {"url": store.url}}


def bad(found: Found) -> dict[str, str]:
    """Pick what is wrong."""
    return {check: words for check, (state, words) in found.items() if state == "bad"}


def test_good_project_is_good_from_inside_too(
    workshop: Workshop, site: CmlServer, store: Store
) -> None:
    """Every size is accepted, a job in each Runtime reached the store, and nothing is left."""
    profile = workshop.folder / "doctor.json"
    profile.write_text(
        json.dumps({**document(site, store), "accelerator": "cpu"}), encoding="utf-8"
    )
    words = ("doctor", "--backend", "cml", "--profile", str(profile), "--pods", "-o", "json")
    answer = workshop.modelmill(*words, CDSW_APIV2_KEY=KEY)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = {each["check"]: each["state"] for each in json.loads(answer.stdout)}
    assert set(found.values()) == {"good"}
    assert {f"runtime {each}" for each in ("light", "train", "quantize")} < found.keys()
    assert KEY not in answer.stdout
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in answer.stdout
    assert site.jobs == {}
    made = [each for each in site.seen if each.startswith("POST") and each.endswith("/runs")]
    assert len(made) == 3


def test_looking_alone_changes_nothing(site: CmlServer, look: Look) -> None:
    """What only a job can tell is said to be untried."""
    found = look()
    assert found["jobs"][0] == "warning"
    assert "2 of NVIDIA-A100 (2)" in found["gpus"][1]
    assert all(each.startswith("GET ") for each in site.seen)


def test_everything_that_is_wrong_is_named_at_once(
    site: CmlServer, store: Store, look: Look
) -> None:
    """Rights, Runtimes, credentials, nodes and GPUs, each with what mends it."""
    site.offer.permissions = {"read": True}
    site.offer.kernel = "Python 3.9"
    site.offer.shared_memory_megabytes = 64
    site.environment["AWS_SECRET_ACCESS_KEY"] = ""
    found = look(
        **document(site, store, runtimes={"light": "runtime/light", "train": "runtime/none"}),
        stages={"finetune": {"gpu": 4, "memory": "200Gi"}},
    )
    wrong = bad(found)
    assert wrong.keys() == {"project", "runtimes", "credentials", "nodes", "gpus"}
    assert "role Contributor" in wrong["project"]
    assert "light: runtime/light has Python 3.9" in wrong["runtimes"]
    assert "train: runtime/none is not in the catalogue" in wrong["runtimes"]
    assert "not AWS_SECRET_ACCESS_KEY" in wrong["credentials"]
    assert "none has room for finetune; at most 16 cores and 128 GiB on workers" in wrong["nodes"]
    assert "a job may have 2, and finetune would ask for 4" in wrong["gpus"]
    assert found["shared memory"][0] == "warning"


@pytest.mark.parametrize(
    ("key", "cml", "words"),
    [
        ("a-wrong-key", {}, "make an API v2 key (User Settings, API Keys)"),
        (KEY, {"project_id": "x-1"}, "The site has no project 'x-1'"),
        ("", {}, "CDSW_APIV2_KEY: not set"),
    ],
)
def test_site_that_cannot_be_asked_is_said_after_the_store(
    site: CmlServer, store: Store, look: Look, *, key: str, cml: dict[str, str], words: str
) -> None:
    """The key itself is not repeated."""
    found = look(key, **document(site, store, **cml))
    assert words in bad(found)["site"]
    assert "a-wrong-key" not in str(found)
    assert found["store"][0] == "good"


def test_site_that_tells_of_no_nodes_is_no_fault(site: CmlServer, look: Look) -> None:
    """Older ones do not know of kinds, and others tell administrators alone."""
    site.plan("403", "GET .*/resourcegroups")
    site.plan("404", "GET .*/nodelabels")
    found = look()
    assert (found["nodes"][0], found["gpus"][0]) == ("warning", "warning")
    assert bad(found) == {}


def test_accelerator_that_the_site_does_not_have_is_named(
    site: CmlServer, store: Store, look: Look
) -> None:
    """An id of somewhere else, or of nodes that are away."""
    found = look(**document(site, store, accelerator_label_id="3"))
    assert "a job may have 0 of label 3" in bad(found)["gpus"]
    assert "the site has 2 of NVIDIA-A100 (2)" in bad(found)["gpus"]


def test_jobs_say_what_only_the_inside_shows(
    workshop: Workshop, site: CmlServer, look: Look
) -> None:
    """Packages that are missing, and a store that does not know the project's keys."""
    workshop.write_environment("train", "exit 71")
    site.environment["AWS_ACCESS_KEY_ID"] = "somebody-else"
    found = look(with_pods=True)
    wrong = bad(found)
    assert wrong.keys() == {f"runtime {each}" for each in ("light", "train", "quantize")}
    # Without the store nobody can be told: the history is kept for whoever reads it.
    assert "read the history of the job modelmill-doctor-light-" in wrong["runtime light"]
    assert len(site.jobs) == 3

    site.jobs.clear()
    site.environment["AWS_ACCESS_KEY_ID"] = os.environ["AWS_ACCESS_KEY_ID"]
    site.plan("409", "POST .*/jobs")
    wrong = bad(look(with_pods=True))
    assert wrong.keys() == {"jobs", "runtime train"}
    assert wrong["jobs"].startswith("a job of fetch-model would be refused: Conflict")
    assert site.jobs == {}


def test_run_that_is_refused_is_not_waited_for(
    site: CmlServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Runtime is told of once, the others are tried all the same, and its job is removed."""
    monkeypatch.setattr(cml_trial, "PATIENCE_SECONDS", 120.0)
    site.plan("409", "POST .*/runs$")
    profile = Profile.model_validate(document(site, store))
    project = Project(site.url, PROJECT, KEY)
    found = list(cml_trial.try_runtimes(project, store, profile))
    assert [(each.check, each.state) for each in found] == [
        ("runtime light", "bad"),
        ("runtime train", "good"),
        ("runtime quantize", "good"),
    ]
    assert found[0].words.startswith("its job is refused: Conflict")
    assert site.jobs == {}


def test_job_that_cannot_be_removed_is_named_and_the_others_are(
    site: CmlServer, store: Store
) -> None:
    """Their names are made up, so that no later command would find them."""
    site.plan("409", "DELETE ")
    profile = Profile.model_validate(document(site, store))
    project = Project(site.url, PROJECT, KEY)
    found = list(cml_trial.try_runtimes(project, store, profile))
    [left] = site.jobs
    [bad] = [each for each in found if each.state == "bad"]
    assert bad.words.startswith(f"its job {left} stays: Conflict")
