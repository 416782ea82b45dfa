"""Run stages as containers of one machine, by the command of Docker, Podman or nerdctl.

A complete backend in two hundred lines, to write another one from: docs/backends.md walks through
it, and tests/conduct/test_containers.py holds it against the contract of all backends.

    python examples/backend/containers.py RUN.yaml --image light=IMAGE --image train=IMAGE ...
"""

import argparse
import json
import logging
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modelmill.conduct.backend import Attempt, Order
from modelmill.conduct.conductor import Conductor
from modelmill.conduct.in_project import LogWatcher
from modelmill.conduct.local import last_words
from modelmill.conduct.prepare import Asked, prepare, run_name
from modelmill.spec.errors import DeviceFault, DoesNotFit, InputMissing
from modelmill.spec.loading import load_run
from modelmill.spec.names import (
    ENV_ATTEMPT,
    ENV_GRACE_SECONDS,
    ENV_HALVINGS,
    ENV_PLAN_SHA256,
    ENV_RUN,
    ENV_STAGE,
    ENV_STORE,
    ENV_TERMINATION,
    Environment,
)
from modelmill.spec.profile import Profile
from modelmill.spec.records import Progress
from modelmill.store.address import open_store
from modelmill.store.artifact import attempt_id

LABELS = ("run", "stage", "key", "number")
INSIDE = "/run/modelmill"
"""Where a container sees the folder that it leaves its last words in."""


@dataclass
class ContainerBackend:
    """Runs stages as containers; the engine remembers them, and nothing is kept here."""

    run: str
    store_url: str
    images: Mapping[Environment, str]
    folder: Path
    """Holds a folder for each attempt's last words."""
    program: str = "docker"
    grace_seconds: int = 120
    _stopping: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    """By attempt that was asked to stop, the command that waits for its end."""

    def attempts(self) -> tuple[Attempt, ...]:
        """List every container of the run, oldest first."""
        names = self._say("ps", "--all", "--quiet", "--filter", f"label=modelmill.run={self.run}")
        if not names.split():
            return ()
        found = json.loads(self._say("inspect", *names.split()))
        found.sort(key=lambda each: str(each["Created"]))
        return tuple(map(self._attempt, found))

    def start(self, order: Order) -> Attempt:
        """Start a container that is called like the attempt.

        Raises:
            InputMissing: nobody has named an image for its environment.
            DeviceFault: the engine refuses.
        """
        image = self.images.get(order.environment)
        if image is None:
            raise InputMissing(f"No image for '{order.environment}'", fix="name one with --image")
        attempt = attempt_id()
        left = self.folder / attempt
        left.mkdir(parents=True)
        labels = (self.run, order.stage, order.key, str(order.number))
        words = [f"modelmill.{name}={value}" for name, value in zip(LABELS, labels, strict=True)]
        # A name alone takes its value from here: what is secret stands in no command line.
        told = [name for name in os.environ if name.startswith(("AWS_", "MODELMILL_", "HF_"))]
        told += [f"{name}={value}" for name, value in self._told(order, attempt).items()]
        self._say(
            *("run", "--detach", "--name", attempt, "--volume", f"{left}:{INSIDE}"),
            *(each for word in words for each in ("--label", word)),
            *(each for word in told for each in ("--env", word)),
            *(image, "python", "-m", "modelmill.stages"),
        )
        return Attempt(attempt, order.stage, order.key, order.number, is_live=True)

    def stop(self, attempt: Attempt) -> None:
        """Ask the engine, which kills what outlives the grace period; do not wait for it."""
        if attempt.id not in self._stopping:
            words = ["stop", "--time", str(self.grace_seconds), attempt.id]
            self._stopping[attempt.id] = subprocess.Popen(
                [self.program, *words], stdout=subprocess.DEVNULL
            )

    def log(self, attempt: Attempt) -> bytes:
        """Read what an attempt has printed."""
        command = [self.program, "logs", attempt.id]
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        ).stdout

    def progress(self, attempt: Attempt) -> Progress | None:
        """Leave it to the store, where stages tell it."""

    def wait(self, seconds: float) -> None:
        """Sleep: engines differ in how they tell of events."""
        time.sleep(min(seconds, 1.0))

    def is_wanted(self) -> bool:
        """Leave it to run.json, where a newer conductor writes its name."""
        return True

    def close(self) -> None:
        """Stop every container of the run and wait until it has ended."""
        while live := [each for each in self.attempts() if each.is_live]:
            for attempt in live:
                self.stop(attempt)
            time.sleep(0.2)
        for command in self._stopping.values():
            command.wait()

    def _told(self, order: Order, attempt: str) -> dict[str, str]:
        return {
            ENV_STORE: self.store_url,
            ENV_RUN: self.run,
            ENV_STAGE: order.stage,
            ENV_PLAN_SHA256: order.plan_sha256,
            ENV_ATTEMPT: attempt,
            ENV_HALVINGS: str(order.halvings),
            ENV_GRACE_SECONDS: str(self.grace_seconds),
            ENV_TERMINATION: f"{INSIDE}/termination",
        }

    def _attempt(self, seen: dict[str, Any]) -> Attempt:
        labels, state = seen["Config"]["Labels"], seen["State"]
        name = str(seen["Name"]).lstrip("/")
        stage, key, number = (labels[f"modelmill.{each}"] for each in LABELS[1:])
        attempt = Attempt(name, stage, key, int(number), is_live=True)
        if state["Status"] not in ("exited", "dead"):
            return attempt
        if state.get("OOMKilled"):
            words = DoesNotFit.meaning()
            return replace(
                attempt, is_live=False, exit_code=DoesNotFit.exit_code, message=words, is_oom=True
            )
        code = int(state["ExitCode"])
        return replace(
            attempt, is_live=False, exit_code=code, message=last_words(self.folder / name, code)
        )

    def _say(self, *words: str) -> str:
        ended = subprocess.run([self.program, *words], capture_output=True, text=True, check=False)
        if ended.returncode:
            raise DeviceFault(f"{self.program} {words[0]} failed: {ended.stderr.strip()}")
        return ended.stdout


def main() -> int:
    """Run a spec with containers of this machine, on the store that MODELMILL_STORE names."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--image", action="append", default=[], metavar="ENVIRONMENT=IMAGE")
    given = parser.parse_args()
    store, run = open_store(os.environ[ENV_STORE]), run_name(given.file)
    images = dict(each.split("=", 1) for each in given.image)
    asked = Asked(run, given.file.resolve().parent)
    backend = ContainerBackend(run, store.url, images, Path(".modelmill/containers").resolve())
    conducted = prepare(store, load_run(given.file, []), Profile(), asked)
    conductor = Conductor(conducted, backend, LogWatcher())
    verdict = conductor.drive()
    conductor.leave(verdict.exit_code)
    return verdict.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
