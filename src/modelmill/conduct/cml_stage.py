"""Mind one stage inside of a job of Cloudera AI: start it, and carry words to the store and back.

The stage is a process of its own, in the environment of its kind, so it has its own signals and
exit code whatever kernel the platform runs scripts in.  Knows processes and the mailbox; knows
nothing about what stages do.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from modelmill.conduct.cml_client import ENV_API_KEY
from modelmill.conduct.local import (
    LIBRARIES,
    environment_for,
    interpreter,
    last_words,
    signal_group,
)
from modelmill.spec.errors import DoesNotFit, ModelmillError, Problem, SpecError
from modelmill.spec.names import (
    ENV_ATTEMPT,
    ENV_GRACE_SECONDS,
    ENV_HOME,
    ENV_PARENT_PID,
    ENV_RUN,
    ENV_STAGE,
    ENV_STORE,
    ENV_TERMINATION,
    ENVIRONMENT_OF,
    kind_of,
)
from modelmill.spec.records import MailedEnding
from modelmill.store.address import open_store
from modelmill.store.mailbox import is_asked_to_stop, put_ending, put_printed
from modelmill.store.memory import Memory
from modelmill.store.s3 import Store

LOOK_SECONDS: Final = 0.2
TELL_SECONDS: Final = 3.0
COURTESY_SECONDS: Final = 5.0
"""A store that is away is the stage's own business; what it prints can wait."""
LAST_WORDS_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 120.0


@dataclass
class _Minded:
    """A stage that runs."""

    handle: subprocess.Popen[bytes]
    log: Path
    memory: Memory
    grace_seconds: float
    shown_bytes: int = 0
    told_bytes: int = 0
    kill_at: float | None = None
    is_asked: bool = False
    """Somebody has asked this process to end, and not through the store."""
    _told: float = field(default_factory=time.monotonic)

    def is_due(self) -> bool:
        """Tell whether it is time for the store."""
        if time.monotonic() - self._told < TELL_SECONDS:
            return False
        self._told = time.monotonic()
        return True

    def stop(self) -> None:
        """Send SIGTERM once."""
        if self.kill_at is None:
            self.kill_at = time.monotonic() + self.grace_seconds
            signal_group(self.handle, signal.SIGTERM)

    def show(self) -> None:
        """Print what is new, for who looks at the job's history in the project."""
        with self.log.open("rb") as log:
            log.seek(self.shown_bytes)
            new = log.read()
        self.shown_bytes += len(new)
        sys.stdout.write(new.decode(errors="replace"))
        sys.stdout.flush()


def run_stage(environment: Mapping[str, str]) -> int:
    """Run the stage that the environment names, and return its exit code.

    Raises:
        SpecError: the environment names none.
        InputMissing: its packages are not there.
    """
    required = (ENV_STORE, ENV_RUN, ENV_STAGE, ENV_ATTEMPT)
    missing = [Problem(name, "not set") for name in required if not environment.get(name)]
    if missing:
        raise SpecError("environment", missing)
    run, attempt = environment[ENV_RUN], environment[ENV_ATTEMPT]
    store = open_store(environment[ENV_STORE], retry_budget_seconds=COURTESY_SECONDS)
    with tempfile.TemporaryDirectory(prefix="modelmill-") as folder:
        minded = _start(environment, Path(folder))
        ending = _mind(minded, store, run, attempt)
        final = open_store(environment[ENV_STORE], retry_budget_seconds=LAST_WORDS_SECONDS)
        with suppress(ModelmillError):
            put_printed(final, run, attempt, minded.log.read_bytes())
            if ending.exit_code:
                put_ending(final, run, attempt, ending)
        return ending.exit_code


def _start(environment: Mapping[str, str], folder: Path) -> _Minded:
    kind = kind_of(environment[ENV_STAGE])
    home = Path(environment.get(ENV_HOME) or ".modelmill")
    log = folder / "log"
    passed_on = environment_for(kind)
    # A stage works on what strangers have made, and has no business with the site.
    passed_on.pop(ENV_API_KEY, None)
    with log.open("wb") as printed:
        handle = subprocess.Popen(
            [str(interpreter(home.resolve(), ENVIRONMENT_OF[kind])), "-m", "modelmill.stages"],
            env={
                **passed_on,
                **LIBRARIES,
                ENV_TERMINATION: str(folder / "termination"),
                ENV_PARENT_PID: str(os.getpid()),
            },
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
    grace_seconds = float(environment.get(ENV_GRACE_SECONDS) or GRACE_SECONDS)
    minded = _Minded(handle, log, Memory(handle.pid), grace_seconds)

    def ask(_number: int, _frame: object) -> None:
        minded.is_asked = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return minded


def _mind(minded: _Minded, store: Store, run: str, attempt: str) -> MailedEnding:
    while (code := minded.handle.poll()) is None:
        minded.memory.look()
        minded.show()
        if minded.is_asked or (minded.is_due() and _hears_stop(minded, store, run, attempt)):
            minded.stop()
        if minded.kill_at is not None and time.monotonic() > minded.kill_at:
            signal_group(minded.handle, signal.SIGKILL)
        time.sleep(LOOK_SECONDS)
    minded.show()
    if code == -signal.SIGKILL and minded.kill_at is None and minded.memory.is_spent():
        return MailedEnding(
            exit_code=DoesNotFit.exit_code, message=minded.memory.words(), is_oom=True
        )
    return MailedEnding(exit_code=code, message=last_words(minded.log.parent, code))


def _hears_stop(minded: _Minded, store: Store, run: str, attempt: str) -> bool:
    """Tell the store what is new, and hear whether somebody asks the stage to end."""
    try:
        if minded.shown_bytes > minded.told_bytes:
            put_printed(store, run, attempt, minded.log.read_bytes())
            minded.told_bytes = minded.shown_bytes
        return is_asked_to_stop(store, run, attempt)
    except ModelmillError:
        return False
