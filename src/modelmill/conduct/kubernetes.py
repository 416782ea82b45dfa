"""One namespace of a Kubernetes API server: mirrored, read and written to.

The only module that imports the Kubernetes client.  Objects come out parsed, manifests go
in as JSON, and what the server answers becomes one of four exceptions.  Decides nothing.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.client.rest import RESTResponse
from kubernetes.informer import ADDED, DELETED, ERROR, MODIFIED, SharedInformer
from pydantic import JsonValue

from modelmill.conduct.answers import Conflict, NotThere, Refused, Unavailable
from modelmill.conduct.owner import Owner
from modelmill.conduct.seen import (
    AnchorSeen,
    EventSeen,
    JobSeen,
    NamespaceSeen,
    ObjectSeen,
    PodSeen,
    QueuesSeen,
    WorkloadSeen,
    WorkloadsSeen,
)
from modelmill.spec.errors import InputMissing

RECONNECT_SECONDS: Final = 1.0
"""The client's informer reconnects at once, and for ever, while a server is away."""
REQUEST_SECONDS: Final = 20.0
LOG_SECONDS: Final = 5.0
"""A log comes from the kubelet; one that is silent must not hold up who asks."""
FIRST_LIST_SECONDS: Final = 30.0

Manifest = Mapping[str, JsonValue]
Seen = TypeVar("Seen", bound=ObjectSeen)


@dataclass(frozen=True)
class Mirror(Generic[Seen]):
    """What the server has of one kind, as of a moment ago."""

    informer: SharedInformer
    parse: Callable[[object], Seen]

    def all(self) -> tuple[Seen, ...]:
        """List the objects, oldest first."""
        found = (self.parse(each) for each in self.informer.cache.list())
        return tuple(sorted(found, key=lambda each: each.age))


class _Client(client.ApiClient):
    """The client, with an end to every request but those that watch; it has none of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0

    def call_api(
        self,
        method: str,
        url: str,
        header_params: dict[str, str] | None = None,
        body: object = None,
        post_params: list[tuple[str, str]] | None = None,
        _request_timeout: float | tuple[float, float] | None = None,
    ) -> RESTResponse:
        self.requests += 1
        if _request_timeout is None and "watch=True" not in url:
            _request_timeout = REQUEST_SECONDS
        return super().call_api(method, url, header_params, body, post_params, _request_timeout)


class Namespace:
    """What one identity sees and does in one namespace."""

    def __init__(self, api: _Client, name: str) -> None:
        """Speak to the server that `api` is configured for."""
        self.name = name
        self._api = api
        self._core = client.CoreV1Api(api)
        self._batch = client.BatchV1Api(api)
        self._custom = client.CustomObjectsApi(api)
        self._changed = threading.Event()
        self._informers: list[SharedInformer] = []

    def mirror_jobs(self, selector: str) -> Mirror[JobSeen]:
        """Keep a copy of the Jobs that a label selector names."""
        return self._mirror(self._batch.list_namespaced_job, JobSeen, selector)

    def mirror_pods(self, selector: str) -> Mirror[PodSeen]:
        """Keep a copy of the pods that a label selector names."""
        return self._mirror(self._core.list_namespaced_pod, PodSeen, selector)

    def wait_for_change(self, seconds: float) -> None:
        """Return when something mirrored has changed, or after some time."""
        self._changed.wait(seconds)
        self._changed.clear()

    @property
    def requests(self) -> int:
        """How many requests were made; a watch is one for as long as it lasts."""
        return self._api.requests

    def close(self) -> None:
        """Stop mirroring."""
        for informer in self._informers:
            informer.stop()

    def server_version(self) -> tuple[int, int]:
        """Ask the API server for its version."""
        with _answers():
            found = client.VersionApi(self._api).get_code()
        return int(found.major), int(found.minor.rstrip("+"))

    def may(self, verb: str, group: str, resource: str) -> bool:
        """Ask whether this identity may do something here."""
        resource, _, subresource = resource.partition("/")
        review = client.V1SelfSubjectAccessReview(
            spec=client.V1SelfSubjectAccessReviewSpec(
                resource_attributes=client.V1ResourceAttributes(
                    namespace=self.name,
                    verb=verb,
                    group=group,
                    resource=resource,
                    subresource=subresource,
                )
            )
        )
        with _answers():
            answer = client.AuthorizationV1Api(self._api).create_self_subject_access_review(review)
        return bool(answer.status and answer.status.allowed)

    def has_account(self, name: str) -> bool:
        """Tell whether a ServiceAccount exists."""
        try:
            with _answers():
                self._core.read_namespaced_service_account(name, self.name)
        except NotThere:
            return False
        return True

    def local_queues(self) -> tuple[str, ...] | None:
        """List the LocalQueues of Kueue; None where there is no Kueue."""
        try:
            with _answers():
                found = self._custom.list_namespaced_custom_object(
                    "kueue.x-k8s.io", "v1beta1", self.name, "localqueues"
                )
        except NotThere:
            return None
        return tuple(each.metadata.name for each in QueuesSeen.model_validate(found).items)

    def owner_of(self, release: str) -> str:
        """Name a release so that no release of another cluster has the name."""
        with _answers():
            found = _parse(self._api, NamespaceSeen, self._core.read_namespace(self.name))
        return str(Owner(release, self.name, found.metadata.uid))

    def read_anchor(self, name: str) -> AnchorSeen:
        """Read a ConfigMap's metadata.

        Raises:
            NotThere: the release was uninstalled, or never installed.
        """
        with _answers():
            return _parse(
                self._api, AnchorSeen, self._core.read_namespaced_config_map(name, self.name)
            )

    def create_job(self, manifest: Manifest) -> JobSeen:
        """Create a Job.

        Raises:
            Conflict: one of that name exists.
            Refused: quota, admission or permissions.
        """
        with _answers():
            body = client.V1Job.model_validate(manifest)
            return _parse(self._api, JobSeen, self._batch.create_namespaced_job(self.name, body))

    def try_job(self, manifest: Manifest) -> JobSeen:
        """Let the server look at a Job without making it; returns what it would be.

        Raises:
            Refused: quota, admission or permissions.
        """
        with _answers():
            body = client.V1Job.model_validate(manifest)
            tried = self._batch.create_namespaced_job(self.name, body, dry_run="All")
            return _parse(self._api, JobSeen, tried)

    def read_job(self, name: str) -> JobSeen:
        """Read a Job.

        Raises:
            NotThere: there is none.
        """
        with _answers():
            return _parse(self._api, JobSeen, self._batch.read_namespaced_job(name, self.name))

    def read_pod(self, name: str) -> PodSeen:
        """Read a pod.

        Raises:
            NotThere: there is none.
        """
        with _answers():
            return _parse(self._api, PodSeen, self._core.read_namespaced_pod(name, self.name))

    def delete_job(self, job: JobSeen) -> None:
        """Delete this very Job and, after their grace period, its pods."""
        with _answers():
            self._batch.delete_namespaced_job(
                job.metadata.name,
                self.name,
                body=client.V1DeleteOptions(
                    propagation_policy="Background",
                    preconditions=client.V1Preconditions(uid=job.metadata.uid),
                ),
            )

    def end_retries(self, job: str) -> None:
        """Let a Job fail with its next failed pod, whatever its limit was."""
        with _answers():
            self._batch.patch_namespaced_job(job, self.name, {"spec": {"backoffLimit": 0}})

    def delete_pod_by_force(self, pod: PodSeen) -> None:
        """Delete this very pod at once, although its node does not answer."""
        with _answers():
            self._core.delete_namespaced_pod(
                pod.metadata.name,
                self.name,
                body=client.V1DeleteOptions(
                    grace_period_seconds=0,
                    preconditions=client.V1Preconditions(uid=pod.metadata.uid),
                ),
            )

    def log_of(self, pod: PodSeen, container: str) -> bytes:
        """Read what a pod has printed so far."""
        with _answers():
            text = self._core.read_namespaced_pod_log(
                pod.metadata.name, self.name, container=container, _request_timeout=LOG_SECONDS
            )
        return _bytes(text)

    def timed_log_of(
        self, pod: PodSeen, container: str, since_seconds: int | None
    ) -> tuple[tuple[str, bytes], ...]:
        """Read what a pod has printed lately, or all of it: when, and the line with its end."""
        with _answers():
            text = self._core.read_namespaced_pod_log(
                pod.metadata.name,
                self.name,
                container=container,
                timestamps=True,
                since_seconds=since_seconds,
                _request_timeout=LOG_SECONDS,
            )
        parts = (line.partition(b" ") for line in _bytes(text).split(b"\n") if line)
        return tuple((time.decode(), words + b"\n") for time, _, words in parts)

    def list_jobs(self, selector: str) -> tuple[JobSeen, ...]:
        """List the Jobs that a label selector names, oldest first."""
        with _answers():
            found = self._batch.list_namespaced_job(self.name, label_selector=selector)
        return _parsed(self._api, JobSeen, found.items)

    def list_pods(self, selector: str) -> tuple[PodSeen, ...]:
        """List the pods that a label selector names, oldest first."""
        with _answers():
            found = self._core.list_namespaced_pod(self.name, label_selector=selector)
        return _parsed(self._api, PodSeen, found.items)

    def events_about(self, uid: str) -> tuple[EventSeen, ...]:
        """List what is said about an object, oldest first."""
        with _answers():
            found = self._core.list_namespaced_event(
                self.name, field_selector=f"involvedObject.uid={uid}"
            )
        return _parsed(self._api, EventSeen, found.items)

    def workload_of(self, job: JobSeen) -> WorkloadSeen | None:
        """Find what Kueue makes of a Job; None where there is no Kueue."""
        try:
            with _answers():
                found = self._custom.list_namespaced_custom_object(
                    "kueue.x-k8s.io",
                    "v1beta1",
                    self.name,
                    "workloads",
                    label_selector=f"kueue.x-k8s.io/job-uid={job.metadata.uid}",
                )
        except (NotThere, Refused):
            return None
        return next(iter(WorkloadsSeen.model_validate(found).items), None)

    def say(self, event: Manifest) -> None:
        """Write a Kubernetes Event."""
        with _answers():
            self._core.create_namespaced_event(self.name, client.CoreV1Event.model_validate(event))

    def _mirror(
        self, listing: Callable[..., object], kind: type[Seen], selector: str
    ) -> Mirror[Seen]:
        listed = threading.Event()

        # The informer finds out by name, documentation and signature what it watches.
        @functools.wraps(listing)
        def list_and_tell(*positional: object, **named: object) -> object:
            answer = listing(*positional, **named)
            if not named.get("watch"):
                listed.set()
            return answer

        informer = SharedInformer(list_and_tell, namespace=self.name, label_selector=selector)
        for kind_of_event in (ADDED, MODIFIED, DELETED):
            informer.add_event_handler(kind_of_event, lambda _: self._changed.set())
        informer.add_event_handler(ERROR, lambda _: time.sleep(RECONNECT_SECONDS))
        informer.start()
        self._informers.append(informer)
        if not listed.wait(FIRST_LIST_SECONDS):
            raise Unavailable("the API server does not answer")
        return Mirror(informer, functools.partial(_parse, self._api, kind))


def in_cluster(namespace: str) -> Namespace:
    """Speak as the pod's ServiceAccount."""
    config.load_incluster_config()
    return Namespace(_Client(), namespace)


def from_kubeconfig(context: str | None, namespace: str | None) -> Namespace:
    """Speak as the user of a kubeconfig, in the context's namespace unless another is named.

    Raises:
        InputMissing: there is no usable kubeconfig.
    """
    try:
        config.load_kube_config(context=context)
        _, active = config.list_kube_config_contexts()
    except config.ConfigException as error:
        raise InputMissing(
            f"There is no usable kubeconfig: {error}",
            fix="set KUBECONFIG, or name a context with --context",
        ) from None
    return Namespace(_Client(), namespace or active["context"].get("namespace", "default"))


def _bytes(log: str | None) -> bytes:
    """Undo what the client makes of a log; one in which there is nothing yet is None."""
    return (log or "").encode()


def _parse(api: client.ApiClient, kind: type[Seen], found: object) -> Seen:
    return kind.model_validate(api.sanitize_for_serialization(found))


def _parsed(api: client.ApiClient, kind: type[Seen], found: Iterable[object]) -> tuple[Seen, ...]:
    return tuple(sorted((_parse(api, kind, each) for each in found), key=lambda each: each.age))


@contextmanager
def _answers() -> Iterator[None]:
    """Turn what the server, or the way to it, answers into our exceptions."""
    try:
        yield
    except ApiException as error:
        raise _as_ours(error) from None
    except urllib3.exceptions.HTTPError as error:
        raise Unavailable(str(error)) from None


def _as_ours(error: ApiException) -> Exception:
    body = error.body if isinstance(error.body, str) else ""
    try:
        text = client.V1Status.model_validate_json(body).message or str(error.reason)
    except ValueError:
        text = body or str(error.reason)
    match error.status:
        case 404:
            return NotThere(text)
        case 409:
            return Conflict(text)
        case 0 | 401 | 429 | 500 | 502 | 503 | 504:
            # 401: the token of a pod is renewed while it runs, and may be late.
            return Unavailable(text)
        case _:
            return Refused(text)
