"""Drive one revision of a release from inside its cluster: environment in, exit code out.

Keeps nothing: its pod may be killed at any moment, and the next one goes on.  So it does
not stop the stages when it is stopped; the release owns them.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import JsonValue, TypeAdapter

from modelmill.conduct.answers import Conflict, NotThere, Refused, Unavailable
from modelmill.conduct.cluster import ClusterBackend
from modelmill.conduct.conductor import Conducted, Conductor
from modelmill.conduct.decide import State
from modelmill.conduct.ending import conclude, give_up
from modelmill.conduct.jobs import Release
from modelmill.conduct.kubernetes import Namespace, in_cluster
from modelmill.conduct.prepare import Asked, prepare
from modelmill.conduct.reasons import why_stopped
from modelmill.conduct.seen import JobSeen
from modelmill.conduct.words import event_words
from modelmill.spec.errors import (
    DeviceFault,
    InternalError,
    Interrupted,
    ModelmillError,
    PermissionRefused,
    Problem,
    Retry,
    SpecError,
)
from modelmill.spec.loading import parse_profile, parse_run
from modelmill.spec.names import (
    ENV_ANCHOR,
    ENV_CONDUCTOR_JOB,
    ENV_NAMESPACE,
    ENV_REVISION,
    ENV_RUN,
    ENV_STORE,
    ENV_TERMINATION,
    LABEL_REVISION,
)
from modelmill.spec.profile import Profile, check_cluster, cluster_facts
from modelmill.spec.records import Ending, Event, Progress
from modelmill.spec.run import RunSpec
from modelmill.store.address import open_store
from modelmill.store.probe import check_conditional_writes
from modelmill.store.runs import read_run

CONFIG: Final = Path("/etc/modelmill")
EVENT_CHARACTERS: Final = 1000
"""The API server refuses an Event with a message of more than 1024."""

_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)

logger = logging.getLogger("modelmill")


@dataclass(frozen=True)
class Told:
    """What the chart tells its conductor."""

    run: str
    namespace: str
    revision: str
    anchor: str
    job: str
    store: str


def read_environment(environment: Mapping[str, str]) -> Told:
    """Parse the environment.

    Raises:
        SpecError: with every variable that is missing.
    """
    names = (ENV_RUN, ENV_NAMESPACE, ENV_REVISION, ENV_ANCHOR, ENV_CONDUCTOR_JOB, ENV_STORE)
    missing = [Problem(name, "not set") for name in names if not environment.get(name)]
    if missing:
        raise SpecError("environment", missing)
    return Told(*(environment[name] for name in names))


def main() -> int:
    """Drive the run and return its exit code; 0 also where another revision has taken over."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    signal.signal(signal.SIGTERM, _handle_stop)
    # Its informers reconnect by themselves, and log a traceback each time.
    logging.getLogger("kubernetes").setLevel(logging.CRITICAL)
    # At INFO one says in every log where it found credentials, the other every address, and
    # among those are addresses that open a file for whoever knows them.
    for library in ("botocore", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        told = read_environment(os.environ)
        namespace = in_cluster(told.namespace)
    except ModelmillError as error:
        logger.error("%s", error)
        return error.exit_code
    code, words, is_final = _drive_to_an_end(told, namespace)
    if words:
        logger.error("%s", words)
        _say_last(code, words)
    if code and is_final:
        if words:
            _tell_run(told, namespace, code, words)
        # The Job would start this pod again; what is final fails it instead.
        with contextlib.suppress(NotThere, Refused, Unavailable):
            namespace.end_retries(told.job)
    namespace.close()
    return code


def _drive_to_an_end(told: Told, namespace: Namespace) -> tuple[int, str, bool]:
    """Drive the run; returns its exit code, last words, and whether trying again is useless."""
    try:
        return drive(told, namespace), "", True
    except ModelmillError as error:
        return error.exit_code, str(error), error.retry is Retry.NEVER
    except Unavailable as error:
        fault = DeviceFault(f"The API server does not answer: {error}")
        return fault.exit_code, str(fault), False
    except Refused as error:
        refused = PermissionRefused(
            f"Kubernetes refuses what a conductor needs: {error}",
            fix="apply k8s/ to this namespace: it has the Role and its binding",
        )
        return refused.exit_code, str(refused), True
    except Stopped:
        return Interrupted.exit_code, "", False
    except Exception as error:
        logger.exception("unexpected")
        return InternalError.exit_code, f"{type(error).__name__}: {error}", True


def drive(told: Told, namespace: Namespace) -> int:
    """Drive the run if this revision is the live one.

    Raises:
        ModelmillError: the run cannot be prepared, or its store is lost.
        Unavailable: the API server does not answer.
        Refused: the ServiceAccount lacks a permission.
    """
    try:
        anchor = namespace.read_anchor(told.anchor)
        own_job = namespace.read_job(told.job)
    except NotThere:
        logger.info("the release is gone; nothing to do")
        return 0
    live = anchor.metadata.annotations.get(LABEL_REVISION, "")
    if live != told.revision:
        logger.info("revision %s is the live one; nothing to do for %s", live, told.revision)
        return 0
    spec, profile = _read_config()
    _check_metrics(spec)
    store = open_store(told.store)
    check_conditional_writes(store)
    asked = Asked(
        told.run,
        None,
        facts=cluster_facts(profile),
        # A rollback brings a revision back under its old name, in another Job.
        conductor=f"{told.revision}-{own_job.metadata.uid[:8]}",
        owner=namespace.owner_of(told.run),
    )
    release = Release(
        run=told.run,
        namespace=told.namespace,
        revision=told.revision,
        anchor=told.anchor,
        anchor_uid=anchor.metadata.uid,
        profile=profile,
    )
    since = own_job.metadata.creation_timestamp or datetime.now(UTC)
    backend = ClusterBackend(namespace, release, since)
    watcher = ClusterWatcher(namespace, own_job)
    while True:
        conductor = Conductor(prepare(store, spec, profile, asked), backend, watcher)
        try:
            verdict = conductor.drive()
        except Stopped:
            conductor.step_aside(_why_stopped(namespace))
            raise
        if not verdict.superseded:
            break
        if not _is_ours(conductor.given, backend):
            logger.info("another revision has taken over")
            return 0
        # An older revision wrote its name over ours a moment before it saw that it is old.
    code = conclude(conductor, verdict)
    logger.info("%d requests to the API server", namespace.requests)
    return code


def _read_config() -> tuple[RunSpec, Profile]:
    def read(name: str) -> JsonValue:
        return _JSON.validate_json((CONFIG / f"{name}.json").read_bytes())

    profile = parse_profile(read("profile"), "values: profile")
    return parse_run(read("run"), "values: run"), check_cluster(profile, "values: profile")


def _check_metrics(spec: RunSpec) -> None:
    """Find out before a GPU is asked for whether the report will have its metric plug-ins.

    The report's image is the conductor's own.
    """
    if spec.infer.metrics.plugins:
        from modelmill.gather.plugins import check_plugins

        check_plugins(spec.infer.metrics)


def _tell_run(told: Told, namespace: Namespace, code: int, words: str) -> None:
    with contextlib.suppress(NotThere, Refused, Unavailable):
        give_up(told.store, told.run, namespace.owner_of(told.run), code, words)


def _is_ours(given: Conducted, backend: ClusterBackend) -> bool:
    """Tell whether both the release and the run's record still want this revision."""
    record = read_run(given.store, given.run)
    return record is not None and record.owner == given.owner and backend.is_wanted()


def _why_stopped(namespace: Namespace) -> str:
    try:
        return why_stopped(namespace.read_pod(socket.gethostname()))
    except (NotThere, Refused, Unavailable):
        return "asked to stop"


class Stopped(BaseException):
    """Raised out of the handler of SIGTERM; not an Exception, so that no library swallows it."""


def _handle_stop(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped


@dataclass(frozen=True)
class ClusterWatcher:
    """Says what happens in the pod's log and as Kubernetes Events of the conductor's Job."""

    namespace: Namespace
    job: JobSeen

    def happened(self, event: Event) -> None:
        """Tell an event; that it cannot be told ends no run."""
        words = event_words(event)
        logger.info("%s", words)
        with contextlib.suppress(NotThere, Conflict, Refused, Unavailable):
            self.namespace.say(_as_kubernetes_event(event, words, self.job, self.namespace.name))

    def standing(self, states: Mapping[str, State], live: Mapping[str, Progress | None]) -> None:
        """Leave it to `modelmill status`."""


def _as_kubernetes_event(
    event: Event, words: str, job: JobSeen, namespace: str
) -> Mapping[str, JsonValue]:
    time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {
        "metadata": {"generateName": f"{job.metadata.name}-", "namespace": namespace},
        "involvedObject": {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": job.metadata.name,
            "uid": job.metadata.uid,
            "namespace": namespace,
        },
        "type": "Warning" if event.event in ("failed", "skipped", "waiting") else "Normal",
        "reason": f"Stage{event.event.capitalize()}",
        "message": words[:EVENT_CHARACTERS],
        "source": {"component": "modelmill-conductor"},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }


def _say_last(code: int, words: str) -> None:
    path = os.environ.get(ENV_TERMINATION)
    if path:
        ending = Ending(exit_code=code, message=words)
        Path(path).write_text(ending.termination_message(), encoding="utf-8")
