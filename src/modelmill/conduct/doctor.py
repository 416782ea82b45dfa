"""Look at everything a run on a cluster needs, before one is started.

Each check says what it looked at, what it found, and what mends it; none stops at another.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from modelmill.conduct.answers import NotThere, Refused, Unavailable
from modelmill.conduct.helm import find_helm
from modelmill.conduct.kubernetes import Namespace, from_kubeconfig
from modelmill.conduct.place import opened_as_pods_see_it
from modelmill.spec.errors import ModelmillError
from modelmill.spec.names import CONDUCTOR_ACCOUNT, STAGE_ACCOUNT
from modelmill.spec.profile import Profile, check_cluster, queues_of
from modelmill.spec.records import Record
from modelmill.store.probe import check_conditional_writes

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


class Finding(Record):
    """What one check found."""

    check: str
    state: Literal["good", "bad", "warning"]
    words: str
    fix: str = ""


@dataclass(frozen=True)
class Patient:
    """What is examined."""

    profile: Profile
    namespace: str
    context: str | None
    store_url: str | None


def examine(patient: Patient) -> tuple[Finding, ...]:
    """Run every check."""
    findings = [
        _checked("profile", lambda: _profile(patient)),
        _checked("helm", lambda: _helm(patient)),
    ]
    findings.append(_checked("store", lambda: _store(patient)))
    try:
        namespace = from_kubeconfig(patient.context, patient.namespace)
    except ModelmillError as error:
        return (*findings, Finding(check="cluster", state="bad", words=error.what, fix=error.fix))
    findings.append(_checked("cluster", lambda: _version(namespace)))
    if findings[-1].state == "good":
        findings.append(_checked("permissions", lambda: _permissions(namespace)))
        findings.append(_checked("accounts", lambda: _accounts(namespace)))
        findings += _queues(namespace, patient.profile)
    return tuple(findings)


def _checked(check: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except ModelmillError as error:
        words = f"{error.what} ({error.at})" if error.at else error.what
        return Finding(check=check, state="bad", words=words, fix=error.fix)
    except (NotThere, Refused, Unavailable) as error:
        return Finding(check=check, state="bad", words=str(error) or type(error).__name__)


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


def _store(patient: Patient) -> Finding:
    with opened_as_pods_see_it(patient.profile, patient.store_url) as store:
        check_conditional_writes(store)
        return Finding(check="store", state="good", words=f"{store.url} has conditional writes")


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
    """Check the queues the profile names, and two traps of Kueue's."""
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
    if known and "default" in known and not profile.conductor.queue:
        yield Finding(
            check="queues",
            state="warning",
            words="a LocalQueue 'default' takes every Job, the conductor's too",
            fix="give the conductor a queue of its own: profile.conductor.queue",
        )
    if not missing and asked:
        yield Finding(check="queues", state="good", words=", ".join(sorted(asked)))
