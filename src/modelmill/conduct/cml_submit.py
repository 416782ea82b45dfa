"""Start and remove what a run has in a project of Cloudera AI: its conductor's job, all its jobs.

From inside of the project or from outside; what a conductor has to know lies in the store, and the
environment of its job says where.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import JsonValue

from modelmill.conduct.answers import Conflict, NotThere, Refused, Unavailable
from modelmill.conduct.cml import free_job
from modelmill.conduct.cml_client import Project
from modelmill.conduct.cml_jobs import (
    CONDUCTOR,
    conductor_job,
    job_names,
    job_prefix,
    store_environment,
)
from modelmill.conduct.cml_seen import JobSeen
from modelmill.conduct.in_project import owner_of
from modelmill.spec.errors import InputMissing, PermissionRefused, SiteUnreachable
from modelmill.spec.names import ENV_CONDUCTOR, ENV_RUN
from modelmill.spec.values import Values
from modelmill.store.artifact import attempt_id
from modelmill.store.runs import put_values, read_values
from modelmill.store.s3 import Store


@dataclass(frozen=True)
class ProjectLauncher:
    """Starts conductors as jobs of a project."""

    store: Store
    project: Project
    is_driven_here: bool = False
    """Whoever submits drives the run too, so no job is needed for that."""

    @property
    def place(self) -> str:
        """Say where runs go."""
        return str(owner_of(self.project))

    def install(self, run: str, values: Mapping[str, JsonValue]) -> None:
        """Write down what the run is to be, and start a conductor that reads it."""
        put_values(self.store, run, Values.model_validate(values))
        self.upgrade(run)

    def upgrade(self, run: str) -> None:
        """Start a conductor; one that drives the run leaves when it reads the new one's name.

        Raises:
            InputMissing: nobody has submitted the run, or there is no such project.
            PermissionRefused: the site refuses the job, or a quota is spent.
            SiteUnreachable: it does not answer.
        """
        profile = read_values(self.store, run).profile
        if self.is_driven_here:
            return
        environment = {**store_environment(run, profile), ENV_CONDUCTOR: attempt_id()}
        with in_words(self.project):
            job = free_job(
                self.project,
                job_names(run, CONDUCTOR),
                lambda name: conductor_job(name, run, profile),
                self._is_busy,
            )
            self.project.create_run(job.id, environment)

    def _is_busy(self, job: JobSeen) -> bool:
        return any(run.is_live for run in self.project.runs(job.id))


def remove_jobs(project: Project, run: str) -> None:
    """Stop and delete every job of a run, with the history of its runs.

    Raises:
        ModelmillError: the site does not answer, or refuses.
    """
    with in_words(project):
        for job in project.jobs(job_prefix(run)):
            if job.variables.get(ENV_RUN) != run:
                continue
            for each in project.runs(job.id):
                if each.is_live:
                    project.stop_run(each.model_copy(update={"job_id": job.id}))
            project.delete_job(job.id)


@contextmanager
def in_words(project: Project) -> Iterator[None]:
    """Say what a site answers as people need it.

    Raises:
        SiteUnreachable: it does not answer.
        InputMissing: it has no such project.
        PermissionRefused: it refuses.
    """
    try:
        yield
    except Unavailable as error:
        raise SiteUnreachable(f"The site does not answer: {error}", at=project.url) from None
    except NotThere as error:
        raise InputMissing(
            f"The site has no project '{project.project_id}' for this key ({error})",
            at=project.url,
            fix="take the id from the project's settings",
        ) from None
    except (Conflict, Refused) as error:
        raise PermissionRefused(
            f"The site refuses: {error}",
            at=f"{project.url}, project {project.project_id}",
            fix="compare cml of the profile with what the site offers, and look at the quota",
        ) from None
