"""Look at everything a run on a cluster needs, before one is started.

Each check says what it looked at, what it found, and what mends it; none stops at another.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from modelmill.conduct.answers import NotThere, Refused, Unavailable
from modelmill.conduct.finding import Finding, checked, failed
from modelmill.conduct.helm import find_helm
from modelmill.conduct.kubernetes import Namespace, from_kubeconfig
from modelmill.conduct.store_doctor import examine_store_of
from modelmill.conduct.trial import is_suspended_unasked, try_admission, try_pods
from modelmill.spec.errors import ModelmillError
from modelmill.spec.names import CONDUCTOR_ACCOUNT, STAGE_ACCOUNT
from modelmill.spec.profile import Profile, check_cluster, queues_of

OLDEST: Final = (1, 33)
"""podFailurePolicy, podReplacementPolicy and successPolicy as we use them are stable there."""

NEEDED: Final = (
    ("batch", "jobs", ("create", "get", "list", "watch", "patch", "delete")),
    ("", "configmaps", ("create", "get", "list", "patch", "delete")),
    ("", "pods", ("get", "list", "watch")),
    ("", "pods/log", ("get",)),
    ("", "events", ("list",)),
)
"""What a submitter does: helm with its releases in ConfigMaps, and looking."""


@dataclass(frozen=True)
class Patient:
    """What is examined."""

    profile: Profile
    namespace: str
    context: str | None
    store_url: str | None
    with_pods: bool = False
    """Also start a pod of every image, which is the only proof that it can be pulled."""


def examine(patient: Patient) -> tuple[Finding, ...]:
    """Run every check."""
    findings = [
        checked("profile", lambda: _profile(patient)),
        checked("helm", lambda: _helm(patient)),
    ]
    findings += examine_store_of(patient.profile, patient.store_url)
    findings.append(_hub(patient))
    try:
        namespace = from_kubeconfig(patient.context, patient.namespace)
    except ModelmillError as error:
        return (*findings, failed("cluster", error))
    findings.append(checked("cluster", lambda: _version(namespace)))
    if findings[-1].state == "good":
        findings.append(checked("permissions", lambda: _permissions(namespace)))
        findings.append(checked("accounts", lambda: _accounts(namespace)))
        findings.append(checked("admission", lambda: _admission(namespace, patient.profile)))
        findings += _queues(namespace, patient.profile)
        findings.append(checked("conductor", lambda: _conductor(namespace, patient.profile)))
        findings += _images(namespace, patient)
    return tuple(findings)


def _profile(patient: Patient) -> Finding:
    check_cluster(patient.profile, "profile")
    images = patient.profile.images
    return Finding(check="profile", state="good", words=f"images from {images.registry}")


def _helm(patient: Patient) -> Finding:
    helm = find_helm(patient.namespace, patient.context)
    words = helm.program
    if os.environ.get("HELM_DRIVER") != "configmap":
        return Finding(
            check="helm",
            state="warning",
            words=f"{words} keeps releases in Secrets, which needs more than the submitter's Role",
            fix="export HELM_DRIVER=configmap",
        )
    return Finding(check="helm", state="good", words=words)


def _hub(patient: Patient) -> Finding:
    """Say what of a hub runs will see; only a pod can try its token."""
    hub = patient.profile.hub
    place = hub.endpoint_url or "huggingface.co"
    if not hub.token_secret:
        words = f"hf: sources from {place} without a token, so public ones only"
        return Finding(check="hub", state="good", words=words)
    words = f"hf: sources from {place} with the token in Secret {hub.token_secret}"
    if patient.with_pods:
        return Finding(check="hub", state="good", words=f"{words}; image light tries it")
    fix = "--pods tries the token"
    return Finding(check="hub", state="warning", words=f"{words}, not tried", fix=fix)


def _version(namespace: Namespace) -> Finding:
    found = namespace.server_version()
    shown = ".".join(map(str, found))
    if found < OLDEST:
        return Finding(
            check="cluster",
            state="bad",
            words=f"Kubernetes {shown} is too old",
            fix=f"{'.'.join(map(str, OLDEST))} is the oldest that does what runs rely on",
        )
    return Finding(check="cluster", state="good", words=f"Kubernetes {shown}")


def _permissions(namespace: Namespace) -> Finding:
    missing = [
        f"{verb} {resource}"
        for group, resource, verbs in NEEDED
        for verb in verbs
        if not namespace.may(verb, group, resource)
    ]
    if missing:
        return Finding(
            check="permissions",
            state="bad",
            words=f"you may not {', '.join(missing)} in {namespace.name}",
            fix="bind the Role modelmill-submitter (k8s/base) to you",
        )
    return Finding(check="permissions", state="good", words=f"enough in {namespace.name}")


def _accounts(namespace: Namespace) -> Finding:
    names = (CONDUCTOR_ACCOUNT, STAGE_ACCOUNT)
    missing = [name for name in names if not namespace.has_account(name)]
    if missing:
        return Finding(
            check="accounts",
            state="bad",
            words=f"no ServiceAccount {' and no '.join(missing)} in {namespace.name}",
            fix="kubectl apply -k k8s/base",
        )
    return Finding(check="accounts", state="good", words=" and ".join(names))


def _queues(namespace: Namespace, profile: Profile) -> Iterator[Finding]:
    """Check the queues the profile names."""
    asked = queues_of(profile)
    try:
        known = namespace.local_queues()
    except (Refused, Unavailable) as error:
        yield Finding(check="queues", state="warning", words=f"cannot be listed: {error}")
        return
    missing = sorted(asked - set(known or ()))
    if missing:
        yield Finding(
            check="queues",
            state="bad",
            words=f"no LocalQueue {', '.join(missing)} in {namespace.name}"
            + ("" if known is not None else ": there is no Kueue"),
            fix="apply k8s/queues, or change `queue` in the profile",
        )
    if not missing and asked:
        yield Finding(check="queues", state="good", words=", ".join(sorted(asked)))


def _admission(namespace: Namespace, profile: Profile) -> Finding:
    """Let the API server look at the Job of every kind of stage."""
    refused = [each for each in try_admission(namespace, profile) if each.problem]
    if refused:
        return Finding(
            check="admission",
            state="bad",
            words=f"a Job of {', '.join(each.what for each in refused)} would be refused: "
            f"{refused[0].problem}",
            fix="change the profile, or ask who keeps the cluster",
        )
    return Finding(check="admission", state="good", words="Jobs of every stage would be accepted")


def _conductor(namespace: Namespace, profile: Profile) -> Finding:
    """Look for the two ways in which Kueue takes Jobs that nobody has put into a queue."""
    if profile.conductor.queue:
        return Finding(check="conductor", state="good", words=f"queue {profile.conductor.queue}")
    if is_suspended_unasked(namespace, profile):
        return Finding(
            check="conductor",
            state="bad",
            words="Kueue takes Jobs without a queue too (manageJobsWithoutQueueName, or a "
            "LocalQueue 'default'), so a conductor would hold the quota its stages wait for",
            fix="give it a queue of its own: profile.conductor.queue",
        )
    return Finding(check="conductor", state="good", words="waits in no queue")


def _images(namespace: Namespace, patient: Patient) -> Iterator[Finding]:
    if not patient.with_pods:
        yield Finding(
            check="images",
            state="warning",
            words="not looked at",
            fix="--pods starts one of each for a moment",
        )
        return
    try:
        for tried in try_pods(namespace, patient.profile):
            yield Finding(
                check=tried.what,
                state="bad" if tried.problem else "good",
                words=tried.problem or "a pod of it ran",
            )
    except (NotThere, Refused, Unavailable) as error:
        yield Finding(check="images", state="bad", words=str(error))
