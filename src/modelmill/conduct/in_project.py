"""What the scripts of a project of Cloudera AI start: a stage, the conductor of a run, or a trial.

    python -m modelmill.conduct.in_project stage|conduct|doctor

Environment in, exit code out.  Keeps nothing: a conductor that is stopped leaves its stages to
the next one, which `modelmill resume` starts.
"""

import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from modelmill.conduct.cml import CmlBackend
from modelmill.conduct.cml_client import Project, open_project
from modelmill.conduct.cml_probe import probe
from modelmill.conduct.cml_stage import run_stage
from modelmill.conduct.conductor import Conductor
from modelmill.conduct.decide import State
from modelmill.conduct.ending import conclude, give_up
from modelmill.conduct.owner import ProjectOwner
from modelmill.conduct.prepare import Asked, prepare
from modelmill.conduct.words import event_words
from modelmill.spec.errors import InternalError, Interrupted, ModelmillError, Problem, SpecError
from modelmill.spec.names import ENV_CONDUCTOR, ENV_RUN, ENV_STORE
from modelmill.spec.profile import check_project, cluster_facts
from modelmill.spec.records import Event, Progress
from modelmill.spec.values import Values
from modelmill.store.address import open_store
from modelmill.store.artifact import attempt_id
from modelmill.store.probe import check_conditional_writes
from modelmill.store.runs import read_values
from modelmill.store.s3 import Store

logger = logging.getLogger("modelmill")


def main() -> int:
    """Do what the first argument says, and return the exit code."""
    log_to_stderr()
    does = {"stage": run_stage, "conduct": _conduct, "doctor": probe}
    asked = " ".join(sys.argv[1:])
    try:
        if asked not in does:
            reason = f"should be one of {', '.join(does)} (got {asked!r})"
            raise SpecError("argument", [Problem("", reason)])
        return does[asked](os.environ)
    except ModelmillError as error:
        logger.error("%s", error)
        return error.exit_code


def log_to_stderr() -> None:
    """Say what happens, with the time."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    # At INFO it says in every log where it found credentials.
    logging.getLogger("botocore").setLevel(logging.WARNING)


def _conduct(environment: Mapping[str, str]) -> int:
    """Drive the run that the environment names to its end; 0 also where another has taken over."""
    missing = [
        Problem(name, "not set") for name in (ENV_STORE, ENV_RUN) if not environment.get(name)
    ]
    if missing:
        raise SpecError("environment", missing)
    signal.signal(signal.SIGTERM, _handle_stop)
    url, run = environment[ENV_STORE], environment[ENV_RUN]
    store = open_store(url)
    values = read_values(store, run)
    project = open_project(values.profile.cml, environment)
    try:
        return drive(store, run, project, environment.get(ENV_CONDUCTOR, ""))
    except Stopped:
        return Interrupted.exit_code
    except ModelmillError as error:
        give_up(url, run, str(owner_of(project)), error.exit_code, str(error))
        raise
    except Exception as error:
        logger.exception("unexpected")
        words = f"{type(error).__name__}: {error}"
        give_up(url, run, str(owner_of(project)), InternalError.exit_code, words)
        return InternalError.exit_code


def drive(store: Store, run: str, project: Project, conductor: str = "") -> int:
    """Drive a run as it was last submitted, from inside of its project or from outside.

    Args:
        store: where the run is.
        run: its name.
        project: whose jobs its stages are.
        conductor: a name for this conductor, made up when empty; one of another name takes over.

    Returns:
        The exit code of the run; 0 also where another conductor has taken over.

    Raises:
        ModelmillError: the run cannot be prepared, or its store or its site is lost.
    """
    values = read_values(store, run)
    profile = check_project(values.profile, "profile")
    _check_metrics(values)
    check_conditional_writes(store)
    asked = Asked(
        run,
        None,
        facts=cluster_facts(profile),
        conductor=conductor or attempt_id(),
        owner=str(owner_of(project)),
    )
    given = prepare(store, values.run, profile, asked)
    driver = Conductor(given, CmlBackend(project, store, run, profile), LogWatcher())
    try:
        verdict = driver.drive()
    except (Stopped, KeyboardInterrupt):
        driver.step_aside("asked to stop")
        raise
    if verdict.superseded:
        logger.info("another conductor has taken over")
        return 0
    return conclude(driver, verdict)


def owner_of(project: Project) -> ProjectOwner:
    """Say whose a run is that is driven in a project."""
    return ProjectOwner(project.project_id, project.url)


def _check_metrics(values: Values) -> None:
    """Find out before a GPU is asked for whether the report will have its metric plug-ins.

    The report's environment is the conductor's own.
    """
    if values.run.infer.metrics.plugins:
        from modelmill.gather.plugins import check_plugins

        check_plugins(values.run.infer.metrics)


class Stopped(BaseException):
    """Raised out of the handler of SIGTERM; not an Exception, so that no library swallows it."""


def _handle_stop(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped


@dataclass(frozen=True)
class LogWatcher:
    """Says what happens in the log of the conductor's job."""

    def happened(self, event: Event) -> None:
        """Tell an event."""
        logger.info("%s", event_words(event))

    def standing(self, states: Mapping[str, State], live: Mapping[str, Progress | None]) -> None:
        """Leave it to `modelmill status`."""


if __name__ == "__main__":
    sys.exit(main())
