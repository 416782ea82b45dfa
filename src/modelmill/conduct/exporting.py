"""A model of a run leaves the store: as a folder, into a bucket, or to a hub.

Which files a reader needs, what is told in the card, and whether the gate lets it go are decided
here; how it is brought there is `store/parcel.py`'s and `store/hub_upload.py`'s.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from pydantic import BaseModel, ValidationError

from modelmill.conduct.converting import WEIGHTS, as_gguf
from modelmill.conduct.ending import read_document
from modelmill.conduct.lookup import find_run, live_plan
from modelmill.conduct.owner import command_to_go_on
from modelmill.gather.run import sound_commits
from modelmill.report.card import Leaving, card_md
from modelmill.report.document import ModelEntry, ReportDocument
from modelmill.report.licence import LICENCE_NAMES, Licence, licence_of
from modelmill.report.opening import Opening
from modelmill.spec.errors import (
    DataError,
    GateFailed,
    InputMissing,
    Problem,
    SpecError,
)
from modelmill.spec.names import MEASUREMENTS, PROMPT, Gguf, gguf_name, report_key
from modelmill.spec.plan import Plan, Stage, report_digest
from modelmill.spec.records import FileRecord, RunRecord
from modelmill.spec.sources import HubAddress, is_hub, is_local, parse_hub
from modelmill.store.artifact import Committed, attempt_prefix, pull, read_manifest
from modelmill.store.hub_files import MODEL_SUFFIXES
from modelmill.store.parcel import (
    Destination,
    Item,
    Parcel,
    into_bucket,
    into_folder,
    look_into_bucket,
    look_into_folder,
)
from modelmill.store.s3 import Store

CARD: Final = "README.md"
_ANYWAY: Final = "to export it all the same: --force"


@dataclass(frozen=True)
class Asked:
    """Which model is to leave, where to, and what is accepted."""

    run: str
    model: str
    destination: str
    """A folder, `s3://bucket/prefix`, or `hf:org/name`."""
    is_forced: bool = False
    """Also a model that the gate does not let go, and where something else is."""
    is_public: bool = False
    """A new repository of a hub is for everybody."""
    gguf: Gguf | None = None
    """As one GGUF file with weights of this type; None as it is committed."""


@dataclass(frozen=True)
class Exported:
    """What has left."""

    at: str
    files: int
    size_bytes: int


def export(store: Store, asked: Asked, work: Path) -> Exported:
    """Bring a model of a run to where it is asked for, with its card and checksums.

    Args:
        store: where the run is.
        asked: which model, and where to.
        work: a folder for files on their way to a bucket or a hub.

    Raises:
        GateFailed: it failed the gate.
        InputMissing: it is not made, or not judged.
        NoSuchRun: there is no such run.
        SpecError: the run makes no such model, or none that can leave as it is asked for.
        WouldBeLost: something else is where it is to go.
    """
    target = _target(asked.destination)
    record = find_run(store, asked.run)
    plan = live_plan(store, record)
    holder = _holder(plan, asked)
    _check_convertible(plan, holder, asked)
    commits = sound_commits(store, plan)
    if holder.name not in commits:
        raise InputMissing(
            f"{asked.model} of run '{asked.run}' is not committed, or was made from what no "
            "longer is",
            at=store.url,
            fix=f"make what is missing: {command_to_go_on(asked.run, record.owner)}",
        )
    report = _report(store, record, commits)
    if not asked.is_forced:
        _check_verdict(asked, report, store.url)
    committed, base = commits[holder.name], commits["fetch-model"]
    model_type = _model_type(store, committed if _is_model(committed) else base)
    leaving = Leaving(
        name=_name(target),
        model=asked.model,
        run=asked.run,
        plan=plan,
        opening=_opening(plan, holder, model_type, target, asked.gguf),
        manifest=committed.manifest,
        licence=_licence(store, base),
        report=report,
    )
    promised = Parcel(
        (*_content(committed, asked.gguf), *_licences(base)),
        {CARD: card_md(leaving)},
        to_make="" if asked.gguf is None else gguf_name(leaving.name, asked.gguf),
    )
    if promised.to_make:
        # A conversion takes long: that there is no place for what comes of it is said before.
        promised.check(_look(store, target, asked), is_forced=asked.is_forced)
    with _made(store, committed, promised, leaving, work) as parcel:
        at = _bring(store, parcel, target, asked, work)
    return Exported(at, len(parcel.paths) + 1, parcel.size_bytes)


def _target(destination: str) -> Path | str | HubAddress:
    """Tell apart where a model can go.

    Raises:
        SpecError: it is no such place.
    """
    if is_local(destination):
        if "://" in destination:
            problem = Problem("", "is neither a folder nor s3://bucket/prefix nor hf:org/name")
            raise SpecError(destination, [problem])
        return Path(destination)
    if not is_hub(destination):
        return destination
    try:
        address = parse_hub(destination)
    except ValueError as error:
        raise SpecError(destination, [Problem("", str(error))]) from error
    if address.kind != "model" or address.revision:
        raise SpecError(destination, [Problem("", "a model goes to hf:org/name, without revision")])
    return address


def _name(target: Path | str | HubAddress) -> str:
    """Take the last part of a place as what people call the model."""
    match target:
        case Path():
            return target.resolve().name
        case HubAddress():
            return target.repository.rpartition("/")[2]
        case url:
            return url.rstrip("/").rpartition("/")[2]


def _holder(plan: Plan, asked: Asked) -> Stage:
    made = plan.made()
    if asked.model in made:
        return made[asked.model]
    reason = (
        f"run '{asked.run}' was given its {asked.model} and has not made it"
        if asked.model in plan.holders()
        else f"run '{asked.run}' has no model '{asked.model}'"
    )
    choice = f"there is {', '.join(made)}" if made else "it makes none"
    raise SpecError("MODEL", [Problem("", reason, suggestion=choice)])


def _check_convertible(plan: Plan, holder: Stage, asked: Asked) -> None:
    """Convert nothing that has lost bits already, and nothing that is half a model."""
    if asked.gguf is None:
        return
    whole = next((each for each in ("merged", "finetuned") if each in plan.made()), "")
    choice = f"export {whole} with --gguf" if whole else "export it without --gguf"
    if holder.kind == "quantize":
        reason = f"{asked.model} is quantized already, and rounding it again loses more"
    elif asked.model == "adapter":
        reason = "an adapter is no model without its base"
    else:
        return
    raise SpecError("--gguf", [Problem("", reason, suggestion=choice)])


def _report(
    store: Store, record: RunRecord, commits: Mapping[str, Committed]
) -> ReportDocument | None:
    """Read the report on exactly what is committed now, if there is one."""
    digests = {name: committed.sha256 for name, committed in commits.items()}
    key = report_key(record.name, report_digest(record.plan_sha256, digests))
    committed = read_manifest(store, "report", key)
    if committed is None:
        return None
    return read_document(store, committed)[0]


def _check_verdict(asked: Asked, report: ReportDocument | None, at: str) -> None:
    """Let nothing go that is known to be bad, or of which nothing is known."""
    if report is None:
        raise InputMissing(
            f"Run '{asked.run}' has no report on what is committed now, so {asked.model} is "
            "not judged",
            at=at,
            fix=f"let the run finish (modelmill status {asked.run}); {_ANYWAY}",
        )
    entries = {each.model: each for each in report.models}
    # An adapter is the merged model in two parts, and may not be asked itself, nor gated.
    judged = (asked.model, "merged") if asked.model == "adapter" else (asked.model,)
    for entry in (entries[model] for model in judged if model in entries):
        _check_entry(entry, asked, report, at)


def _check_entry(entry: ModelEntry, asked: Asked, report: ReportDocument, at: str) -> None:
    if entry.gated and entry.verdict == "bad" and report.gate is not None:
        raise GateFailed(
            f"{entry.model} failed the gate.  {report.gate.sentence}",
            at=at,
            fix=f"modelmill report {asked.run}; {_ANYWAY}",
        )
    if entry.problem or (entry.gated and entry.verdict is None):
        raise InputMissing(
            f"{entry.model} could not be judged: {entry.problem or 'it has no verdict'}",
            at=at,
            fix=f"modelmill status {asked.run}; {_ANYWAY}",
        )


def _content(committed: Committed, gguf: Gguf | None) -> tuple[Item, ...]:
    """Choose what leaves as it is committed: all that a reader needs, or what GGUF cannot hold."""
    needed = tuple(_needed(committed))
    return needed if gguf is None else tuple(i for i in needed if i.record.path == PROMPT)


@contextmanager
def _made(
    store: Store, committed: Committed, promised: Parcel, leaving: Leaving, work: Path
) -> Iterator[Parcel]:
    """Have the parcel with what had still to be made of committed files."""
    gguf = leaving.opening.gguf
    if gguf is None:
        yield promised
        return
    with as_gguf(store, committed, leaving.name, gguf, work) as made:
        yield promised.with_made(made)


def _needed(committed: Committed) -> Iterator[Item]:
    """Choose what a reader needs: weights, settings, tokenizer, contract.

    Rows that a stage keeps beside them, what it measured and what it proved stay.
    """
    for file in committed.manifest.files:
        path = PurePosixPath(file.path)
        is_read = path.suffix in {WEIGHTS, *MODEL_SUFFIXES}
        if is_read and path.name not in (MEASUREMENTS, CARD) and not _is_licence(file):
            yield _item(
                committed, file, file.path.removeprefix("adapter/").removeprefix(_TOKENIZER)
            )


_TOKENIZER: Final = "tokenizer/"
"""Beside an adapter's weights both have folders of their own; readers want one."""


def _licences(base: Committed) -> Iterator[Item]:
    """Choose what must be passed on with everything that is made of the base."""
    for file in base.manifest.files:
        if _is_licence(file):
            yield _item(base, file, file.path)


def _is_licence(file: FileRecord) -> bool:
    return PurePosixPath(file.path).stem.upper() in LICENCE_NAMES and "/" not in file.path


def _item(committed: Committed, file: FileRecord, path: str) -> Item:
    return Item(file.model_copy(update={"path": path}), _key(committed, file.path))


def _key(committed: Committed, path: str) -> str:
    manifest = committed.manifest
    return f"{attempt_prefix(manifest.kind, manifest.key, manifest.attempt)}/{path}"


class _Config(BaseModel):
    """What of a model's config is looked at here."""

    model_type: str


def _is_model(committed: Committed) -> bool:
    """Tell a whole model from an adapter."""
    return any(file.path == "config.json" for file in committed.manifest.files)


def _model_type(store: Store, configured: Committed) -> str:
    try:
        return _Config.model_validate_json(_small(store, configured, "config.json")).model_type
    except ValidationError as error:
        raise DataError(
            "config.json does not name an architecture",
            at=store.url_of(_key(configured, "config.json")),
        ) from error


def _opening(
    plan: Plan,
    holder: Stage,
    model_type: str,
    target: Path | str | HubAddress,
    gguf: Gguf | None,
) -> Opening:
    base = plan.pins[plan.run.model.source].address
    pinned = parse_hub(base) if is_hub(base) else None
    return Opening(
        address=target.repository if isinstance(target, HubAddress) else f"./{_name(target)}",
        run=plan.run,
        holder=holder,
        model_type=model_type,
        base="./base" if pinned is None else pinned.repository,
        base_revision="" if pinned is None else pinned.revision,
        gguf=gguf,
    )


def _licence(store: Store, base: Committed) -> Licence:
    named = any(file.path == CARD for file in base.manifest.files)
    return licence_of(_small(store, base, CARD).decode(errors="replace")) if named else Licence()


def _small(store: Store, committed: Committed, path: str) -> bytes:
    """Read a small file of an artifact."""
    with tempfile.TemporaryDirectory(prefix="modelmill-") as folder:
        pull(store, committed, Path(folder), (path,))
        return (Path(folder) / path).read_bytes()


def _look(store: Store, target: Path | str | HubAddress, asked: Asked) -> Destination:
    match target:
        case Path():
            return look_into_folder(target)
        case HubAddress():
            with _hub_needed():
                from modelmill.store.hub_upload import look_into_hub
            return look_into_hub(store, target, is_public=asked.is_public)
        case url:
            return look_into_bucket(store, url)


def _bring(
    store: Store, parcel: Parcel, target: Path | str | HubAddress, asked: Asked, work: Path
) -> str:
    match target:
        case Path():
            into_folder(store, parcel, target, is_forced=asked.is_forced)
            return str(target.resolve())
        case HubAddress():
            with _hub_needed():
                from modelmill.store.hub_upload import Wishes, into_hub
            into_hub(store, parcel, target, work, Wishes(asked.is_public, asked.is_forced))
            return str(target)
        case url:
            into_bucket(store, parcel, url, work, is_forced=asked.is_forced)
            return url


@contextmanager
def _hub_needed() -> Iterator[None]:
    """Say what a library that is missing was for."""
    try:
        yield
    except ImportError as error:
        raise InputMissing(
            f"Exporting to a hub needs {error.name}, which this Python lacks",
            fix="pip install 'modelmill[fetch]'",
        ) from error
