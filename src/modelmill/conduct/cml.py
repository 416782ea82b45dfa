"""Run stages as jobs of a project of Cloudera AI; every run of a job is an attempt.

Knows how jobs and their runs become attempts and what a refusal means; decides nothing about
stages.  Keeps no state that matters: another conductor sees the same runs.

The platform tells of a run that it waits, works, succeeded, failed, was stopped or took too long;
not its exit code, nor what it has printed.  Those come through the store, and so does the request
to stop: what a stage saves then must not depend on how a site ends a kernel.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from modelmill.conduct.answers import Conflict, NotThere, Refused, Unavailable
from modelmill.conduct.backend import Attempt, NotNow, Order
from modelmill.conduct.cml_client import Project
from modelmill.conduct.cml_jobs import (
    Started,
    job_names,
    job_prefix,
    read_started,
    stage_environment,
    stage_job,
)
from modelmill.conduct.cml_seen import JobRequest, JobSeen, RunSeen
from modelmill.spec.errors import (
    DeviceFault,
    InputMissing,
    Interrupted,
    ModelmillError,
    PermissionRefused,
    SiteUnreachable,
)
from modelmill.spec.names import ENVIRONMENT_OF, kind_of
from modelmill.spec.profile import Profile
from modelmill.spec.records import Progress
from modelmill.store.artifact import attempt_id
from modelmill.store.mailbox import ask_to_stop, read_ending, read_printed
from modelmill.store.s3 import Store

LOOK_SECONDS: Final = 5.0
"""A look is a request for the jobs and one for the runs of each."""
STOP_SECONDS: Final = 20.0
"""Past the grace period: for the stage to hear of the request, and to tell how it ended."""

WAITS: Final = "Waiting for the site to find a place for its job"
NOT_BEGUN: Final = frozenset({"ENGINE_SCHEDULING", "ENGINE_STARTING"})
INHERITED: Final = ("cpu", "memory", "nvidia_gpu", "runtime_identifier")
"""What a run keeps of its job as it was when the run began."""

logger = logging.getLogger("modelmill")


@dataclass
class CmlBackend:
    """Runs stages as jobs of one project."""

    project: Project
    store: Store
    run: str
    profile: Profile
    look_seconds: float = LOOK_SECONDS
    _runs: tuple[RunSeen, ...] = ()
    _looked: float | None = None
    """When the site was last asked; None if it must be asked again."""
    _has_answered: bool = False
    _watched: set[str] = field(default_factory=set)
    """Attempts that this conductor has started or seen alive: the failures of others, before
    somebody wished to try again, do not count."""
    _started: dict[str, Started] = field(default_factory=dict)
    """By run: what was started here, should a site not give back what it was told."""
    _over: dict[str, Attempt] = field(default_factory=dict)
    _end_at: dict[str, float] = field(default_factory=dict)
    """By run: when the site is to end what does not end by itself."""

    def attempts(self) -> tuple[Attempt, ...]:
        """List the attempts that matter to this conductor, oldest first."""
        found = []
        for run in self._look():
            started = self._which(run)
            if started is None or run.status == "ENGINE_SKIPPED":
                continue
            if run.is_live:
                self._watched.add(started.attempt)
                self._end_if_due(run)
                found.append(self._live(run, started))
            elif started.attempt in self._watched:
                found.append(self._ended(run, started))
        return tuple(found)

    def start(self, order: Order) -> Attempt:
        """Start a run of the stage's job, which is made or changed if it has to be.

        Raises:
            NotNow: a quota is spent, or the site does not answer.  A run that came of a request
                without an answer shows up at the next look.
            PermissionRefused: the site will not have such a job.
        """
        attempt = attempt_id()
        self._watched.add(attempt)
        environment = stage_environment(order, attempt, self.run, self.profile)
        try:
            run = self.project.create_run(self._free_job(order).id, environment)
        except Unavailable as error:
            raise NotNow(f"The site does not answer: {error}") from None
        except (Conflict, NotThere) as error:
            raise NotNow(f"The site does not start it yet: {error}") from None
        except Refused as error:
            raise PermissionRefused(
                f"The site refuses the job of {order.stage}: {error}",
                at=self.project.url,
                fix="compare cml and stages of the profile with what the site offers",
            ) from None
        finally:
            self._looked = None
        started = Started(attempt, order.stage, order.key, order.number)
        self._started[run.id] = started
        return replace(_attempt(started), is_live=True, has_begun=False)

    def stop(self, attempt: Attempt) -> None:
        """Ask the attempt to end by itself; after its grace period the site ends it."""
        for run in self._runs_of(attempt):
            if run.id in self._end_at:
                continue
            grace = self.profile.stages[kind_of(attempt.stage)].termination_grace_period_seconds
            ask_to_stop(self.store, self.run, attempt.id)
            has_begun = run.status not in NOT_BEGUN
            self._end_at[run.id] = time.monotonic() + (grace + STOP_SECONDS if has_begun else 0)
            self._end_if_due(run)

    def log(self, attempt: Attempt) -> bytes:
        """Read what an attempt has told the store of its output."""
        return read_printed(self.store, self.run, attempt.id)

    def progress(self, attempt: Attempt) -> Progress | None:
        """Leave it to the store, where stages tell it and where `modelmill status` reads it."""

    def wait(self, seconds: float) -> None:
        """Sleep: a site tells nothing by itself."""
        time.sleep(min(seconds, self.look_seconds))

    def is_wanted(self) -> bool:
        """Leave it to run.json: a newer conductor writes its name there."""
        return True

    def close(self) -> None:
        """Stop every stage of the run and wait until its jobs have ended."""
        while live := [attempt for attempt in self.attempts() if attempt.is_live]:
            for attempt in live:
                self.stop(attempt)
            self.wait(1.0)

    def _look(self) -> tuple[RunSeen, ...]:
        """List the runs of all jobs of this run; what was seen stands while nobody answers.

        Raises:
            SiteUnreachable: it has not answered once.
            InputMissing: there is no such project.
        """
        now = time.monotonic()
        if self._looked is not None and now - self._looked < self.look_seconds:
            return self._runs
        try:
            jobs = self.project.jobs(job_prefix(self.run))
            found = [run for job in jobs for run in self._runs_in(job)]
        except Unavailable as error:
            if not self._has_answered:
                raise SiteUnreachable(
                    f"The site does not answer: {error}", at=self.project.url
                ) from None
            logger.warning("the site does not answer: %s", error)
        except NotThere:
            raise InputMissing(
                f"The site has no project '{self.project.project_id}', or hides it from this key",
                at=self.project.url,
                fix="take the id from the project's settings: cml.project_id of the profile, or "
                "CDSW_PROJECT_ID",
            ) from None
        else:
            self._has_answered = True
            self._runs = tuple(sorted(found, key=lambda run: (run.created_at, run.id)))
        self._looked = time.monotonic()
        return self._runs

    def _runs_in(self, job: JobSeen) -> tuple[RunSeen, ...]:
        try:
            runs = self.project.runs(job.id)
        except NotThere:
            return ()  # deleted meanwhile
        return tuple(run.model_copy(update={"job_id": job.id}) for run in runs)

    def _free_job(self, order: Order) -> JobSeen:
        busy = {run.job_id for run in self._look() if run.is_live}
        return free_job(
            self.project,
            job_names(self.run, order.stage),
            lambda name: stage_job(order, name, self.run, self.profile),
            lambda job: job.id in busy,
        )

    def _runs_of(self, attempt: Attempt) -> tuple[RunSeen, ...]:
        def is_its(run: RunSeen) -> bool:
            started = self._which(run)
            return started is not None and started.attempt == attempt.id

        return tuple(run for run in self._look() if run.is_live and is_its(run))

    def _which(self, run: RunSeen) -> Started | None:
        return read_started(run.variables, self.run) or self._started.get(run.id)

    def _end_if_due(self, run: RunSeen) -> None:
        end_at = self._end_at.get(run.id)
        if end_at is None or time.monotonic() < end_at or run.status == "ENGINE_STOPPING":
            return
        try:
            self.project.stop_run(run)
        except (Conflict, NotThere, Refused, Unavailable) as error:
            logger.warning("run %s of a job could not be stopped: %s", run.id, error)
        self._looked = None

    def _live(self, run: RunSeen, started: Started) -> Attempt:
        has_begun = run.status not in NOT_BEGUN
        return replace(
            _attempt(started),
            is_live=True,
            message=WAITS if run.status == "ENGINE_SCHEDULING" else "",
            has_begun=has_begun,
            is_stale=not has_begun and self._is_stale(run, started),
        )

    def _is_stale(self, run: RunSeen, started: Started) -> bool:
        environment = ENVIRONMENT_OF[kind_of(started.stage)]
        order = Order(started.stage, started.key, environment, started.number, "")
        wanted = stage_job(order, "", self.run, self.profile)
        return any(getattr(run, name) != getattr(wanted, name) for name in INHERITED)

    def _ended(self, run: RunSeen, started: Started) -> Attempt:
        """Say how a run ended: in the stage's own words, else as far as the site knows."""
        if run.id not in self._over:
            told = read_ending(self.store, self.run, started.attempt)
            if told is not None:
                self._over[run.id] = replace(
                    _attempt(started),
                    exit_code=told.exit_code,
                    message=told.message,
                    is_oom=told.is_oom,
                )
            elif run.status == "ENGINE_SUCCEEDED":
                self._over[run.id] = replace(_attempt(started), exit_code=0)
            else:
                failure = _ENDS[run.status](started.stage, self.profile)
                self._over[run.id] = replace(
                    _attempt(started), exit_code=failure.exit_code, message=str(failure)
                )
        return self._over[run.id]


def free_job(
    project: Project,
    names: Iterator[str],
    wanted: Callable[[str], JobRequest],
    is_busy: Callable[[JobSeen], bool],
) -> JobSeen:
    """Find, make or change a job that does not run.

    Args:
        project: where jobs are.
        names: the job may have, best first.
        wanted: says what a job of a name is to be.
        is_busy: tells whether a job runs.
    """
    for name in names:
        request = wanted(name)
        # Two conductors may have made one of a name: both take the older.
        job = next((job for job in project.jobs(name) if job.name == name), None)
        if job is None:
            return project.create_job(request)
        if not is_busy(job):
            changes = request.differs_from(job)
            return project.update_job(job.id, changes) if changes else job
    raise AssertionError


def _attempt(started: Started) -> Attempt:
    return Attempt(started.attempt, started.stage, started.key, started.number, is_live=False)


def _failed(stage: str, _: Profile) -> ModelmillError:
    return DeviceFault(
        "The site says that its job failed, and it left no last words: its pod was killed, perhaps "
        "for its memory, or its script could not begin",
        fix=f"look at the job's history in the project; is stages.{kind_of(stage)}.memory enough?",
    )


def _timed_out(_: str, profile: Profile) -> ModelmillError:
    limit = profile.cml.timeout_seconds
    return DeviceFault(
        f"It took longer than {f'{limit} s' if limit else 'the site allows'}",
        fix="raise cml.timeout_seconds in the profile",
    )


def _stopped(_stage: str, _: Profile) -> ModelmillError:
    return Interrupted("Its job was stopped")


_ENDS: Final[Mapping[str, Callable[[str, Profile], ModelmillError]]] = {
    "ENGINE_FAILED": _failed,
    "ENGINE_TIMEDOUT": _timed_out,
    "ENGINE_STOPPED": _stopped,
}
"""What the site alone can say about an end that was no success."""
