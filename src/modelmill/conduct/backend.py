"""What a conductor needs of a place that can run stages.

A backend starts, watches and stops attempts.  It decides nothing: which stage runs when,
and whether a failure is worth another attempt, is the conductor's business alone.
"""

from dataclasses import dataclass
from typing import Protocol

from modelmill.spec.names import Environment
from modelmill.spec.records import Progress


@dataclass(frozen=True)
class Order:
    """Everything a backend must know to start an attempt."""

    stage: str
    key: str
    environment: Environment
    number: int
    """1-based, among the attempts of this stage and key; a backend that finds the number taken
    by an attempt that is over takes the next one."""
    plan_sha256: str
    halvings: int = 0
    """How often to halve the micro-batch: so many attempts were killed for their memory."""


@dataclass(frozen=True)
class Attempt:
    """One process working on a stage, as its backend sees it."""

    id: str
    stage: str
    key: str
    number: int
    is_live: bool
    exit_code: int | None = None
    """None while its process runs; negative for a signal."""
    message: str = ""
    """Its last words, for people; while it lives, why it does not run yet."""
    has_begun: bool = True
    """Its process runs, or has run; False while it waits for a place."""
    is_stale: bool = False
    """It waits in a form that nobody asks for any more."""
    is_oom: bool = False
    """It was killed for its memory limit."""
    has_saved: bool = False
    """It left a state that the next attempt can go on from."""
    shard: int | None = None
    """It was one shard of an attempt that several processes share; what counts against it counts
    against that shard alone."""
    processes: frozenset[str] = frozenset()
    """Ids of the processes that share it, where several do: one of them commits."""

    def is_by(self, process: str) -> bool:
        """Tell whether it is, or consists of, what has called itself so."""
        return process == self.id or process in self.processes


class NotNow(Exception):
    """An attempt cannot be started yet; the text says what it waits for."""


class Backend(Protocol):
    """A place that can run stages."""

    def attempts(self) -> tuple[Attempt, ...]:
        """List every attempt of this run that is known here, oldest first."""
        ...

    def start(self, order: Order) -> Attempt:
        """Start an attempt; returns at once.

        Raises:
            NotNow: it may be possible later.
            ModelmillError: it will never be.
        """
        ...

    def stop(self, attempt: Attempt) -> None:
        """Ask an attempt to save what can be resumed and to end; returns at once."""
        ...

    def log(self, attempt: Attempt) -> bytes:
        """Read what an attempt has printed so far; nothing where that is lost."""
        ...

    def progress(self, attempt: Attempt) -> Progress | None:
        """Read where a live attempt is, if it has said so."""
        ...

    def wait(self, seconds: float) -> None:
        """Return after so many seconds at most, sooner where something may have changed."""
        ...

    def is_wanted(self) -> bool:
        """Tell whether the place still wants this conductor, and not a newer one or none."""
        ...

    def close(self) -> None:
        """Stop every attempt that lives."""
        ...
