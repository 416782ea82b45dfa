"""How long a cluster stands still between two stages, and what of it the conductor takes.

    k8s/dev/with.sh .venv/bin/python benchmarks/handoff.py [--rounds N]

A run of eighteen stages that do next to nothing is driven by a conductor in its pod; the peer
is the shortest chain there is without one: a watcher on this machine that creates the next
of as many Jobs as soon as one is Complete.  Both start the same image with the same pod, and
their containers print when they begin and end, so a hand-off is what a GPU would stand idle.
The conductor's share is the time from the moment a watcher sees a pod succeed until it sees
the next Job, in the same stream of events.  The last line is one JSON object.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from tests.cluster.team import Team, run_command, small  # noqa: E402
from tests.workshop import write_model, write_rows  # noqa: E402

VARIANTS = (
    *({"method": "gptq", "bits": bits} for bits in (8, 4, 3, 2)),
    {"method": "bitsandbytes"},
    {"method": "bitsandbytes", "double_quant": False, "name": "nf4-single"},
)
STAND_IN = (CHECKOUT / "tests" / "stand_in.py").read_text(encoding="utf-8")
CLOCK = "date +'clock %s.%N'"

Json = dict[str, Any]


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    ours: list[float] = []
    floor: list[float] = []
    shares: list[float] = []
    requests: list[int] = []
    with prepared() as team:
        for number in range(rounds):
            with Watch(team, f"modelmill/run=hops-{number},modelmill/stage") as watch:
                run = drive(team, number)
            taken = hops(team, f"modelmill/run={run},modelmill/stage")
            ours += taken
            shares += watch.shares()
            requests.append(requests_of(team, run))
            bare(team, number, len(taken) + 1)
            floor += hops(team, f"chain={number}")
            say(f"round {number}: hand-off {median(ours)} s, without a conductor {median(floor)} s")
    result = {
        "handoff_seconds": summary(ours),
        "floor_seconds": summary(floor),
        "conductor_share_seconds": summary(shares),
        "requests_per_run": round(statistics.median(requests)),
        "stages_per_run": len(taken) + 1,
        "ratio": round(statistics.median(ours) / statistics.median(floor), 2),
    }
    print(json.dumps(result))


def drive(team: Team, number: int) -> str:
    """Drive a run to its end; its rows are its own, so nothing of it is committed yet."""
    for name in ("train", "test"):
        write_rows(team.folder / f"{name}.jsonl", 20 + number)
    write_model(team.folder / f"model-{number}")
    run = f"hops-{number}"
    ended = team.submit(
        *("--name", run, "--wait", "--set", f"seed={number}"),
        *("--set", f"model.source=model-{number}", "--set", f"infer.max_new_tokens={number + 1}"),
    )
    if ended.returncode != 0:
        sys.exit(ended.stderr)
    return run


def requests_of(team: Team, run: str) -> int:
    """Read from the conductor's log how often it asked the API server."""
    log = team.kubectl("logs", "--selector", f"modelmill/run={run},modelmill/role=conductor")
    found = re.search(r"(\d+) requests to the API server", log)
    return int(found[1]) if found else 0


def bare(team: Team, number: int, count: int) -> None:
    """Run so many Jobs in a chain, each created when the one before is Complete."""
    [pod] = team.objects("pods", "modelmill/run=hops-0,modelmill/stage=fetch-test")
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": pod["spec"]["securityContext"],
        "containers": [
            {
                **{key: pod["spec"]["containers"][0][key] for key in ("image", "securityContext")},
                "name": "stage",
                "args": ["sh", "-c", f"{CLOCK}; sleep 1; {CLOCK}"],
                "resources": pod["spec"]["containers"][0]["resources"],
            }
        ],
    }
    for hop in range(count):
        name = f"bare-{number}-{hop}"
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name},
            "spec": {
                "backoffLimit": 0,
                "template": {"metadata": {"labels": {"chain": str(number)}}, "spec": spec},
            },
        }
        team.kubectl("create", "--filename", "-", stdin=json.dumps(job))
        team.kubectl("wait", f"job/{name}", "--for=condition=Complete", "--timeout=120s")


def hops(team: Team, selector: str) -> list[float]:
    """List how long each pod began after the one before had ended, by their own clocks."""
    lives = []
    for pod in team.objects("pods", selector):
        log = team.kubectl("logs", pod["metadata"]["name"])
        times = [float(each) for each in re.findall(r"^clock ([0-9.]+)$", log, re.MULTILINE)]
        lives.append((times[0], times[-1]))
    lives.sort()
    return [later[0] - earlier[1] for earlier, later in pairwise(lives)]


@dataclass
class Watch:
    """What an observer sees of pods and Jobs, and when."""

    team: Team
    selector: str
    _seen: list[tuple[float, str]] = field(default_factory=list)
    _watches: list[subprocess.Popen[str]] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Begin to watch."""
        for kind in ("pods", "jobs"):
            process = subprocess.Popen(
                [
                    *("kubectl", "--namespace", self.team.namespace, "get", kind, "--watch"),
                    *("--selector", self.selector, "--output", "json"),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            thread = threading.Thread(target=self._read, args=(process, kind), daemon=True)
            thread.start()
            self._watches.append(process)
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        """Watch no more."""
        for process in self._watches:
            process.kill()
        for thread in self._threads:
            thread.join()

    def _read(self, process: "subprocess.Popen[str]", kind: str) -> None:
        assert process.stdout is not None
        known: set[str] = set()
        for document in documents(process.stdout):
            name = document["metadata"]["name"]
            is_end = kind == "pods" and document["status"]["phase"] == "Succeeded"
            if (kind == "jobs" or is_end) and name not in known:
                known.add(name)
                self._seen.append((time.monotonic(), "start" if kind == "jobs" else "end"))

    def shares(self) -> list[float]:
        """List the times from a pod's end to the next Job."""
        seen = sorted(self._seen)
        return [b[0] - a[0] for a, b in pairwise(seen) if (a[1], b[1]) == ("end", "start")]


def documents(stream: Iterator[str]) -> Iterator[Json]:
    """Split what `kubectl --watch --output json` prints into documents."""
    lines: list[str] = []
    for line in stream:
        lines.append(line)
        if line == "}\n":
            yield json.loads("".join(lines))
            lines.clear()


@contextmanager
def prepared() -> Iterator[Team]:
    """Prepare a namespace, and a run whose stages a stand-in plays in the light image."""
    with tempfile.TemporaryDirectory() as temporary:
        team = Team(f"handoff-{uuid.uuid4().hex[:8]}", Path(temporary))
        base = os.path.relpath(CHECKOUT / "k8s" / "base", team.folder / "overlay")
        (team.folder / "overlay").mkdir()
        kustomization = {"namespace": team.namespace, "resources": [base]}
        (team.folder / "overlay" / "kustomization.yaml").write_text(json.dumps(kustomization))
        run_command(["kubectl", "apply", "--kustomize", str(team.folder / "overlay")])
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        lines = [f"{key.lower()} = {os.environ[key]}" for key in keys]
        (team.folder / "credentials").write_text("\n".join(["[default]", *lines]))
        secret = ["create", "secret", "generic", "modelmill-store"]
        team.kubectl(*secret, f"--from-file={team.folder}/credentials")
        team.write_run(**spec())
        team.write_profile(stages=stages(team))
        try:
            yield team
        finally:
            run_command(["kubectl", "delete", "namespace", team.namespace, "--wait=false"])


def spec() -> Mapping[str, Any]:
    """Ask for many models, so that there are many stages."""
    template = {"prompt": "{question}", "completion": "{answer}"}
    rows = {"train": "train.jsonl", "test": "test.jsonl"}
    return {
        "data": {**rows, "template": template, "max_length": 128},
        "quantize": list(VARIANTS),
    }


def stages(team: Team) -> Mapping[str, Json]:
    """Let the light image play every stage, and say when each container begins and ends."""
    image = f"{team.profile()['images']['registry']}/modelmill-light"
    tag = team.profile()["images"]["tag"]
    container = "/spec/template/spec/containers/0"

    def patch(program: Sequence[str]) -> list[Json]:
        words = ["sh", "-c", f'{CLOCK}; "$@"; code=$?; {CLOCK}; exit $code', "sh", *program]
        return [
            {"op": "replace", "path": f"{container}/args", "value": words},
            {"op": "replace", "path": f"{container}/image", "value": f"{image}:{tag}"},
        ]

    real, played = ["python", "-m", "modelmill.stages"], ["python", "-c", STAND_IN]
    return {
        kind: small(*patch(real if kind.startswith(("fetch", "report")) else played))
        for kind in ("fetch-model", "fetch-data", "fetch-test", "quantize", "infer", "report")
    }


def summary(values: Sequence[float]) -> Mapping[str, float]:
    """Sum up a sample."""
    ordered = sorted(values)
    return {
        "median": median(ordered),
        "p95": round(ordered[round(0.95 * (len(ordered) - 1))], 2),
        "n": len(ordered),
    }


def median(values: Sequence[float]) -> float:
    """Take the median, to the hundredth."""
    return round(statistics.median(values), 2)


def say(words: str) -> None:
    """Tell whoever waits."""
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
