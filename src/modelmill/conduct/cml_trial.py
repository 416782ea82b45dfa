"""Try in a project what runs will do: jobs that never run, and one in every Runtime for a moment.

Whether a site takes a job it says when the job is made; whether a stage can begin in a Runtime, and
reach the store from there, shows only inside of it.
"""

import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from modelmill.conduct.answers import Conflict, NotThere, Refused, Unavailable
from modelmill.conduct.backend import Order
from modelmill.conduct.cml_client import Project
from modelmill.conduct.cml_jobs import conductor_job, stage_job, store_environment
from modelmill.conduct.cml_seen import JobRequest, JobSeen, RunSeen
from modelmill.conduct.finding import Finding
from modelmill.spec.names import ENV_PROBE, ENV_STAGE, ENVIRONMENT_OF, KINDS, Environment, Kind
from modelmill.spec.profile import Profile
from modelmill.spec.records import Ending
from modelmill.store.s3 import Store
from modelmill.store.trial import trial_prefix

PATIENCE_SECONDS: Final = 600.0
"""A site that has to add a node takes minutes, and so does a large image."""
LOOK_SECONDS: Final = 2.0

KIND_OF: Final[dict[Environment, Kind]] = {
    "light": "fetch-model",
    "train": "finetune",
    "quantize": "quantize",
}
"""What is tried in an environment: of light the one that also asks a hub."""


def try_jobs(project: Project, profile: Profile) -> Finding:
    """Make a job of every kind of stage, and delete it before it has run."""
    problems: dict[Kind, str] = {}
    for kind in KINDS:
        order = Order(kind, "", ENVIRONMENT_OF[kind], 1, "")
        try:
            job = project.create_job(stage_job(order, _name(kind), "doctor", profile))
        except (Conflict, Refused) as refused:
            problems[kind] = str(refused)
        else:
            project.delete_job(job.id)
    if problems:
        return Finding(
            check="jobs",
            state="bad",
            words=f"a job of {', '.join(problems)} would be refused: "
            f"{next(iter(problems.values()))}",
            fix="compare cml and stages of the profile with what the site offers",
        )
    return Finding(check="jobs", state="good", words="jobs of every stage would be accepted")


def try_runtimes(project: Project, store: Store, profile: Profile) -> Iterator[Finding]:
    """Start a small job in every Runtime, all at once; it says in the store how it went."""
    kept: set[str] = set()
    left_behind: list[Finding] = []
    jobs: dict[Environment, JobSeen] = {}
    # A job whose run was refused is there to be removed, and has no end to wait for.
    waiting: list[Environment] = []
    with trial_prefix(store) as prefix:
        try:
            for environment, kind in KIND_OF.items():
                told = {ENV_STAGE: kind, ENV_PROBE: f"{prefix}/{environment}"}
                try:
                    jobs[environment] = project.create_job(_trial_job(environment, profile))
                    project.create_run(
                        jobs[environment].id, {**store_environment("doctor", profile), **told}
                    )
                except (Conflict, NotThere, Refused) as refused:
                    yield _bad(environment, f"its job is refused: {refused}")
                else:
                    waiting.append(environment)
            deadline = time.monotonic() + PATIENCE_SECONDS
            for environment in waiting:
                job = jobs[environment]
                run = _wait(project, job, deadline)
                left = store.get(f"{prefix}/{environment}")
                if left is not None:
                    yield _told(environment, Ending.model_validate_json(left.body))
                elif run is not None and not run.is_live:
                    kept.add(job.id)
                    yield _silent(environment, job)
                else:
                    yield _bad(environment, "its job has found no place, or has not ended")
        finally:
            for environment, job in jobs.items():
                if job.id in kept:
                    continue
                try:
                    _remove(project, job)
                except (Conflict, NotThere, Refused, Unavailable) as refused:
                    left_behind.append(_bad(environment, f"its job {job.id} stays: {refused}"))
    yield from left_behind


def _trial_job(environment: Environment, profile: Profile) -> JobRequest:
    """Make a job of a conductor's size that runs another script, perhaps in another Runtime."""
    changes = {
        "script": f"{profile.cml.scripts}/doctor.py",
        "runtime_identifier": profile.cml.runtime(environment),
    }
    return conductor_job(_name(environment), "doctor", profile).model_copy(update=changes)


def _wait(project: Project, job: JobSeen, deadline: float) -> RunSeen | None:
    """Wait for the end of the only run of a job; None where there has never been one."""
    while True:
        run = next(iter(project.runs(job.id)), None)
        if (run is not None and not run.is_live) or time.monotonic() > deadline:
            return run
        time.sleep(LOOK_SECONDS)


def _remove(project: Project, job: JobSeen) -> None:
    for run in project.runs(job.id):
        # It may end by itself between a look and the request.
        if run.is_live:
            with suppress(Conflict, NotThere):
                project.stop_run(run.model_copy(update={"job_id": job.id}))
    project.delete_job(job.id)


def _told(environment: Environment, ending: Ending) -> Finding:
    if ending.exit_code:
        return _bad(environment, ending.message)
    words = "a job in it ran, and reached the store"
    return Finding(check=f"runtime {environment}", state="good", words=words)


def _silent(environment: Environment, job: JobSeen) -> Finding:
    return _bad(
        environment,
        "its job ended without a word: the script is not there, or it cannot reach the store",
        f"read the history of the job {job.name} in the project, and delete it then",
    )


def _bad(environment: Environment, words: str, fix: str = "") -> Finding:
    return Finding(check=f"runtime {environment}", state="bad", words=words, fix=fix)


def _name(what: str) -> str:
    return f"modelmill-doctor-{what}-{secrets.token_hex(4)}"
