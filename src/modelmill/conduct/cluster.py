"""Run stages as plain Kubernetes Jobs; every pod of a Job is an attempt.

Knows how Jobs and pods become attempts and what a refusal means; decides nothing about
stages.  Keeps no state that matters: another conductor sees the same Jobs.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from modelmill.conduct.answers import Conflict, NotThere, Refused, Unavailable
from modelmill.conduct.as_attempts import (
    attempt_of,
    ended,
    ended_without_pod,
    have_succeeded,
    owners,
    shards_of,
    shared,
    shared_ended,
    stopping,
)
from modelmill.conduct.backend import Attempt, NotNow, Order
from modelmill.conduct.jobs import Release, job_name, shape_of, stage_job
from modelmill.conduct.kubernetes import Mirror, Namespace
from modelmill.conduct.reasons import why_it_waits, why_refused
from modelmill.conduct.seen import JobSeen, PodSeen
from modelmill.spec.names import (
    ANNOTATION_SHAPE,
    CONTAINER,
    ENVIRONMENT_OF,
    LABEL_KEY,
    LABEL_REVISION,
    LABEL_RUN,
    LABEL_STAGE,
    kind_of,
)
from modelmill.spec.records import Progress

ASK_AGAIN: Final = timedelta(seconds=5)
"""How often to look for the reason of a pod that does not start: events are not mirrored."""
LOOK_AFTER: Final = timedelta(seconds=2)
"""An ordinary pod has started by then, and needs no explanation."""

SEEN_AFTER: Final = timedelta(seconds=10)
"""A Job that is not in the mirror by then has been deleted before anybody could see it."""

NEVER: Final = datetime.min.replace(tzinfo=UTC)


@dataclass
class _Explained:
    """Why an attempt waits, and when that was looked up."""

    words: str = ""
    about: str = ""
    """The Job, or the pod that stands for it by now."""
    looked: datetime = NEVER


@dataclass
class ClusterBackend:
    """Runs stages as Jobs of one release."""

    namespace: Namespace
    release: Release
    since: datetime
    """When this conductor's own Job was created: what failed before is somebody else's failure."""
    _jobs: Mirror[JobSeen] = field(init=False)
    _pods: Mirror[PodSeen] = field(init=False)
    _known: dict[str, PodSeen] = field(default_factory=dict)
    """Pods by UID as last seen: an evicted one is gone before anybody can look at it."""
    _made: dict[str, JobSeen] = field(default_factory=dict)
    """Jobs by UID that were created a moment ago, until the mirror shows them."""
    _watched: set[str] = field(default_factory=set)
    """Jobs by UID that this conductor has seen alive."""
    _explained: dict[str, _Explained] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin to mirror what belongs to the run."""
        selector = f"{LABEL_RUN}={self.release.run},{LABEL_STAGE}"
        self._jobs = self.namespace.mirror_jobs(selector)
        self._pods = self.namespace.mirror_pods(selector)

    def attempts(self) -> tuple[Attempt, ...]:
        """List every attempt of this release that matters here, oldest first.

        Those do that live, and those that were started for this conductor: a new revision is
        somebody's wish to try again what has failed under another one.
        """
        present = {pod.metadata.uid: pod for pod in self._pods.all()}
        self._known |= present
        self._release_lost_nodes(present.values())
        jobs = [job for job in self._all_jobs() if self._is_ours(job)]
        of_jobs = [attempt for job in jobs for attempt in self._attempts_of(job, present)]
        uids = {job.metadata.uid for job in self._all_jobs()}
        orphans = [pod for pod in present.values() if not uids & owners(pod)]
        return (*stopping(orphans), *of_jobs)

    def start(self, order: Order) -> Attempt:
        """Create the Job of an attempt, or find that it is there already.

        Raises:
            NotNow: quota, or a server that does not answer; later it may be possible.
            PermissionRefused: a policy or missing permissions refuse it.
        """
        while True:
            try:
                job = self.namespace.create_job(stage_job(order, self.release))
            except Conflict:
                job = self._adoptable(order)
            except Unavailable as error:
                raise NotNow(f"The API server does not answer: {error}") from None
            except NotThere as error:
                raise NotNow(str(error)) from None
            except Refused as error:
                raise why_refused(str(error), "create a Job") from None
            if job.is_live:
                self._made[job.metadata.uid] = job
                self._watched.add(job.metadata.uid)
                return replace(attempt_of(job, job.metadata.uid), is_live=True, has_begun=False)
            order = replace(order, number=order.number + 1)

    def stop(self, attempt: Attempt) -> None:
        """Delete the attempt's Job; its pod gets SIGTERM and its grace period."""
        job = self._job_of(attempt)
        if job is None or job.is_being_deleted:
            return
        try:
            self.namespace.delete_job(job)
        except (NotThere, Conflict, Unavailable):
            return  # gone, or looked at again in a moment
        except Refused as error:
            raise why_refused(str(error), "delete a Job") from None

    def log(self, attempt: Attempt) -> bytes:
        """Read what an attempt has printed so far; nothing once its pod is gone."""
        pod = self._known.get(attempt.id)
        if pod is not None:
            return self._log_of(pod)
        pods = shards_of(self._known[uid] for uid in attempt.processes if uid in self._known)
        logs = {pod.index or 0: self._log_of(pod) for pod in pods}
        return b"".join(b"== shard %d ==\n%b" % (n + 1, log) for n, log in logs.items() if log)

    def _log_of(self, pod: PodSeen) -> bytes:
        try:
            return self.namespace.log_of(pod, CONTAINER)
        except (NotThere, Refused, Unavailable):
            return b""

    def progress(self, attempt: Attempt) -> Progress | None:
        """Leave it to the store, where stages tell it and where a laptop reads it."""

    def wait(self, seconds: float) -> None:
        """Return when a Job or a pod has changed, or after some time."""
        self.namespace.wait_for_change(seconds)

    def is_wanted(self) -> bool:
        """Tell whether the release still asks for this conductor's revision."""
        try:
            anchor = self.namespace.read_anchor(self.release.anchor)
        except NotThere:
            return False
        except Unavailable:
            return True  # nothing can be written to it either
        return (
            anchor.metadata.uid == self.release.anchor_uid
            and anchor.metadata.annotations.get(LABEL_REVISION) == self.release.revision
        )

    def close(self) -> None:
        """Stop every stage of the run and wait until its pods are gone."""
        while live := [attempt for attempt in self.attempts() if attempt.is_live]:
            for attempt in live:
                self.stop(attempt)
            self.wait(1.0)

    def _all_jobs(self) -> tuple[JobSeen, ...]:
        seen = self._jobs.all()
        known = {job.metadata.uid for job in seen}
        oldest = datetime.now(UTC) - SEEN_AFTER
        self._made = {
            uid: job
            for uid, job in self._made.items()
            if uid not in known and (job.metadata.creation_timestamp or NEVER) > oldest
        }
        return (*seen, *self._made.values())

    def _is_ours(self, job: JobSeen) -> bool:
        return self.release.anchor_uid in owners(job)

    def _attempts_of(self, job: JobSeen, present: Mapping[str, PodSeen]) -> Iterator[Attempt]:
        pods = [pod for pod in self._known.values() if job.metadata.uid in owners(pod)]
        pods.sort(key=lambda pod: pod.age)
        shards = shards_of(pods)
        is_live = job.is_live and not have_succeeded(job, shards)
        if is_live:
            self._watched.add(job.metadata.uid)
        elif not self._counts(job):
            return
        yield from (ended(job, pod) for pod in pods if pod not in shards)
        if job.is_shared:
            yield self._live_shared(job, shards) if is_live else shared_ended(job, shards)
            return
        newest = shards[0] if shards else None
        if is_live:
            # Until the Job has replaced a pod, or said that it will not, the newest pod
            # stands for it, whether or not it still runs.
            pod = newest if newest is not None and newest.metadata.uid in present else None
            has_begun = pod is not None and pod.has_begun
            yield replace(
                attempt_of(job, job.metadata.uid if newest is None else newest.metadata.uid),
                is_live=True,
                has_begun=has_begun,
                is_stale=not has_begun and self._is_stale(job),
                message=self._why(job, pod),
            )
        elif newest is not None:
            yield ended(job, newest)
        else:
            yield ended_without_pod(job)

    def _live_shared(self, job: JobSeen, shards: Sequence[PodSeen]) -> Attempt:
        """Say of an attempt that pods share that it lives; it has begun when one of them has."""
        has_begun = any(pod.has_begun for pod in shards)
        return replace(
            shared(job, shards),
            is_live=True,
            has_begun=has_begun,
            is_stale=not has_begun and self._is_stale(job),
            message="" if has_begun else self._why(job, shards[0] if shards else None),
        )

    def _counts(self, job: JobSeen) -> bool:
        created = job.metadata.creation_timestamp
        is_new = created is not None and created >= self.since
        return is_new or job.metadata.uid in self._watched

    def _is_stale(self, job: JobSeen) -> bool:
        attempt = attempt_of(job, "")
        environment = ENVIRONMENT_OF[kind_of(attempt.stage)]
        order = Order(attempt.stage, attempt.key, environment, attempt.number, "")
        shape = job.metadata.annotations.get(ANNOTATION_SHAPE)
        return shape != shape_of(order, self.release)

    def _why(self, job: JobSeen, pod: PodSeen | None) -> str:
        words = why_it_waits(job, pod, (), None)
        if not words:
            return ""
        now = datetime.now(UTC)
        created = job.metadata.creation_timestamp or now
        explained = self._explained.setdefault(job.metadata.uid, _Explained())
        if now - created < LOOK_AFTER:
            return ""
        about = job.metadata.uid if pod is None else pod.metadata.uid
        if now - explained.looked >= ASK_AGAIN or explained.about != about:
            explained.looked, explained.about = now, about
            try:
                events = self.namespace.events_about(about)
                workload = self.namespace.workload_of(job) if job.spec.suspend else None
            except (Unavailable, Refused):
                return explained.words or words
            explained.words = why_it_waits(job, pod, events, workload)
        return explained.words

    def _adoptable(self, order: Order) -> JobSeen:
        """Read the Job that has the name, if it is one of ours for the same key."""
        name = job_name(order, self.release.run)
        try:
            job = self.namespace.read_job(name)
        except (NotThere, Unavailable) as error:
            raise NotNow(str(error)) from None
        if job.is_being_deleted:
            raise NotNow(f"Job {name} of an earlier attempt is still being deleted")
        if not self._is_ours(job) or job.metadata.annotations.get(LABEL_KEY) != order.key:
            raise NotNow(f"Job {name} belongs to somebody else; delete it, or rename the run")
        return job

    def _job_of(self, attempt: Attempt) -> JobSeen | None:
        wanted = (attempt.stage, attempt.key, attempt.number)
        for job in self._all_jobs():
            found = attempt_of(job, "")
            if self._is_ours(job) and (found.stage, found.key, found.number) == wanted:
                return job
        return None

    def _release_lost_nodes(self, pods: Iterable[PodSeen]) -> None:
        """Give up pods whose node does not answer, and their Jobs, which would wait for ever.

        A Job that counts failed pods holds its pod by a finalizer until a kubelet says how it
        ended, so deleting the pod is not enough; without the Job nobody holds it.
        """
        patience = timedelta(seconds=self.release.profile.node_lost_after_seconds)
        for pod in pods:
            due = pod.metadata.deletion_timestamp
            if pod.has_ended or due is None or datetime.now(UTC) - due <= patience:
                continue
            with contextlib.suppress(NotThere, Conflict, Unavailable):
                for job in self._jobs.all():
                    if job.metadata.uid in owners(pod):
                        self.namespace.delete_job(job)
                self.namespace.delete_pod_by_force(pod)
