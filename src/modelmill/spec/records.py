"""The documents stages leave behind: manifest, measurements, predictions, events.

Closed, frozen models, written once and never changed.  Readers of a later version must
read what an earlier one wrote: new fields get defaults, old ones keep their meaning.
"""

import json
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from modelmill.spec.names import Kind
from modelmill.spec.prices import Prices
from modelmill.spec.settings import Pin


class Record(BaseModel):
    """A closed document."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FileRecord(Record):
    """One file of an artifact."""

    path: str
    size_bytes: int
    sha256: str


class Device(Record):
    """What a stage ran on."""

    accelerator: Literal["cpu", "cuda"]
    name: str
    count: int = 1


class InputRecord(Record):
    """Exactly which commit a stage was given."""

    kind: Kind
    key: str
    manifest_sha256: str


class Manifest(Record):
    """What a commit is: the only document that makes an artifact exist."""

    format: Literal[1] = 1
    kind: Kind
    key: str
    stage: str
    run: str
    """The run that made it; others adopt it."""
    attempt: str
    created: str
    """UTC, ISO 8601."""
    settings: Mapping[str, JsonValue]
    """As asked, canonical."""
    effective: Mapping[str, JsonValue] = {}
    """What the device made of them: precision, micro-batch, world size."""
    inputs: Mapping[str, InputRecord]
    """By role, the name the stage function knows them by."""
    versions: Mapping[str, str]
    device: Device
    files: tuple[FileRecord, ...]


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Row(Record):
    """One checked and rendered example, as fetch commits it."""

    row: int
    """0-based position in its source; survives sorting, batching and resuming."""
    prompt: str
    """What the model is given.  Of a conversation, all turns before the last, written out for
    people; the model gets `messages` through a chat template.  Empty where a row is only text."""
    completion: str
    """What it should answer; the whole row where a row is only text."""
    messages: tuple[Message, ...] = ()
    """The conversation, if the row is one; it ends with the assistant."""
    fields: Mapping[str, JsonValue]
    """The source row, for metrics and slices."""

    @property
    def is_text(self) -> bool:
        """Whether nothing is asked: the row is only text to go on with."""
        return not self.prompt and not self.messages


class Prediction(Record):
    """One answered row; carries what scoring needs, so that scoring needs nothing else."""

    row: int
    prompt: str
    reference: str
    fields: Mapping[str, JsonValue]
    output: str
    tokens: int = 0
    """Generated tokens."""
    nll: float | None = None
    """Mean negative log-likelihood of the reference's tokens and its end, in nats."""
    nll_tokens: int = 0
    error: str = ""
    """Why the row was quarantined; such a row has no output."""


class Event(Record):
    """One thing that happened to a run, as the conductor saw it."""

    time: str
    """UTC, ISO 8601 with milliseconds."""
    event: Literal["started", "waiting", "committed", "adopted", "failed", "stopped", "skipped"]
    stage: str
    key: str = ""
    attempt: str = ""
    exit_code: int | None = None
    message: str = ""
    from_run: str = ""


class Progress(Record):
    """Where a live attempt is; overwritten in place, trusted only while young."""

    stage: str
    attempt: str
    time: str
    part: str
    done: int = 0
    total: int = 0
    unit: str = ""
    rate: float = 0.0
    """Units per second."""
    note: str = ""
    """A few words: the loss, the layer."""


class Live(Record):
    """Who works on a key right now, so that another run waits instead of doing it too."""

    run: str
    attempt: str
    time: str
    """UTC, ISO 8601; trusted only while young."""


class Foretold(Record):
    """How long a stage will hold which devices, as far as that can be said before it runs."""

    device: str
    """A GPU by its name, `gpu` where nobody says which, or `cpu`."""
    devices: int
    """Of that name, held at the same time; stages without a GPU count once, whatever their size."""
    low_seconds: float | None = None
    high_seconds: float | None = None
    """None where there is no basis."""
    basis: str
    """What the seconds rest on, or why there are none."""


class RunRecord(Record):
    """What a run is now; the only document of a run that changes, by compare-and-swap."""

    format: Literal[1] = 1
    name: str
    created: str
    """UTC, ISO 8601."""
    owner: str = ""
    """The release it belongs to, with its namespace and that one's UID; empty for a laptop's."""
    pins: Mapping[str, Pin] = {}
    """Which state of each source the run uses, by the source as asked."""
    pinned_at: str = ""
    """UTC, ISO 8601."""
    plan_sha256: str = ""
    """The live plan."""
    plans: tuple[str, ...] = ()
    """Every plan the run ever had, oldest first."""
    keys: Mapping[str, str] = {}
    """By stage, of the live plan: what `gc` must keep."""
    again: Mapping[str, int] = {}
    """By stage: how often the user asked for another computation."""
    foretold: Mapping[str, Foretold] = {}
    """By the key of a stage, as it was when a conductor first planned it: the report holds it
    beside what the stage took."""
    prices: Prices = Prices()
    """Those of the place that drove the run last."""
    conductor: str = ""
    """The conductor that drives the run, empty when it has left; a newer one supersedes it."""
    exit_code: int | None = None
    """How the last conductor left; None while one drives the run, or died."""
    message: str = ""
    """Why the last conductor gave up before any stage could say why; empty otherwise."""
    cancelled: str = ""
    """The conductor that was asked to stop everything; the next one starts anew."""
    absence: str = ""
    """Why the last conductor was stopped in the middle, in its words; another may follow."""
    heartbeat: str = ""
    """When a conductor last worked on it; UTC, ISO 8601."""
    change: str = ""
    """Random, new with every change: a writer whose answer was lost finds its own again."""


TERMINATION_MESSAGE_BYTES = 4096
"""A kubelet reads no more of a termination message, and half a document is none."""


class Ending(Record):
    """The last words of an attempt that failed, where a person or a conductor reads them."""

    exit_code: int
    message: str

    def termination_message(self) -> str:
        """Write it as a document that a kubelet reads whole, shortened where it has to be."""
        ending, words = self, self.message
        # ASCII: a character is a byte.
        while len(text := json.dumps(ending.model_dump())) > TERMINATION_MESSAGE_BYTES:
            words = words[: len(words) * 9 // 10]
            ending = self.model_copy(update={"message": f"{words}..."})
        return text


class MailedEnding(Ending):
    """Last words that go through the store: the platform does not tell how a process ended."""

    is_oom: bool = False
    """It was killed for its memory."""
