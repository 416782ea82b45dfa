"""What a laptop sees of a run in its cluster, beside what the store says.

Everything here is an extra: without a kubeconfig, or with that of another cluster, the
store's word stands alone.
"""

from modelmill.conduct.answers import NotThere, Refused, Unavailable
from modelmill.conduct.following import Follower
from modelmill.conduct.helm import find_helm
from modelmill.conduct.kubernetes import Namespace, from_kubeconfig
from modelmill.conduct.lookup import find_run
from modelmill.conduct.owner import parse_owner
from modelmill.conduct.reasons import how_it_ended, why_it_waits
from modelmill.conduct.render import anchor_name
from modelmill.spec.errors import (
    ClusterUnreachable,
    InputMissing,
    ModelmillError,
    PermissionRefused,
)
from modelmill.spec.names import LABEL_ROLE, LABEL_RUN
from modelmill.spec.records import RunRecord
from modelmill.store.s3 import Store


def owner_in(namespace: str, context: str | None, run: str) -> str:
    """Say whose a run is that is about to be a release in a namespace.

    Raises:
        InputMissing: there is no kubeconfig, or no such namespace.
        ClusterUnreachable: the API server does not answer.
        PermissionRefused: this user may not look at the namespace.
    """
    try:
        return from_kubeconfig(context, namespace).owner_of(run)
    except NotThere:
        raise InputMissing(
            f"The cluster has no namespace '{namespace}'",
            fix="name another with --namespace, or have it prepared: kubectl apply -k k8s/base",
        ) from None
    except Unavailable as error:
        raise ClusterUnreachable(
            f"The cluster does not answer: {error}", fix="kubectl cluster-info"
        ) from None
    except Refused as error:
        raise PermissionRefused(
            f"The cluster refuses: {error}",
            fix="have the Role modelmill-submitter (k8s/base) bound to you",
        ) from None


def namespace_of(record: RunRecord, context: str | None) -> Namespace | None:
    """Find the namespace of the run's release; None where this machine does not reach it."""
    owner = parse_owner(record.owner)
    if owner is None:
        return None
    try:
        namespace = from_kubeconfig(context, owner.namespace)
        return namespace if namespace.owner_of(owner.release) == record.owner else None
    except (ModelmillError, NotThere, Refused, Unavailable):
        return None


def uninstall_release(record: RunRecord, context: str | None, *, is_forced: bool) -> None:
    """Remove the release of a run, if it has one and it is still there.

    Raises:
        InputMissing: this machine does not reach its cluster, or has no helm.
        PermissionRefused: the cluster refuses.
    """
    owner = parse_owner(record.owner)
    if owner is None or is_forced:
        return
    namespace = namespace_of(record, context)
    if namespace is None:
        raise InputMissing(
            f"Run '{record.name}' is {record.owner}, which this machine does not reach",
            fix=f"helm uninstall {owner.release} there, then: modelmill rm --force {record.name}",
        )
    try:
        namespace.read_anchor(anchor_name(owner.release))
    except NotThere:
        return
    find_helm(owner.namespace, context).uninstall(owner.release)


def look_in_cluster(record: RunRecord, context: str | None) -> str:
    """Say why nobody drives a run, as far as this machine can see its cluster."""
    namespace = namespace_of(record, context)
    return "" if namespace is None else why_nobody_drives(namespace, record.name)


def follower_of(store: Store, run: str, stage: str, context: str | None) -> Follower:
    """Follow a run's attempts in their pods, where this machine reaches them, and in the store.

    Raises:
        NoSuchRun: there is no such run.
    """
    record = find_run(store, run)
    return Follower(store, run, stage, namespace_of(record, context))


def why_nobody_drives(namespace: Namespace, run: str) -> str:
    """Say what keeps a run's conductor from working; empty where nothing does."""
    selector = f"{LABEL_RUN}={run},{LABEL_ROLE}=conductor"
    try:
        jobs = namespace.list_jobs(selector)
        if not jobs:
            return "its release was uninstalled"
        job = jobs[-1]
        pods = [
            pod
            for pod in namespace.list_pods(selector)
            if job.metadata.uid in {owner.uid for owner in pod.metadata.owner_references}
        ]
        pod = pods[-1] if pods else None
        about = job.metadata.uid if pod is None else pod.metadata.uid
        events = namespace.events_about(about)
        workload = namespace.workload_of(job) if job.spec.suspend else None
    except (NotThere, Refused, Unavailable):
        return ""
    ended = None if pod is None else how_it_ended(pod)
    if ended is not None:
        return ended.message.splitlines()[0] if ended.message else ""
    return why_it_waits(job, pod, events, workload)
