"""Every way a run can end, with its exit code, in one place so that codes stay unique.

Codes 64-78 follow the BSD sysexits set named in `os`; they avoid 1 (a Python
traceback), 2 (click's usage error) and 128+n (signals).  A Job's podFailurePolicy, the
conductor's retry decision and the documentation are all derived from this table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Retry(StrEnum):
    """What the conductor does with an attempt that ended this way."""

    NEVER = "never"
    """The same attempt would fail the same way."""
    COUNTED = "counted"
    """Worth another attempt, up to the limit."""
    FREE = "free"
    """The attempt did nothing wrong; start again without counting."""


class ModelmillError(Exception):
    """Say what happened, where, and what to do next.

    Args:
        what: what happened, as a sentence without a full stop.
        at: the key, URI, file or row it happened at.
        fix: what the reader can do, preferably a command.
    """

    exit_code: ClassVar[int] = 70
    retry: ClassVar[Retry] = Retry.NEVER

    def __init__(self, what: str, *, at: str = "", fix: str = "") -> None:
        """Keep the three parts apart, so that each surface can lay them out."""
        super().__init__(what)
        self.what = what
        self.at = at
        self.fix = fix

    def __str__(self) -> str:
        """Render the parts as the lines a terminal shows."""
        lines = [self.what]
        if self.at:
            lines.append(f"  at:  {self.at}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a document a user wrote."""

    key: str
    """Dotted path inside the document, empty for the document itself."""
    reason: str
    line: int = 0
    """1-based; 0 where the source has no lines (Helm values, JSON)."""
    suggestion: str = ""

    def __str__(self) -> str:
        """Render as one indented line."""
        where = f"line {self.line}: " if self.line else ""
        hint = f"; {self.suggestion}" if self.suggestion else ""
        return f"  {where}{self.key + ': ' if self.key else ''}{self.reason}{hint}"


class SpecError(ModelmillError):
    """The run or the profile is not something modelmill can do."""

    exit_code = 64

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        """Report all problems of one document at once."""
        self.source = source
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{source}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *map(str, self.problems)]))


class DataError(ModelmillError):
    """Input data is not what the spec says it is."""

    exit_code = 65


class DigestMismatch(DataError):
    """Stored bytes are not the bytes that were committed."""


class LineageBroken(DataError):
    """A committed artifact was made from inputs that are no longer the committed ones."""


class InputMissing(ModelmillError):
    """A source, an artifact or a bucket is not there."""

    exit_code = 66


class NoSuchRun(InputMissing):
    """The store has no run of that name."""


class InternalError(ModelmillError):
    """A defect of modelmill itself."""

    exit_code = 70


class DeviceFault(ModelmillError):
    """The device, its driver or a native library failed, or the process hung."""

    exit_code = 71
    retry = Retry.COUNTED


class StoreUnreachable(ModelmillError):
    """The store did not answer within the retry budget."""

    exit_code = 74
    retry = Retry.COUNTED


class StoreUnfit(StoreUnreachable):
    """The store lacks what commits rest on."""

    retry = Retry.NEVER


class HubUnreachable(StoreUnreachable):
    """The hub that a source is on did not answer within the retry budget."""


class ClusterUnreachable(StoreUnreachable):
    """The cluster's API server does not answer."""


class Interrupted(ModelmillError):
    """Asked to stop; what can be resumed is saved and nothing was published."""

    exit_code = 75
    retry = Retry.FREE


class UnsafeArtifact(ModelmillError):
    """A file that could run code or lies about its shape was refused unread."""

    exit_code = 76


class PermissionRefused(ModelmillError):
    """Credentials are missing, wrong, expired or do not cover this."""

    exit_code = 77


class DoesNotFit(ModelmillError):
    """Memory, GPU memory or disk is too small, after every fallback."""

    exit_code = 78


class GateFailed(ModelmillError):
    """The run finished and a gated model is measurably worse than allowed."""

    exit_code = 79


CLASSES: tuple[type[ModelmillError], ...] = (
    SpecError,
    DataError,
    InputMissing,
    InternalError,
    DeviceFault,
    StoreUnreachable,
    Interrupted,
    UnsafeArtifact,
    PermissionRefused,
    DoesNotFit,
    GateFailed,
)
"""One class per exit code; their docstrings are the documented meaning of the code."""

_SIGNAL_CODES = frozenset({134, 137, 139})
"""SIGABRT, SIGKILL and SIGSEGV: a native crash or a kill from outside, not our verdict."""


_STOP_CODES = frozenset({-15, 143})
"""SIGTERM before the process could handle it: asked to stop, and nothing was saved."""


def retry_for(exit_code: int) -> Retry:
    """Decide whether an attempt that ended with this code is worth repeating."""
    if exit_code in _STOP_CODES:
        return Retry.FREE
    if exit_code < 0 or exit_code in _SIGNAL_CODES:
        return Retry.COUNTED
    for error in CLASSES:
        if error.exit_code == exit_code:
            return error.retry
    return Retry.NEVER


def code_of(exit_code: int) -> int:
    """Fold how a process ended into one of our codes: a signal is a fault of the place."""
    if exit_code in _STOP_CODES:
        return Interrupted.exit_code
    if exit_code < 0 or exit_code in _SIGNAL_CODES:
        return DeviceFault.exit_code
    known = {0, *(error.exit_code for error in CLASSES)}
    return exit_code if exit_code in known else InternalError.exit_code


def meaning_of(exit_code: int) -> str:
    """Name an exit code in words."""
    if exit_code == 0:
        return "Done, or adopted from an equal stage."
    if exit_code < 0:
        return f"Killed by signal {-exit_code}."
    if exit_code in _SIGNAL_CODES:
        return f"Killed by signal {exit_code - 128}."
    for error in CLASSES:
        if error.exit_code == exit_code:
            return (error.__doc__ or "").splitlines()[0]
    return "An unexpected end: a defect of modelmill or of a library."
