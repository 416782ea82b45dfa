"""Look at everything a run in a project of Cloudera AI needs, before one is started.

Each check says what it looked at, what it found, and what mends it; none stops at another.  Of
variables only names are said.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from modelmill.conduct.answers import NotThere, Refused, Unavailable
from modelmill.conduct.cml_client import Project, open_project
from modelmill.conduct.cml_seen import ProjectSeen, ResourceGroupSeen, RuntimeSeen
from modelmill.conduct.cml_submit import in_words
from modelmill.conduct.cml_trial import try_jobs, try_runtimes
from modelmill.conduct.finding import Finding, checked, failed
from modelmill.conduct.place import opened_as_pods_see_it
from modelmill.conduct.store_doctor import examine_store_of
from modelmill.spec.cluster import StagePods
from modelmill.spec.errors import ModelmillError, PermissionRefused
from modelmill.spec.names import HUB_TOKENS, KINDS
from modelmill.spec.profile import Profile, check_project
from modelmill.spec.quantity import amount

OLDEST_PYTHON: Final = (3, 11)
KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
IDENTITY: Final = ("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE")
LEAST_SHARED_MEMORY_MB: Final = 64
"""What a project has that says nothing."""

Told = TypeVar("Told")


@dataclass(frozen=True)
class Patient:
    """What is examined."""

    profile: Profile
    store_url: str | None
    with_pods: bool = False
    """Also start a job in every Runtime, which is the only proof that stages can begin there."""


def examine(patient: Patient) -> tuple[Finding, ...]:
    """Run every check."""
    profile = patient.profile
    findings = [checked("profile", lambda: _profile(profile))]
    findings += examine_store_of(profile, patient.store_url)
    try:
        project = open_project(profile.cml, os.environ)
        with in_words(project):
            about = project.about()
    except ModelmillError as error:
        return (*findings, failed("site", error))
    findings.append(Finding(check="site", state="good", words=f"{project.url} takes the key"))
    findings.append(_project(about))
    findings.append(checked("runtimes", lambda: _runtimes(project, profile)))
    findings.append(_credentials(about, patient))
    findings.append(_hub(about, profile))
    findings.append(checked("nodes", lambda: _nodes(project, profile)))
    findings.append(checked("gpus", lambda: _gpus(project, profile)))
    findings.append(_shared_memory(about, profile))
    if findings[0].state == "good":
        findings += _jobs(project, patient)
    return tuple(findings)


def _profile(profile: Profile) -> Finding:
    check_project(profile, "profile")
    named = ", ".join(sorted(profile.cml.runtimes))
    return Finding(check="profile", state="good", words=f"has a store, and runtimes for {named}")


def _project(about: ProjectSeen) -> Finding:
    allowed = about.permissions
    if allowed is not None and not (allowed.write or allowed.admin):
        return Finding(
            check="project",
            state="bad",
            words=f"you may only look at '{about.name}'",
            fix="ask for the role Contributor in the project",
        )
    if about.default_engine_type == "legacy_engine":
        return Finding(
            check="project",
            state="bad",
            words=f"'{about.name}' is one of legacy engines",
            fix="choose ML Runtime in the project's settings",
        )
    return Finding(check="project", state="good", words=f"'{about.name}', where you may make jobs")


def _runtimes(project: Project, profile: Profile) -> Finding:
    """Look each Runtime of the profile up in the catalogue."""
    known = {each.image_identifier: each for each in project.runtimes()}
    problems = [
        f"{environment}: {identifier} {problem}"
        for environment, identifier in sorted(profile.cml.runtimes.items())
        if (problem := _problem_of(known.get(identifier)))
    ]
    if problems:
        return Finding(
            check="runtimes",
            state="bad",
            words="; ".join(problems),
            fix="take identifiers from the Runtime Catalog: cml.runtimes of the profile",
        )
    return Finding(check="runtimes", state="good", words="all are in the catalogue")


def _problem_of(runtime: RuntimeSeen | None) -> str:
    if runtime is None:
        return "is not in the catalogue"
    if runtime.status == "DISABLED":
        return "is disabled"
    python = re.fullmatch(r"Python (\d+)\.(\d+).*", runtime.kernel)
    if runtime.kernel and (not python or (int(python[1]), int(python[2])) < OLDEST_PYTHON):
        return f"has {runtime.kernel}, and Python 3.11 is the oldest that will do"
    return ""


def _credentials(about: ProjectSeen, patient: Patient) -> Finding:
    """Look for what jobs are given to reach the store with."""
    there = {name for name, value in about.variables.items() if value}
    for names in (KEYS, IDENTITY):
        missing = [name for name in names if name not in there]
        if not missing:
            words = f"the project sets {' and '.join(names)}"
            return Finding(check="credentials", state="good", words=words)
        if len(missing) < len(names):
            return Finding(
                check="credentials",
                state="bad",
                words=f"the project sets {names[0]} or {names[1]}, and not {missing[0]}",
                fix="set both in the project's settings, Advanced, Environment Variables",
            )
    words = f"the project sets neither {' and '.join(KEYS)} nor an identity"
    if patient.with_pods:
        return Finding(check="credentials", state="good", words=f"{words}; jobs try what they have")
    return Finding(
        check="credentials",
        state="warning",
        words=words,
        fix="set them in the project's settings, unless the site gives jobs some; --pods tries",
    )


def _hub(about: ProjectSeen, profile: Profile) -> Finding:
    """Say what of a hub runs will see; only a job can try its token."""
    place = profile.hub.endpoint_url or "huggingface.co"
    token = next((name for name in HUB_TOKENS if about.variables.get(name)), "")
    words = f"with {token} of the project" if token else "without a token, so public ones only"
    return Finding(check="hub", state="good", words=f"hf: sources from {place} {words}")


def _nodes(project: Project, profile: Profile) -> Finding:
    """Hold cores and memory of every kind of stage against what nodes have."""
    groups = _told(project.resource_groups)
    known = [each for each in groups if each.cpu_count and each.memory_in_gib and each.allow_jobs]
    if not known:
        return Finding(
            check="nodes",
            state="warning",
            words="the site does not tell what they have",
            fix="--pods asks it for a job of every size",
        )
    largest = max(known, key=lambda each: (each.memory_in_gib, each.cpu_count))
    shown = f"{largest.cpu_count} cores and {largest.memory_in_gib} GiB on {largest.name}"
    too_big = [
        kind for kind in KINDS if not any(_has_room(each, profile.stages[kind]) for each in known)
    ]
    if too_big:
        return Finding(
            check="nodes",
            state="bad",
            words=f"none has room for {', '.join(too_big)}; at most {shown}",
            fix=f"ask for less: stages.{too_big[0]}.cpu and memory of the profile",
        )
    return Finding(check="nodes", state="good", words=f"every stage has room; at most {shown}")


def _has_room(group: ResourceGroupSeen, pods: StagePods) -> bool:
    return (
        amount(pods.cpu) <= group.cpu_count and amount(pods.memory) <= group.memory_in_gib * 2**30
    )


def _gpus(project: Project, profile: Profile) -> Finding:
    """Hold GPUs of every kind of stage against what one job may have."""
    asked = {kind: pods.gpu for kind, pods in profile.stages.items() if pods.gpu}
    if not asked:
        return Finding(check="gpus", state="good", words="no stage asks for one")
    wanted = profile.cml.accelerator_label_id
    labels = _told(project.accelerators)
    if not labels:
        return Finding(
            check="gpus",
            state="warning",
            words="the site does not tell which it has",
            fix="--pods asks it for a job of every size",
        )
    usable = [each for each in labels if each.availability and wanted in ("", each.id)]
    shown = ", ".join(
        f"{each.max_gpu_per_workload} of {each.label_value} ({each.id})"
        for each in labels
        if each.availability
    )
    most = max((each.max_gpu_per_workload for each in usable), default=0)
    too_many = [kind for kind in KINDS if asked.get(kind, 0) > most]
    if too_many:
        which = f" of label {wanted}" if wanted else ""
        return Finding(
            check="gpus",
            state="bad",
            words=f"a job may have {most}{which}, and {', '.join(too_many)} would ask for "
            f"{asked[too_many[0]]}; the site has {shown or 'none'}",
            fix=f"change stages.{too_many[0]}.gpu or cml.accelerator_label_id of the profile",
        )
    return Finding(check="gpus", state="good", words=f"a job may have {shown}")


def _told(ask: Callable[[], tuple[Told, ...]]) -> tuple[Told, ...]:
    """Ask a site what older ones do not know, and others tell administrators alone."""
    try:
        return ask()
    except (NotThere, PermissionRefused):
        return ()


def _shared_memory(about: ProjectSeen, profile: Profile) -> Finding:
    has = about.shared_memory_limit or LEAST_SHARED_MEMORY_MB
    kind = max(KINDS, key=lambda each: amount(profile.stages[each].shm))
    asked = profile.stages[kind].shm
    if has * 2**20 < amount(asked):
        return Finding(
            check="shared memory",
            state="warning",
            words=f"{has} MB, and {kind} would use {asked} for data loaders and several GPUs",
            fix="raise it in the project's settings, Advanced, Shared Memory Limit",
        )
    return Finding(check="shared memory", state="good", words=f"{has} MB")


def _jobs(project: Project, patient: Patient) -> Iterator[Finding]:
    if not patient.with_pods:
        yield Finding(
            check="jobs",
            state="warning",
            words="not tried",
            fix="--pods makes one of every size, and starts one in every runtime for a moment",
        )
        return
    try:
        yield checked("jobs", lambda: try_jobs(project, patient.profile))
        with opened_as_pods_see_it(patient.profile, patient.store_url) as store:
            yield from try_runtimes(project, store, patient.profile)
    except (ModelmillError, NotThere, Refused, Unavailable) as error:
        yield failed("jobs", error)
