"""Run stages as processes of this machine, each in the environment its image would have.

Knows processes, folders and environments; decides nothing about stages.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from pydantic import TypeAdapter, ValidationError

from modelmill.conduct.backend import Attempt, Order
from modelmill.spec.errors import (
    DoesNotFit,
    InputMissing,
    InternalError,
    Problem,
    SpecError,
    meaning_of,
)
from modelmill.spec.infer import MetricsSpec
from modelmill.spec.names import (
    ENV_ATTEMPT,
    ENV_CHECKPOINT_SECONDS,
    ENV_FSDP,
    ENV_GRACE_SECONDS,
    ENV_HALVINGS,
    ENV_HUNG_AFTER_SECONDS,
    ENV_PARENT_PID,
    ENV_PLAN_SHA256,
    ENV_PROGRESS_FILE,
    ENV_RANKS,
    ENV_RUN,
    ENV_STAGE,
    ENV_STORE,
    ENV_TERMINATION,
    ENV_WORK,
    ENVIRONMENT_OF,
    HUB_TOKENS,
    WEBHOOK_VARIABLES,
    Environment,
    Kind,
    is_fetch,
    kind_of,
)
from modelmill.spec.profile import Profile
from modelmill.spec.records import Ending, Progress
from modelmill.store.artifact import attempt_id
from modelmill.store.memory import Memory

LOOK_SECONDS: Final = 0.2
GRACE_SECONDS: Final = 20.0
"""A stage needs it to save what can be resumed; a native call may hold it up."""

LIBRARIES: Final[Mapping[str, str]] = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    # OpenMP threads that spin at barriers starve each other as soon as anything else
    # wants a core: 13.6 CPU seconds per training step instead of 5.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "PYTHONUNBUFFERED": "1",
    # Set, it makes every stage compile its libraries anew: 12 s of a training start.
    "PYTHONDONTWRITEBYTECODE": "",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What libraries are told that a stage loads."""


@dataclass(frozen=True)
class Place:
    """Where this backend works."""

    home: Path
    """`.modelmill`: environments, work folders, logs."""
    store_url: str
    store_environment: Mapping[str, str]
    """The AWS SDK's variables."""


@dataclass
class _Process:
    attempt: Attempt
    handle: subprocess.Popen[bytes]
    folder: Path
    log: IO[bytes]
    memory: Memory
    kill_at: float | None = None


@dataclass
class LocalBackend:
    """Runs stages as child processes that do not outlive it."""

    run: str
    place: Place
    grace_seconds: float = GRACE_SECONDS
    profile: Profile = field(default_factory=Profile)
    _processes: list[_Process] = field(default_factory=list)

    def attempts(self) -> tuple[Attempt, ...]:
        """List every attempt started here, oldest first."""
        for process in self._processes:
            self._observe(process)
        return tuple(process.attempt for process in self._processes)

    def start(self, order: Order) -> Attempt:
        """Start a stage in its own process group.

        Raises:
            InputMissing: its environment has not been made.
        """
        python = interpreter(self.place.home, order.environment)
        attempt = Attempt(attempt_id(), order.stage, order.key, order.number, is_live=True)
        folder = self.place.home / "attempts" / attempt.id
        folder.mkdir(parents=True)
        log = (folder / "log").open("wb")
        handle = subprocess.Popen(
            [str(python), "-m", "modelmill.stages"],
            env=self._environment(order, attempt.id, folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            # Ctrl-C is for the conductor, which then stops its stages in order.
            start_new_session=True,
        )
        self._processes.append(_Process(attempt, handle, folder, log, Memory(handle.pid)))
        return attempt

    def stop(self, attempt: Attempt) -> None:
        """Send SIGTERM once; SIGKILL follows when the grace period is over."""
        process = self._find(attempt)
        if process.attempt.is_live and process.kill_at is None:
            process.kill_at = time.monotonic() + self.grace_seconds
            signal_group(process.handle, signal.SIGTERM)

    def log(self, attempt: Attempt) -> bytes:
        """Read what an attempt has printed so far."""
        return (self._find(attempt).folder / "log").read_bytes()

    def progress(self, attempt: Attempt) -> Progress | None:
        """Read where a live attempt is."""
        try:
            text = (self._find(attempt).folder / "progress").read_text(encoding="utf-8")
            return Progress.model_validate_json(text)
        except (OSError, ValidationError):
            return None

    def wait(self, seconds: float) -> None:
        """Sleep for a moment: a look at child processes costs nothing."""
        time.sleep(min(seconds, LOOK_SECONDS))

    def is_wanted(self) -> bool:
        """Work for whoever started this process."""
        return True

    def close(self) -> None:
        """Stop everything and wait until it is gone."""
        for process in self._processes:
            self.stop(process.attempt)
        while any(attempt.is_live for attempt in self.attempts()):
            time.sleep(0.05)

    def _environment(self, order: Order, attempt: str, folder: Path) -> dict[str, str]:
        return {
            **environment_for(kind_of(order.stage)),
            **self.place.store_environment,
            ENV_STORE: self.place.store_url,
            ENV_RUN: self.run,
            ENV_STAGE: order.stage,
            ENV_PLAN_SHA256: order.plan_sha256,
            ENV_ATTEMPT: attempt,
            # Of all attempts: one goes on from what a killed one has fetched.
            ENV_WORK: str(self.place.home / "work"),
            ENV_PROGRESS_FILE: str(folder / "progress"),
            ENV_TERMINATION: str(folder / "termination"),
            ENV_PARENT_PID: str(os.getpid()),
            ENV_HALVINGS: str(order.halvings),
            ENV_CHECKPOINT_SECONDS: str(self.profile.checkpoint_seconds),
            ENV_GRACE_SECONDS: str(int(self.grace_seconds)),
            ENV_HUNG_AFTER_SECONDS: str(self.profile.hung_after_seconds),
            ENV_RANKS: str(self.profile.stages[kind_of(order.stage)].ranks),
            ENV_FSDP: self.profile.stages[kind_of(order.stage)].fsdp,
            **LIBRARIES,
        }

    def _observe(self, process: _Process) -> None:
        if not process.attempt.is_live:
            return
        code = process.handle.poll()
        if code is None:
            process.memory.look()
            if process.kill_at is not None and time.monotonic() > process.kill_at:
                signal_group(process.handle, signal.SIGKILL)
            return
        process.log.close()
        was = process.attempt
        is_oom = code == -signal.SIGKILL and process.kill_at is None and process.memory.is_spent()
        process.attempt = Attempt(
            was.id,
            was.stage,
            was.key,
            was.number,
            is_live=False,
            exit_code=DoesNotFit.exit_code if is_oom else code,
            message=process.memory.words() if is_oom else last_words(process.folder, code),
            is_oom=is_oom,
        )

    def _find(self, attempt: Attempt) -> _Process:
        return next(each for each in self._processes if each.attempt.id == attempt.id)


def environment_for(kind: Kind) -> dict[str, str]:
    """Pass the user's variables on; the hub and its token are for fetch, the webhook for none."""
    hidden = {*WEBHOOK_VARIABLES, *(() if is_fetch(kind) else HUB_TOKENS)}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept if is_fetch(kind) else {**kept, "HF_HUB_OFFLINE": "1"}


def interpreter(home: Path, environment: Environment) -> Path:
    """Find the Python that has the packages of an environment.

    That is the environment made from the lock under `home`; where there is none, the
    Python this process runs with, if its packages will do.

    Raises:
        InputMissing: neither will do.
    """
    made = home / "environments" / environment / "bin" / "python"
    if made.exists():
        return made
    from importlib.util import find_spec

    missing = [name for name in _PROOF[environment] if find_spec(name) is None]
    if missing:
        raise InputMissing(
            f"The environment '{environment}' has not been made "
            f"(this Python lacks {', '.join(missing)})",
            at=str(made),
            fix="make environments",
        )
    return Path(sys.executable)


def check_metrics(home: Path, metrics: MetricsSpec) -> None:
    """Find out before any work whether the environment of the report has the metric plug-ins.

    Raises:
        SpecError: with every plug-in that cannot be used there.
        InputMissing: that environment has not been made.
    """
    if not metrics.plugins:
        return
    python = interpreter(home, ENVIRONMENT_OF["report"])
    asked = subprocess.run(
        [str(python), "-m", "modelmill.gather"],
        input=metrics.model_dump_json().encode(),
        capture_output=True,
        check=False,
    )
    if asked.returncode == SpecError.exit_code:
        problems = TypeAdapter(tuple[Problem, ...]).validate_json(asked.stdout)
        raise SpecError(f"metric plug-ins of {python}", problems)
    if asked.returncode:
        last = asked.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise InternalError("Metric plug-ins could not be looked for", at=" ".join(last))


_PROOF: Final[Mapping[Environment, tuple[str, ...]]] = {
    "light": ("jinja2", "numpy", "pyarrow", "huggingface_hub"),
    "train": ("trl", "peft"),
    "quantize": ("gptqmodel", "optimum"),
}
"""Packages whose presence shows that an environment will do."""


def signal_group(handle: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process and to whatever it has started."""
    try:
        os.killpg(handle.pid, number)
    except ProcessLookupError:
        return


def last_words(folder: Path, code: int) -> str:
    """Read why an attempt failed, or what its exit code means; nothing where it has not."""
    try:
        text = (folder / "termination").read_text(encoding="utf-8")
        return Ending.model_validate_json(text).message
    except (OSError, ValidationError):
        return "" if code == 0 else meaning_of(code)
