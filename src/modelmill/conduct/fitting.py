"""Find out what a run's base model is made of, and hold its plan against a device.

Knows what is asked for and what a place has; `base_model` looks at the files.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from modelmill.conduct.base_model import known_of
from modelmill.conduct.prepare import facts_of
from modelmill.spec.accelerators import ACCELERATORS, Accelerator, AcceleratorName
from modelmill.spec.cluster import StagePods
from modelmill.spec.errors import DoesNotFit
from modelmill.spec.estimate import Devices, estimates
from modelmill.spec.fit import Fit, Room, judge
from modelmill.spec.hours import foretell
from modelmill.spec.impossible import refuse_impossible
from modelmill.spec.memory import Part
from modelmill.spec.names import Kind, kind_of
from modelmill.spec.plan import Plan
from modelmill.spec.prices import Prices
from modelmill.spec.profile import Facts, Profile
from modelmill.spec.quantity import total, whole_bytes, whole_cores
from modelmill.spec.records import Foretold, Record
from modelmill.spec.serving import Serving, serving_of
from modelmill.store.s3 import Store


class Shared(Record):
    """How many pods of a cluster share a stage, and what they ask for together."""

    shards: int
    gpu: int
    memory: str


class FitRow(Record):
    """What one stage will take, and whether it fits."""

    stage: str
    state: Literal["fits", "tight", "does not fit", "unknown"]
    parameters: int | None
    """Of the model it works on."""
    gpu_bytes: int | None
    host_bytes: int | None
    disk_bytes: int | None
    bytes_in: int | None
    bytes_out: int | None
    gpu_parts: Mapping[str, int] = {}
    """At the time of its peak, by what takes the memory."""
    host_parts: Mapping[str, int] = {}
    assumed: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    shared: Shared | None = None
    """None where one pod does all; each of several takes what is said above."""


@dataclass(frozen=True)
class Fitting:
    """A plan held against a device."""

    rows: tuple[FitRow, ...]
    accelerator: Accelerator | None
    """None where no device is named: nothing is promised then."""
    why_unknown: str = ""
    serving: tuple[Serving, ...] = ()
    """What would serve each model fastest."""
    foretold: Mapping[str, Foretold] = field(default_factory=dict)
    """By stage: how long it will hold which devices."""
    prices: Prices = field(default_factory=Prices)

    def check(self, committed: Collection[str]) -> None:
        """Refuse a plan of which a stage cannot fit the device that is named.

        Args:
            committed: stages that need not fit any more.

        Raises:
            DoesNotFit: naming every such stage and what would make it fit.
        """
        wrong = [
            row for row in self.rows if row.state == "does not fit" and row.stage not in committed
        ]
        if not wrong or self.accelerator is None:
            return
        advice = {row.stage: ", or ".join(row.advice) or "a smaller model" for row in wrong}
        raise DoesNotFit(
            "\n".join(f"{row.stage} does not fit: {'; '.join(row.reasons)}" for row in wrong),
            at=self.accelerator.title,
            fix="; ".join(f"{stage}: {words}" for stage, words in advice.items())
            if len(wrong) > 1
            else advice[wrong[0].stage],
        )


def facts_on(name: AcceleratorName | None, profile: Profile) -> Facts:
    """Close the profile's open facts for a device that is not here.

    Args:
        name: of the device; None for the one that the profile or this machine has.
        profile: may say the dtype.
    """
    if name is None:
        return facts_of(profile)
    accelerator: Literal["cpu", "cuda"] = "cuda" if ACCELERATORS[name].is_gpu else "cpu"
    return facts_of(profile.model_copy(update={"accelerator": accelerator}))


def fitting_of(
    store: Store, plan: Plan, folder: Path | None, device: AcceleratorName | None, profile: Profile
) -> Fitting:
    """Estimate every stage of a plan, and refuse what its base model rules out.

    Args:
        store: where uploaded sources and committed artifacts are.
        plan: as laid out.
        folder: of local sources, if they are at hand.
        device: that it is held against; None for nothing but the estimates.
        profile: what the place has for each kind of stage.

    Raises:
        SpecError: the model cannot become what is asked for.
    """
    known = known_of(store, plan, folder)
    if known.shape is not None:
        refuse_impossible(plan.run, known.shape, "run")
    serving = serving_of(plan.run, plan.facts, known.shape)
    foretold = foretell(plan, known, profile, device or profile.gpu_type)
    if device is None:
        devices = _devices(profile, is_gpu=plan.facts.accelerator == "cuda")
        given = estimates(plan, known, devices)
        rows = tuple(_row(Fit(estimate=each, state="unknown"), profile) for each in given)
        return Fitting(rows, None, known.why_unknown, serving, foretold, profile.prices)
    accelerator = ACCELERATORS[device]
    devices = _devices(profile, is_gpu=accelerator.is_gpu)
    fits = judge(plan, known, accelerator, rooms_of(profile, accelerator), devices)
    rows = tuple(_row(each, profile) for each in fits)
    return Fitting(rows, accelerator, known.why_unknown, serving, foretold, profile.prices)


def rooms_of(profile: Profile, accelerator: Accelerator) -> Mapping[Kind, Room]:
    """Say what each kind of stage is given, as far as that is known.

    A profile of a cluster says it; without one, stages without a GPU run on this machine, and
    where one with a GPU is, nobody has said.
    """
    if profile.store.url:
        return {
            kind: Room(
                host_bytes=whole_bytes(pods.memory),
                disk_bytes=whole_bytes(pods.work),
            )
            for kind, pods in profile.stages.items()
        }
    if accelerator.is_gpu:
        return {}
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {kind: Room(host_bytes=here, is_pod=False) for kind in profile.stages}


def _devices(profile: Profile, *, is_gpu: bool) -> Devices:
    """Say what stages compute on, as far as a profile says it; without a cluster, this machine."""
    pods = profile.stages["finetune"]
    cores = os.cpu_count() or 1
    if profile.store.url:
        cores = whole_cores(profile.stages["infer"].cpu)
    count = pods.ranks or (pods.gpu if is_gpu else 0) or 1
    return Devices(is_gpu, count, cores, pods.fsdp)


def _row(fit: Fit, profile: Profile) -> FitRow:
    estimate = fit.estimate
    memory = estimate.memory
    return FitRow(
        stage=estimate.stage,
        state=fit.state,
        parameters=estimate.parameters,
        gpu_bytes=None if memory is None else memory.gpu_bytes,
        host_bytes=None if memory is None else memory.host_bytes,
        disk_bytes=estimate.disk_bytes,
        bytes_in=estimate.bytes_in,
        bytes_out=estimate.bytes_out,
        gpu_parts=_parts(() if memory is None else memory.gpu_peak),
        host_parts=_parts(() if memory is None else memory.host_peak),
        assumed=estimate.assumed,
        reasons=fit.reasons,
        advice=fit.advice,
        shared=_shared(profile.stages[kind_of(estimate.stage)]),
    )


def _shared(pods: StagePods) -> Shared | None:
    if pods.shards == 1:
        return None
    return Shared(
        shards=pods.shards,
        gpu=pods.shards * pods.gpu,
        memory=total(*[pods.memory, pods.shm] * pods.shards),
    )


def _parts(parts: tuple[Part, ...]) -> Mapping[str, int]:
    return {each.name: each.bytes for each in parts if each.bytes}
