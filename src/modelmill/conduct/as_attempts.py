"""How the pods of a Job become attempts: pure functions of what the API server says.

A Job's pod is an attempt, and so is the one that replaces it.  Where several pods share a
Job's work, all of them are one attempt, called after the Job; those that were replaced are
attempts of their shard.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from modelmill.conduct.backend import Attempt
from modelmill.conduct.reasons import Ended, how_it_ended
from modelmill.conduct.seen import JobSeen, ObjectSeen, PodSeen
from modelmill.spec.errors import DeviceFault, Interrupted, Retry, retry_for
from modelmill.spec.names import LABEL_ATTEMPT, LABEL_KEY, LABEL_STAGE


def owners(seen: ObjectSeen) -> set[str]:
    """Name whose object it is, by UID."""
    return {owner.uid for owner in seen.metadata.owner_references}


def attempt_of(seen: JobSeen | PodSeen, id_: str) -> Attempt:
    """Read from its labels, which a Job and its pods share, which attempt an object is."""
    return Attempt(
        id=id_,
        stage=seen.metadata.labels[LABEL_STAGE],
        key=seen.metadata.annotations[LABEL_KEY],
        number=int(seen.metadata.labels[LABEL_ATTEMPT]),
        is_live=False,
    )


def stopping(pods: Iterable[PodSeen]) -> Iterator[Attempt]:
    """Say of pods whose Job was deleted that they live, until they are gone."""
    shared: dict[str, list[PodSeen]] = {}
    for pod in pods:
        if pod.index is None:
            yield _stopping(pod)
        else:
            shared.setdefault(min(owners(pod), default=""), []).append(pod)
    for job, of_job in shared.items():
        attempt = attempt_of(of_job[0], job)
        processes = frozenset(pod.metadata.uid for pod in of_job)
        yield replace(attempt, is_live=True, message="Being stopped", processes=processes)


def _stopping(pod: PodSeen) -> Attempt:
    ended = how_it_ended(pod)
    return replace(
        attempt_of(pod, pod.metadata.uid),
        is_live=True,
        exit_code=None if ended is None else ended.exit_code,
        message="Being stopped",
    )


def ended(job: JobSeen, pod: PodSeen) -> Attempt:
    """Say how a pod ended; one that vanished while it ran was evicted or deleted."""
    how = how_it_ended(pod)
    gone = Interrupted(f"Its pod {pod.metadata.name} was deleted while it ran")
    if how is None:
        how = Ended(gone.exit_code, str(gone))
    where = f"Shard {pod.index + 1} of {job.spec.completions}: " if pod.index is not None else ""
    return replace(
        attempt_of(job, pod.metadata.uid),
        exit_code=how.exit_code,
        message=f"{where}{how.message}" if how.message else "",
        is_oom=how.is_oom,
        shard=pod.index,
    )


def ended_without_pod(job: JobSeen) -> Attempt:
    """Say how a Job ended whose pods nobody has seen."""
    attempt = attempt_of(job, job.metadata.uid)
    failed = job.condition("Failed")
    if failed is None:
        return replace(attempt, exit_code=0)
    fault = DeviceFault(f"Job {job.metadata.name} failed ({failed.reason}): {failed.message}")
    return replace(attempt, exit_code=fault.exit_code, message=str(fault))


def shards_of(pods: Iterable[PodSeen]) -> tuple[PodSeen, ...]:
    """Choose the newest pod of every shard, in the order of the shards."""
    newest = {pod.index: pod for pod in sorted(pods, key=lambda pod: pod.age)}
    return tuple(sorted(newest.values(), key=lambda pod: pod.index or 0))


def have_succeeded(job: JobSeen, pods: Iterable[PodSeen]) -> bool:
    """Tell whether all pods that a Job asks for have: it says so itself 2 s later."""
    return sum(pod.has_succeeded for pod in shards_of(pods)) == job.spec.completions


def shared(job: JobSeen, shards: Iterable[PodSeen]) -> Attempt:
    """See the newest pods of a Job as the one attempt that they share."""
    pods = frozenset(pod.metadata.uid for pod in shards)
    return replace(attempt_of(job, job.metadata.uid), processes=pods)


def shared_ended(job: JobSeen, shards: tuple[PodSeen, ...]) -> Attempt:
    """Say how an attempt ended that pods share: as the first of them that failed.

    One that can never succeed goes before: the others were stopped because of it.
    """
    whole = shared(job, shards)
    if have_succeeded(job, shards):
        return replace(whole, exit_code=0)
    failed = [ended(job, pod) for pod in shards if pod.has_ended and not pod.has_succeeded]
    failed.sort(key=lambda each: retry_for(each.exit_code or 0) is not Retry.NEVER)
    first = next((each for each in failed if each.exit_code), ended_without_pod(job))
    return replace(whole, exit_code=first.exit_code, message=first.message, is_oom=first.is_oom)
