"""What a pod must be to run anywhere we promise: Pod Security *restricted*, and our own rules.

Written from the published standard
(https://kubernetes.io/docs/concepts/security/pod-security-standards/), as a second opinion
on what is rendered; a cluster's admission is the first.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from modelmill.spec.quantity import amount

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def pod_problems(pod: Mapping[str, Any]) -> list[str]:
    """List everything that is wrong with a pod's spec; nothing if it may run."""
    return [*_restricted(pod), *_ours(pod)]


def _containers(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for part in ("initContainers", "containers", "ephemeralContainers"):
        yield from pod.get(part, [])


def _restricted(pod: Mapping[str, Any]) -> Iterator[str]:
    security = pod.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"{field} is on"
    for volume in pod.get("volumes", []):
        for kind in volume.keys() - {"name"} - VOLUMES:
            yield f"volume {volume['name']} is a {kind}"
    for field in ("sysctls", "seLinuxOptions", "appArmorProfile"):
        if security.get(field):
            yield f"the pod sets {field}"
    for container in _containers(pod):
        own = {**security, **container.get("securityContext", {})}
        yield from (f"{container['name']} {words}" for words in _unrestricted(own))
        if any(port.get("hostPort") for port in container.get("ports", [])):
            yield f"{container['name']} takes a port of the node"


def _unrestricted(security: Mapping[str, Any]) -> Iterator[str]:
    if security.get("runAsNonRoot") is not True:
        yield "may run as root"
    if security.get("runAsUser") == 0:
        yield "runs as user 0"
    if security.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        yield "has no seccomp profile"
    if security.get("allowPrivilegeEscalation") is not False:
        yield "may escalate privileges"
    capabilities = security.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield "keeps capabilities"
    if security.get("privileged") or security.get("procMount", "Default") != "Default":
        yield "is privileged"


def _ours(pod: Mapping[str, Any]) -> Iterator[str]:
    if pod.get("automountServiceAccountToken") is not (
        pod["serviceAccountName"] == "modelmill-conductor"
    ):
        yield "only the conductor has a token, and it has one"
    if pod.get("enableServiceLinks") is not False:
        yield "addresses of services are in the environment"
    for container in _containers(pod):
        name = container["name"]
        own = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        if {"runAsUser", "runAsGroup"} & own.keys():
            yield f"{name} names a user, which OpenShift refuses"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{name} may write to its image"
        yield from _resource_problems(name, container.get("resources", {}))
        for variable in container.get("env", []):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                yield f"{name} has a secret in its environment ({variable['name']})"
    for volume in pod.get("volumes", []):
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} has no limit"


def _resource_problems(name: str, resources: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for resource in ("cpu", "memory", "ephemeral-storage"):
        if resource not in requests or resource not in limits:
            yield f"{name} does not say how much {resource} it takes"
    for resource in requests.keys() & limits.keys():
        if amount(requests[resource]) > amount(limits[resource]):
            yield f"{name} asks for more {resource} than it may take"
