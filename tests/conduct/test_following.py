"""Logs are followed in pods and in the store, and every line is shown once."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from modelmill.conduct.answers import NotThere
from modelmill.conduct.following import Follower
from modelmill.conduct.seen import PodSeen
from modelmill.store.runs import put_log
from modelmill.store.s3 import Store


def pod(uid: str, stage: str = "merge") -> PodSeen:
    """Make a pod that runs."""
    return PodSeen.model_validate(
        {
            "metadata": {"name": uid, "uid": uid, "labels": {"modelmill/stage": stage}},
            "status": {
                "containerStatuses": [{"name": "stage", "state": {"running": {"startedAt": "x"}}}]
            },
        }
    )


@dataclass
class ScriptedPods:
    """Gives lines with their times, also those that were given before, as a server does."""

    pods: dict[str, list[tuple[str, bytes]]] = field(default_factory=dict)
    late: int = 0
    """So many of the oldest lines a late answer to a question about the last seconds lacks."""

    def list_pods(self, selector: str) -> tuple[PodSeen, ...]:
        """List what is there."""
        return tuple(map(pod, self.pods))

    def timed_log_of(
        self, pod: PodSeen, container: str, since_seconds: int | None
    ) -> Iterable[tuple[str, bytes]]:
        """Give everything that is not too old by the time of the answer."""
        lines = self.pods[pod.metadata.name]
        if not lines:
            raise NotThere
        return lines if since_seconds is None else lines[self.late :]


@pytest.fixture
def run(request: pytest.FixtureRequest) -> str:
    """Name a run after the test, so that stores can be shared."""
    name: str = request.node.name
    return name.replace("_", "-").rstrip("]")[:20]


def texts(follower: Follower) -> list[tuple[str, bytes]]:
    """Look once."""
    return [(printed.attempt, printed.text) for printed in follower.look()]


def test_lines_are_shown_once_although_a_server_repeats_them(store: Store, run: str) -> None:
    """Lines of one timestamp too, which is as fine as a clock is."""
    pods = ScriptedPods({"a": [("1", b"one\n"), ("2", b"two\n"), ("2", b"two\n")]})
    follower = Follower(store, run, namespace=pods)
    assert texts(follower) == [("a", b"one\ntwo\ntwo\n")]
    assert texts(follower) == []
    pods.pods["a"] += [("2", b"more\n"), ("3", b"three\n")]
    assert texts(follower) == [("a", b"more\nthree\n")]
    assert texts(follower) == []


def test_late_answer_leaves_no_gap(store: Store, run: str) -> None:
    """Seconds are counted back from the answer, so a slow server forgets lines never shown."""
    pods = ScriptedPods({"a": [("1", b"one\n")]})
    follower = Follower(store, run, namespace=pods)
    assert texts(follower) == [("a", b"one\n")]
    pods.pods["a"] += [("2", b"two\n"), ("3", b"three\n"), ("4", b"four\n")]
    pods.late = 2
    assert texts(follower) == [("a", b"two\nthree\nfour\n")]
    pods.late = 4
    assert texts(follower) == []


def test_pod_that_is_gone_is_finished_from_the_store(store: Store, run: str) -> None:
    """Its conductor has kept the same bytes, so what was shown is left out."""
    pods = ScriptedPods({"a": [("1", b"one\n")]})
    follower = Follower(store, run, namespace=pods)
    assert texts(follower) == [("a", b"one\n")]
    put_log(store, run, "merge", "a", b"one\ntwo\n")
    assert texts(follower) == []
    pods.pods.clear()
    assert texts(follower) == [("a", b"two\n")]
    assert texts(follower) == []


def test_store_alone_will_do(store: Store, run: str) -> None:
    """Where no cluster is reached, logs come as often as a conductor keeps them."""
    follower = Follower(store, run)
    assert texts(follower) == []
    put_log(store, run, "merge", "a", b"one\n")
    put_log(store, run, "infer-base", "b", b"uno\n")
    assert texts(follower) == [("b", b"uno\n"), ("a", b"one\n")]
    put_log(store, run, "merge", "a", b"one\ntwo\n")
    assert texts(follower) == [("a", b"two\n")]
    assert texts(Follower(store, run, "infer-base")) == [("b", b"uno\n")]


def test_log_that_cannot_be_read_is_read_later(store: Store, run: str) -> None:
    """A container that has printed nothing, or a kubelet that is silent, is no error."""
    pods = ScriptedPods({"a": []})
    follower = Follower(store, run, namespace=pods)
    assert texts(follower) == []
    pods.pods["a"] = [("1", b"one\n")]
    assert texts(follower) == [("a", b"one\n")]
