"""What an attempt and its conductor tell each other where the platform carries nothing between.

Some platforms pass on no signal, no exit code and nothing of what was printed.  Then all three go
through the store, below the run, under the attempt's name.  Knows nothing about who writes.
"""

from modelmill.spec.names import run_prefix
from modelmill.spec.records import MailedEnding
from modelmill.store.s3 import Store


def put_printed(store: Store, run: str, attempt: str, text: bytes) -> None:
    """Overwrite what an attempt has printed so far."""
    store.put(_name(run, attempt, "printed"), text)


def read_printed(store: Store, run: str, attempt: str) -> bytes:
    """Read what an attempt has printed; nothing where it has not begun."""
    stored = store.get(_name(run, attempt, "printed"))
    return b"" if stored is None else stored.body


def put_ending(store: Store, run: str, attempt: str, ending: MailedEnding) -> None:
    """Leave an attempt's last words."""
    store.put(_name(run, attempt, "ending.json"), ending.model_dump_json().encode())


def read_ending(store: Store, run: str, attempt: str) -> MailedEnding | None:
    """Read an attempt's last words; None where it died without any, or did what it should."""
    stored = store.get(_name(run, attempt, "ending.json"))
    return None if stored is None else MailedEnding.model_validate_json(stored.body)


def ask_to_stop(store: Store, run: str, attempt: str) -> None:
    """Ask an attempt to save what can be resumed and to end."""
    store.put(_name(run, attempt, "stop"), b"")


def is_asked_to_stop(store: Store, run: str, attempt: str) -> bool:
    """Tell whether somebody has asked an attempt to end."""
    return store.get(_name(run, attempt, "stop")) is not None


def _name(run: str, attempt: str, what: str) -> str:
    return f"{run_prefix(run)}/mailbox/{attempt}/{what}"
