"""Say what the jobs of a run are on Cloudera AI: names, sizes, and what their runs are told.

Pure.  A job is the place where attempts of one stage run, one after the other; a run of it is an
attempt.  Everything a stage must know is in the environment of the run, because the platform
passes arguments on as one string whose blanks are lost.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final

from modelmill.conduct.backend import Order
from modelmill.conduct.cml_seen import JobRequest
from modelmill.spec.names import (
    ENV_ATTEMPT,
    ENV_CHECKPOINT_SECONDS,
    ENV_FSDP,
    ENV_GRACE_SECONDS,
    ENV_HALVINGS,
    ENV_HUNG_AFTER_SECONDS,
    ENV_KEY,
    ENV_NUMBER,
    ENV_PLAN_SHA256,
    ENV_RANKS,
    ENV_RUN,
    ENV_STAGE,
    ENV_STORE,
    kind_of,
)
from modelmill.spec.profile import Profile
from modelmill.spec.quantity import amount, whole_cores

CONDUCTOR: Final = "conductor"
CONDUCTOR_CORES: Final = 1.0
CONDUCTOR_GIB: Final = 2.0
"""One small process that waits, and the kernel that its script runs in."""


@dataclass(frozen=True)
class Started:
    """Which attempt a run of a job is, read from the run's environment."""

    attempt: str
    stage: str
    key: str
    number: int


def job_prefix(run: str) -> str:
    """Name what all jobs of a run begin with; so may those of a run with a longer name."""
    return f"modelmill-{run}-"


def job_names(run: str, stage: str) -> Iterator[str]:
    """Name the jobs a stage may use, best first: the platform runs a job once at a time."""
    name = job_prefix(run) + stage
    yield name
    yield from (f"{name} ({number})" for number in count(2))


def stage_job(order: Order, name: str, run: str, profile: Profile) -> JobRequest:
    """Render the job of a stage."""
    pods, place = profile.stages[kind_of(order.stage)], profile.cml
    return JobRequest(
        name=name,
        script=f"{place.scripts}/stage.py",
        cpu=float(amount(pods.cpu)),
        memory=float(amount(pods.memory) / 2**30),
        nvidia_gpu=pods.gpu,
        runtime_identifier=place.runtime(order.environment),
        environment={ENV_RUN: run},
        accelerator_label_id=place.accelerator_label_id if pods.gpu else "",
        timeout=place.timeout_seconds,
        kill_on_timeout=place.timeout_seconds > 0,
    )


def conductor_job(name: str, run: str, profile: Profile) -> JobRequest:
    """Render the job of a conductor."""
    return JobRequest(
        name=name,
        script=f"{profile.cml.scripts}/conduct.py",
        cpu=CONDUCTOR_CORES,
        memory=CONDUCTOR_GIB,
        nvidia_gpu=0,
        runtime_identifier=profile.cml.runtime("light"),
        environment={ENV_RUN: run},
    )


def stage_environment(order: Order, attempt: str, run: str, profile: Profile) -> dict[str, str]:
    """Say what a run of a stage's job is told; credentials are in the project's environment."""
    pods = profile.stages[kind_of(order.stage)]
    return {
        **store_environment(run, profile),
        ENV_STAGE: order.stage,
        ENV_KEY: order.key,
        ENV_NUMBER: str(order.number),
        ENV_ATTEMPT: attempt,
        ENV_PLAN_SHA256: order.plan_sha256,
        ENV_HALVINGS: str(order.halvings),
        ENV_CHECKPOINT_SECONDS: str(profile.checkpoint_seconds),
        ENV_GRACE_SECONDS: str(pods.termination_grace_period_seconds),
        ENV_HUNG_AFTER_SECONDS: str(profile.hung_after_seconds),
        ENV_RANKS: str(pods.ranks),
        ENV_FSDP: pods.fsdp,
        # Libraries count the node's cores, and a plan those of the profile: see conduct/pods.py.
        "OMP_NUM_THREADS": str(whole_cores(pods.cpu)),
    }


def store_environment(run: str, profile: Profile) -> dict[str, str]:
    """Say where the store is, in the AWS SDK's own names where it has some."""
    store, hub = profile.store, profile.hub
    optional = {
        "AWS_ENDPOINT_URL": store.endpoint_url,
        "AWS_DEFAULT_REGION": store.region,
        "HF_ENDPOINT": hub.endpoint_url,
    }
    return {
        ENV_RUN: run,
        ENV_STORE: store.url,
        **{name: value for name, value in optional.items() if value},
    }


def read_started(variables: Mapping[str, str], run: str) -> Started | None:
    """Read which attempt a run of a job is; None where it is none of this run's."""
    if variables.get(ENV_RUN) != run:
        return None
    attempt, stage = variables.get(ENV_ATTEMPT), variables.get(ENV_STAGE)
    key, number = variables.get(ENV_KEY), variables.get(ENV_NUMBER, "")
    if not (attempt and stage and key and number.isdecimal()):
        return None
    return Started(attempt, stage, key, int(number))
