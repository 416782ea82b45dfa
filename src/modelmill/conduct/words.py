"""What happened to a run, in one line.  Pure; terminals, pod logs and Events say the same."""

from modelmill.spec.errors import Interrupted
from modelmill.spec.records import Event


def event_words(event: Event) -> str:
    """Say what happened."""
    first = event.message.splitlines()[0] if event.message else ""
    match event.event:
        case "adopted":
            return f"{event.stage} adopted from run {event.from_run}"
        case "failed" if event.exit_code == Interrupted.exit_code:
            return f"{event.stage}: {first}"
        case "failed":
            code = "" if event.exit_code is None else f" with {event.exit_code}"
            return f"{event.stage} failed{code}{': ' if first else ''}{first}"
        case "waiting":
            return f"{event.stage}: {first}"
        case "skipped":
            return f"{event.stage} skipped: something it needs has failed"
        case _:
            return f"{event.stage} {event.event}"
