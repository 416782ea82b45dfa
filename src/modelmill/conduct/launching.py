"""Find what starts and removes conductors: Helm for a cluster, a project for Cloudera AI.

A run that is there already says itself where it belongs.
"""

import os
from dataclasses import dataclass

from modelmill.conduct.cml_client import Project, open_project
from modelmill.conduct.lookup import find_run
from modelmill.conduct.owner import command_to_go_on, is_of_a_machine, parse_project_owner
from modelmill.conduct.submit import Launcher
from modelmill.spec.errors import InputMissing
from modelmill.spec.profile import Profile
from modelmill.spec.project import ProjectPlace
from modelmill.spec.records import RunRecord
from modelmill.store.s3 import Store


@dataclass(frozen=True)
class Namespace:
    """Where a release is, if it is one."""

    name: str
    context: str | None


@dataclass(frozen=True)
class Launch:
    """A launcher, and whose a run is that it starts."""

    launcher: Launcher
    owner: str


def launch_in_project(
    store: Store, profile: Profile, *, is_driven_here: bool
) -> tuple[Launch, Project]:
    """Start runs in the project that a profile names, or that we are inside of.

    Raises:
        SpecError: the environment lacks what says which, and the key.
    """
    from modelmill.conduct.cml_submit import ProjectLauncher

    project = open_project(profile.cml, os.environ)
    launcher = ProjectLauncher(store, project, is_driven_here)
    return Launch(launcher, launcher.place), project


def launch_in_namespace(namespace: Namespace, run: str) -> Launch:
    """Start a run as a release.

    Raises:
        ModelmillError: there is no helm, no cluster, or no such namespace.
    """
    from modelmill.conduct.helm import find_helm
    from modelmill.conduct.release import owner_in

    helm = find_helm(namespace.name, namespace.context)
    return Launch(helm, owner_in(namespace.name, namespace.context, run))


def launch_again(store: Store, run: str, namespace: Namespace) -> Launch:
    """Start a run where it belongs.

    Raises:
        NoSuchRun: there is no such run.
        InputMissing: it belongs to no such place.
        ModelmillError: its place cannot be reached from here.
    """
    record = find_run(store, run)
    if is_of_a_machine(record.owner):
        raise InputMissing(
            f"Run '{run}' is not on a cluster: it was run on one machine",
            at=store.url,
            fix=f"go on with it there: {command_to_go_on(run, record.owner)}",
        )
    place = _project_of(record)
    if place is None:
        return launch_in_namespace(namespace, run)
    launch, _ = launch_in_project(store, Profile(cml=place), is_driven_here=False)
    return launch


def uninstall_run(record: RunRecord, context: str | None, *, is_forced: bool) -> None:
    """Remove what a run has in its place, if it has one.

    Raises:
        ModelmillError: its place cannot be reached from here, or refuses.
    """
    place = _project_of(record)
    if place is None:
        from modelmill.conduct.release import uninstall_release

        uninstall_release(record, context, is_forced=is_forced)
    elif not is_forced:
        from modelmill.conduct.cml_submit import remove_jobs

        remove_jobs(open_project(place, os.environ), record.name)


def _project_of(record: RunRecord) -> ProjectPlace | None:
    owner = parse_project_owner(record.owner)
    return None if owner is None else ProjectPlace(url=owner.url, project_id=owner.project_id)
