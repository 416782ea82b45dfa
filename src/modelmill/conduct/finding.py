"""What a check of a doctor found."""

from collections.abc import Callable
from typing import Literal

from modelmill.conduct.answers import NotThere, Refused, Unavailable
from modelmill.spec.errors import ModelmillError
from modelmill.spec.records import Record

State = Literal["good", "bad", "warning"]


class Finding(Record):
    """What one check found."""

    check: str
    state: State
    words: str
    fix: str = ""


def checked(check: str, look: Callable[[], Finding]) -> Finding:
    """Turn what a check raises into what it found: none stops at another."""
    try:
        return look()
    except (ModelmillError, NotThere, Refused, Unavailable) as error:
        return failed(check, error)


def failed(check: str, error: Exception) -> Finding:
    """Say what is wrong where a check could not look."""
    if isinstance(error, ModelmillError):
        words = f"{error.what} ({error.at})" if error.at else error.what
        return Finding(check=check, state="bad", words=words, fix=error.fix)
    return Finding(check=check, state="bad", words=str(error) or type(error).__name__)
