"""Every way a run can end, with its exit code, in one place so that codes stay unique.

Codes 64-78 follow the BSD sysexits set named in `os`; they avoid 1 (a Python
traceback), 2 (click's usage error) and 128+n (signals).  A Job's podFailurePolicy, the
conductor's retry decision and the documentation are all derived from this table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Self

from modelmill.spec.redaction import redacted


class Retry(StrEnum):
    """What the conductor does with an attempt that ended this way, and why."""

    NEVER = "never", "The same attempt would fail the same way."
    COUNTED = "counted", "Worth another attempt, up to the limit."
    FREE = "free", "The attempt did nothing wrong; start again without counting."

    words: str

    def __new__(cls, value: str, words: str) -> Self:
        """Keep the words beside the value that is compared and printed."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.words = words
        return member


class ModelmillError(Exception):
    """Say what happened, where, and what to do next.

    Args:
        what: what happened, as a sentence without a full stop.
        at: the key, URI, file or row it happened at.
        fix: what the reader can do, preferably a command.
    """

    exit_code: ClassVar[int] = 70
    retry: ClassVar[Retry] = Retry.NEVER
    advice: ClassVar[str]
    """What to do about any error of this kind; `fix` knows the single case better."""

    @classmethod
    def meaning(cls) -> str:
        """Say in a sentence what an error of this kind is."""
        return (cls.__doc__ or "").splitlines()[0]

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

    def redacted(self) -> "Problem":
        """Leave out what looks like a secret: messages are kept in logs."""
        return Problem(
            redacted(self.key), redacted(self.reason), self.line, redacted(self.suggestion)
        )


class SpecError(ModelmillError):
    """The run or the profile is not something modelmill can do."""

    exit_code = 64
    advice = (
        "Correct what the message names, all of it at once; `modelmill explain KEY` says what "
        "a key means."
    )

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        """Report all problems of one document at once, and no secret that it holds."""
        self.source = redacted(source)
        self.problems = tuple(each.redacted() for each in problems)
        count = len(self.problems)
        head = f"{self.source}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *map(str, self.problems)]))


class DataError(ModelmillError):
    """Input data is not what the spec says it is."""

    exit_code = 65
    advice = "Correct the rows or files that are named."


class DigestMismatch(DataError):
    """Stored bytes are not the bytes that were committed."""

    advice = "Make the artifact again with the command in the message."


class LineageBroken(DataError):
    """A committed artifact was made from inputs that are no longer the committed ones."""

    advice = "Make it again from the present inputs with the command in the message."


class MetricFailed(DataError):
    """A metric plug-in raised on a row, or gave a score it had promised not to give."""


class InputMissing(ModelmillError):
    """A source, an artifact or a bucket is not there."""

    exit_code = 66
    advice = "Correct the address or the path, or make what it names."


class NoSuchRun(InputMissing):
    """The store has no run of that name."""

    advice = "Choose one of `modelmill list`."


class InternalError(ModelmillError):
    """A defect of modelmill itself."""

    exit_code = 70
    advice = (
        "Keep `modelmill logs RUN STAGE` and report it; the same command may do better after "
        "an upgrade."
    )


class DeviceFault(ModelmillError):
    """The device, its driver or a native library failed, or the process hung."""

    exit_code = 71
    retry = Retry.COUNTED
    advice = (
        "Nothing, while attempts are left; if it comes back, look at the node, its driver and "
        "its memory."
    )


class StoreUnreachable(ModelmillError):
    """The store did not answer within the retry budget."""

    exit_code = 74
    retry = Retry.COUNTED
    advice = "Look at the endpoint, the network and the store, then give the same command again."


class StoreUnfit(StoreUnreachable):
    """The store lacks what commits rest on."""

    retry = Retry.NEVER
    advice = "Use a store with conditional writes."


class HubUnreachable(StoreUnreachable):
    """The hub that a source is on did not answer within the retry budget."""


class ClusterUnreachable(StoreUnreachable):
    """The cluster's API server does not answer."""

    advice = "Look at the kubeconfig, its context and the network."


class SiteUnreachable(StoreUnreachable):
    """The site of a project does not answer."""

    advice = "Look at the address of the site, its state and the network."


class Interrupted(ModelmillError):
    """Asked to stop; what can be resumed is saved, and nothing half-done is published."""

    exit_code = 75
    retry = Retry.FREE
    advice = "Go on with the same command, or with `modelmill resume RUN` on a cluster."


class UnsafeArtifact(ModelmillError):
    """A file that could run code or lies about its shape was refused unread."""

    exit_code = 76
    advice = (
        "Replace the file with a safe form of it, such as safetensors; no option accepts it as "
        "it is."
    )


class PermissionRefused(ModelmillError):
    """Credentials are missing, wrong, expired or do not cover this."""

    exit_code = 77
    advice = "Set or renew the credentials, or ask for the permission that is named."


class WouldBeLost(PermissionRefused):
    """Something that is there already, or that a run still needs, would be lost."""

    advice = "Choose another name, or end what needs it first; the message says which."


class DoesNotFit(ModelmillError):
    """Memory, GPU memory or disk is too small, after every fallback."""

    exit_code = 78
    advice = (
        "Give the stage more in the profile, or ask for less: `max_length`, "
        "`micro_batch_size`, `load_in`."
    )


class GateFailed(ModelmillError):
    """The run finished and a gated model is measurably worse than allowed."""

    exit_code = 79
    advice = (
        "Read the report; then quantize to more bits, fine-tune better, or allow more in "
        "`gate.max_worse`."
    )


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


def classes_of(exit_code: int) -> tuple[type[ModelmillError], ...]:
    """List the class of an exit code, and the narrower causes that share it."""
    return tuple(
        each
        for error in CLASSES
        if error.exit_code == exit_code
        for each in (error, *error.__subclasses__())
    )


_SIGNAL_CODES = frozenset({134, 137, 139, 142})
"""SIGABRT, SIGKILL, SIGSEGV and SIGALRM: a native crash, a kill from outside, or our own alarm
for native code that hangs; not our verdict."""


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


REPEATED_CODES = tuple(code for code in range(1, 256) if retry_for(code) is not Retry.NEVER)
"""What a process ends with when another attempt may do better; ascending."""


def advice_for(exit_code: int) -> str:
    """Say what to do about an exit code; empty for 0."""
    code = code_of(exit_code)
    return next((error.advice for error in CLASSES if error.exit_code == code), "")


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
            return error.meaning()
    return "An unexpected end: a defect of modelmill or of a library."
