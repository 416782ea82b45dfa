"""Make a run ready to be driven: name it, pin its sources, write its plan and its record.

What a cluster's conductor and a laptop do alike before the first stage starts.
"""

import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelmill.conduct.base_model import known_of, measured_before, refuse_unfit
from modelmill.conduct.clock import now
from modelmill.conduct.conductor import Conducted
from modelmill.conduct.decide import REPORT
from modelmill.spec.accelerators import accelerator_called
from modelmill.spec.closed import Dtype
from modelmill.spec.errors import InputMissing, PermissionRefused, Problem, SpecError
from modelmill.spec.estimate import Known
from modelmill.spec.hours import foretell
from modelmill.spec.layout import make_plan, sources_of
from modelmill.spec.names import RUN_NAME, RUN_NAME_LIMIT
from modelmill.spec.plan import Plan, plan_bytes
from modelmill.spec.profile import Facts, Profile
from modelmill.spec.records import Foretold, RunRecord
from modelmill.spec.run import RunSpec
from modelmill.spec.settings import Pin
from modelmill.spec.sources import is_hub, is_local
from modelmill.store.artifact import attempt_id
from modelmill.store.runs import put_plan, read_run, update_run
from modelmill.store.s3 import Store
from modelmill.store.sources import is_uploaded, pin_local, pin_source, upload_source

BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""Processors that multiply bfloat16 in hardware (x86 and Arm spellings in /proc/cpuinfo)."""


@dataclass(frozen=True)
class Asked:
    """What a user asks of a run, beside its spec."""

    name: str
    folder: Path | None
    """Relative local sources are relative to it; None where they are not at hand, and what a
    submitter uploaded counts."""
    again: tuple[str, ...] = ()
    """Stages to compute once more although they are committed."""
    repin: bool = False
    """Look at remote sources anew."""
    facts: Facts | None = None
    """What numbers depend on; found out from this machine where nobody says it."""
    conductor: str = ""
    """Its name; several processes of one name may drive a run together."""
    owner: str = ""
    """Where the run belongs: a release in a namespace of a cluster, or nowhere in particular."""
    take_over: bool = False
    """Let a run that belongs to somebody else be ours from now on."""
    asks_hub: bool = True
    """False for a submitter: the conductor in its cluster has the token, and the way there."""


def run_name(path: Path) -> str:
    """Name a run after its file, or after the folder of a file called `run.yaml`."""
    path = path.resolve()
    text = path.parent.name if path.stem == "run" else path.stem
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower())[:RUN_NAME_LIMIT].strip("-")
    return slug if RUN_NAME.fullmatch(slug) else f"run-{slug}".strip("-")[:RUN_NAME_LIMIT]


def check_run_name(name: str) -> str:
    """Accept a name that also works as a Helm release and in a pod's name.

    Raises:
        SpecError: it does not.
    """
    if len(name) > RUN_NAME_LIMIT or not RUN_NAME.fullmatch(name):
        reason = (
            f"'{name}' must be at most {RUN_NAME_LIMIT} lower-case letters, digits and dashes, "
            "and start with a letter"
        )
        raise SpecError("name of the run", [Problem("", reason)])
    return name


def facts_of(profile: Profile) -> Facts:
    """Close what the profile leaves open, without loading a model library.

    The compute dtype of quality measurements enters keys, so it follows from what the
    device is and not from a timing, which could differ from run to run.
    """
    accelerator = profile.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if Path("/dev/nvidiactl").exists() else "cpu"
    dtype: Dtype | str = profile.dtype
    if dtype == "auto":
        has_bf16 = accelerator == "cuda" or bool(BF16_FLAGS & _processor_flags())
        dtype = "bfloat16" if has_bf16 else "float32"
    return Facts.model_validate({"accelerator": accelerator, "dtype": dtype})


def _processor_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset({"bf16"}) if platform.machine() == "arm64" else frozenset()
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return frozenset(next(lines, "").split())


def preview(store: Store, run: RunSpec, profile: Profile, asked: Asked) -> Plan:
    """Lay out what `prepare` would, without writing anything.

    Raises:
        InputMissing: a source is not there.
        SpecError: `again` names a stage the run does not have.
    """
    record = read_run(store, asked.name)
    pins = _pins(store, run, record, asked)
    return _plan(run, profile, pins, record, asked)


def prepare(store: Store, run: RunSpec, profile: Profile, asked: Asked) -> Conducted:
    """Pin the sources, upload local ones, and make this the live plan of the run.

    Raises:
        InputMissing: a source is not there.
        SpecError: `again` names a stage the run does not have, or the base model rules the run out.
        DataError: a local source changed while it was read.
    """
    recorded = record_plan(store, run, profile, asked)
    assert recorded is not None
    plan, sha256 = recorded
    conductor = asked.conductor or attempt_id()
    foretold = _foretold(store, plan, profile, asked.folder)

    def take_over(present: RunRecord | None) -> RunRecord:
        assert present is not None
        return present.model_copy(
            update={
                "conductor": conductor,
                "exit_code": None,
                "message": "",
                "absence": "",
                "heartbeat": now(),
                # What was foretold once stays, or it would come to know how it ended.
                "foretold": {**foretold, **present.foretold},
                "prices": profile.prices,
            }
        )

    update_run(store, asked.name, take_over)
    return Conducted(store, asked.name, plan, sha256, profile, conductor, asked.owner)


def _foretold(
    store: Store, plan: Plan, profile: Profile, folder: Path | None
) -> Mapping[str, Foretold]:
    """Foretell the hours of every stage, by its key; looks at sources only where that helps."""
    is_known = plan.facts.accelerator == "cuda" and accelerator_called(profile.gpu_type)
    if is_known:
        known = known_of(store, plan, folder)
    else:
        known = Known(measured_seconds=measured_before(store, plan))
    told = foretell(plan, known, profile, profile.gpu_type)
    return {stage.key: told[stage.name] for stage in plan.stages}


def record_plan(
    store: Store, run: RunSpec, profile: Profile, asked: Asked
) -> tuple[Plan, str] | None:
    """Pin the sources, upload local ones, and write down what is planned, driven by nobody yet.

    Returns:
        The plan and its SHA-256; None where sources are on a hub that is not asked from here:
        then whoever drives the run pins them, and plans.

    Raises:
        InputMissing: a source is not there.
        SpecError: `again` names a stage the run does not have, or the base model rules the run out.
        DataError: a local source changed while it was read.
        PermissionRefused: a run of that name belongs to somebody else.
    """
    record = read_run(store, asked.name)
    _check_owner(store, record, asked)
    pins = _pins(store, run, record, asked)
    left = [source for source in sources_of(run) if source not in pins]
    unknown = {source: Pin(address=source, digest="") for source in left}
    plan = _plan(run, profile, {**pins, **unknown}, record, asked)
    if asked.folder is not None:
        if asked.asks_hub or not is_hub(run.model.source):
            refuse_unfit(store, plan, asked.folder)
        upload_local_sources(store, run, asked.folder, pins)
    sha256 = "" if left else put_plan(store, asked.name, plan_bytes(plan))

    def write_down(present: RunRecord | None) -> RunRecord:
        time = now()
        base = present or RunRecord(name=asked.name, created=time)
        planned = {
            "plan_sha256": sha256,
            "plans": base.plans if sha256 in base.plans else (*base.plans, sha256),
            "keys": {stage.name: stage.key for stage in plan.stages},
        }
        return base.model_copy(
            update={
                "owner": asked.owner,
                "pins": dict(pins),
                "pinned_at": base.pinned_at if base.pins == pins else time,
                # Of the plan before; who waits for the end must not take it for the end of this.
                "exit_code": None,
                "message": "",
                "again": plan.again,
                **({} if left else planned),
            }
        )

    update_run(store, asked.name, write_down)
    if asked.folder is not None:
        # Nothing needed them before the record did, so `gc` may just have removed one.
        upload_local_sources(store, run, asked.folder, pins)
    return None if left else (plan, sha256)


def _check_owner(store: Store, record: RunRecord | None, asked: Asked) -> None:
    """Refuse the name of a run that another place owns; one made on a laptop is anybody's."""
    if record is None or asked.take_over or record.owner in ("", asked.owner):
        return
    raise PermissionRefused(
        f"Run '{asked.name}' belongs to {record.owner}",
        at=store.url,
        fix="choose another --name, or say --take-over if that one is yours and has ended",
    )


def upload_local_sources(store: Store, run: RunSpec, folder: Path, pins: Mapping[str, Pin]) -> None:
    """Make local sources readable for stages anywhere; what is there already stays."""
    for source in sources_of(run):
        if is_local(source) and not is_uploaded(store, pins[source]):
            upload_source(store, folder / source)


def _plan(
    run: RunSpec,
    profile: Profile,
    pins: Mapping[str, Pin],
    record: RunRecord | None,
    asked: Asked,
) -> Plan:
    again = dict(record.again) if record is not None else {}
    facts = asked.facts or facts_of(profile)
    known = [*(stage.name for stage in make_plan(run, facts, pins).stages), REPORT]
    unknown = [name for name in asked.again if name not in known]
    if unknown:
        raise SpecError(
            "--again",
            [
                Problem(name, "no such stage", suggestion=f"known: {_listed(known)}")
                for name in unknown
            ],
        )
    for name in asked.again:
        again[name] = again.get(name, 0) + 1
    return make_plan(run, facts, pins, {name: n for name, n in again.items() if name in known})


def _pins(store: Store, run: RunSpec, record: RunRecord | None, asked: Asked) -> Mapping[str, Pin]:
    """Pin every source; those on a hub that is not asked from here, and has not been, are left."""
    pins: dict[str, Pin] = {}
    for source in sources_of(run):
        known = record.pins.get(source) if record is not None else None
        if not is_local(source):
            if known is not None and not asked.repin:
                pins[source] = known
            elif asked.asks_hub or not is_hub(source):
                pins[source] = pin_source(store, source)
        elif asked.folder is not None:
            # A local source is at hand: using yesterday's copy of it would surprise.
            pins[source] = pin_local(asked.folder / source)
        elif known is not None:
            pins[source] = known
        else:
            raise InputMissing(
                f"'{source}' is local to the machine of whoever wrote the run",
                at=f"run {asked.name}",
                fix="submit the run with `modelmill submit`, which uploads it, or use s3:// or hf:",
            )
    return pins


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
