"""Whether a place has what a plan takes, and what would make it fit.  Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from modelmill.spec.accelerators import Accelerator, next_larger
from modelmill.spec.batching import HALVINGS, undividable
from modelmill.spec.closed import Spec
from modelmill.spec.estimate import Devices, Estimate, Estimator, Known
from modelmill.spec.footprint import Memory
from modelmill.spec.names import Kind
from modelmill.spec.plan import Plan
from modelmill.spec.quantize import CalibratedSpec
from modelmill.spec.rank_footprint import Ranks
from modelmill.spec.settings import (
    FinetuneSettings,
    InferSettings,
    MergeSettings,
    QuantizeSettings,
    StageSettings,
)

MARGIN: Final = 0.1
"""How far an estimate may be off: nearer to the limit than this, nothing is promised."""

State = Literal["fits", "tight", "does not fit", "unknown"]


class Room(Spec):
    """What a place has for a stage; None where nobody knows."""

    host_bytes: int | None = None
    disk_bytes: int | None = None
    is_pod: bool = True
    """Whether a profile says it, and could say more."""


class Fit(Spec):
    """Whether a stage fits a place."""

    estimate: Estimate
    state: State
    reasons: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    """What would make it fit, each by itself."""


def judge(
    plan: Plan,
    known: Known,
    accelerator: Accelerator,
    rooms: Mapping[Kind, Room],
    devices: Devices,
) -> tuple[Fit, ...]:
    """Hold every stage against a device, a finetune against several, and what its place has."""
    estimator = Estimator(plan, known, devices)
    return tuple(
        _Judge(estimator, accelerator, rooms.get(each.kind, Room())).fit(each)
        for each in estimator.estimates()
    )


@dataclass(frozen=True)
class _Judge:
    """Holds one stage against one device."""

    estimator: Estimator
    accelerator: Accelerator
    room: Room

    def fit(self, estimate: Estimate) -> Fit:
        if estimate.memory is None:
            return Fit(estimate=estimate, state="unknown", reasons=estimate.assumed)
        settings = self.estimator.plan.stage(estimate.stage).settings
        if isinstance(settings, MergeSettings):
            estimate = self._left_in_store(estimate, settings)
        if isinstance(settings, FinetuneSettings) and self.accelerator.is_gpu:
            estimate = self._made_to_fit(estimate, settings)
        states = {what: _state(needed, there) for what, needed, there in self._wanted(estimate)}
        state = max(states.values(), key=_ORDER.index)
        if state == "fits":
            return Fit(estimate=estimate, state=state)
        reasons = tuple(
            f"{what}: {size(needed or 0)} needed, {size(there or 0)} there"
            for what, needed, there in self._wanted(estimate)
            if states[what] != "fits"
        )
        advice = tuple(self._advice(estimate, settings, states))
        return Fit(estimate=estimate, state=state, reasons=reasons, advice=advice)

    def _wanted(self, estimate: Estimate) -> Iterator[tuple[str, int | None, int | None]]:
        assert estimate.memory is not None
        yield _GPU, estimate.memory.gpu_bytes, self.accelerator.memory_bytes or None
        yield _HOST, estimate.memory.host_bytes, self.room.host_bytes
        yield _DISK, estimate.disk_bytes, self.room.disk_bytes

    def _has_room(self, memory: Memory) -> bool:
        return (
            _state(memory.gpu_bytes, self.accelerator.memory_bytes or None) == "fits"
            and _state(memory.host_bytes, self.room.host_bytes) == "fits"
        )

    def _left_in_store(self, estimate: Estimate, settings: MergeSettings) -> Estimate:
        """Foretell what a merge does by itself where the volume is too small."""
        needed_bytes = estimate.disk_bytes
        if settings.needs_whole_base or _state(needed_bytes, self.room.disk_bytes) == "fits":
            return estimate
        note = (
            f"the weights stay in the store, unless {size(needed_bytes or 0)} of disk are free; "
            "adapters that are merged in memory need them"
        )
        assumed = (*estimate.assumed, note)
        return estimate.model_copy(update={"stays_in_store": True, "assumed": assumed})

    def _made_to_fit(self, estimate: Estimate, settings: FinetuneSettings) -> Estimate:
        """Foretell what the stage does by itself where a GPU is too small."""
        for ranks in self.estimator.ways(settings):
            halved = self._halved_enough(settings, ranks)
            if halved is None:
                continue
            notes = list(estimate.assumed)
            if ranks.is_divided:
                notes.append(f"each of {ranks.count} devices will hold a part of the weights")
            if halved.micro_batch_halvings:
                rows = self.estimator.micro_batch(halved)
                notes.append(f"the stage will come down to {rows} rows at a time by itself")
            memory = self.estimator.finetune(halved, ranks)
            return estimate.model_copy(update={"memory": memory, "assumed": tuple(notes)})
        return estimate

    def _halved_enough(
        self, settings: FinetuneSettings, ranks: Ranks | None = None
    ) -> FinetuneSettings | None:
        """Find out with how few rows at a time the stage will fit; None where it never does."""
        for halvings in range(HALVINGS + 1 if self.accelerator.is_gpu else 1):
            tried = settings.model_copy(update={"micro_batch_halvings": halvings})
            if self._has_room(self.estimator.finetune(tried, ranks)):
                return tried
        return None

    def _more_devices(self, settings: FinetuneSettings) -> Iterator[str]:
        devices = self.estimator.devices
        if not self.room.is_pod or devices.fsdp == "never" or undividable(settings.finetune):
            return
        for count in _NODES:
            if count <= devices.count or settings.finetune.batch_size % count:
                continue
            if self._halved_enough(settings, Ranks(count, is_divided=True)) is not None:
                yield f"stages.finetune.gpu: {count} in the profile, each with a part of it"
                return

    def _advice(
        self, estimate: Estimate, settings: StageSettings, states: Mapping[str, State]
    ) -> Iterator[str]:
        assert estimate.memory is not None
        if isinstance(settings, FinetuneSettings):
            yield from self._less(settings)
        if states[_GPU] != "fits":
            if isinstance(settings, FinetuneSettings):
                yield from self._more_devices(settings)
            if isinstance(settings, InferSettings):
                yield "a smaller infer.batch_size, or a shorter data.max_length"
            if isinstance(settings, QuantizeSettings) and isinstance(
                settings.quantize, CalibratedSpec
            ):
                yield "fewer quantize.calibration.tokens"
            larger = next_larger(round(estimate.memory.gpu_bytes / (1 - MARGIN)))
            if larger is not None:
                yield f"--accelerator {larger.name}"
        if states[_HOST] != "fits":
            wanted = _gibibytes(estimate.memory.host_bytes)
            pods = f"stages.{estimate.kind}.memory: {wanted} in the profile"
            yield pods if self.room.is_pod else f"a machine with {wanted} of memory"
        if states[_DISK] != "fits":
            wanted = _gibibytes(estimate.disk_bytes or 0)
            yield f"stages.{estimate.kind}.work: {wanted} in the profile"

    def _less(self, settings: FinetuneSettings) -> Iterator[str]:
        """Ask for less, one thing more at a time, and leave out again what is not needed."""
        taken: list[_Change] = []
        for change in _CHANGES:
            if change.is_less(settings):
                taken.append(change)
            if self._fits_with(settings, taken):
                break
        else:
            return
        for change in list(taken):
            fewer = [each for each in taken if each is not change]
            if self._fits_with(settings, fewer):
                taken = fewer
        if taken:
            yield " and ".join(map(str, taken))

    def _fits_with(self, settings: FinetuneSettings, changes: list["_Change"]) -> bool:
        update = {each.key: each.value for each in changes}
        asked = settings.finetune.model_copy(update=update)
        return self._halved_enough(settings.model_copy(update={"finetune": asked})) is not None


@dataclass(frozen=True)
class _Change:
    """A setting of a fine-tune that takes less."""

    key: str
    value: int | bool | str

    def is_less(self, settings: FinetuneSettings) -> bool:
        spec = settings.finetune
        if self.key == "load_in":
            return spec.method == "lora" and spec.load_in in (None, "int8")
        if self.key == "method" and spec.qat is not None:  # which an adapter cannot have
            return False
        return bool(getattr(spec, self.key) != self.value)

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"finetune.{self.key}: {value}"


_CHANGES: Final = (
    _Change("micro_batch_size", value=1),
    _Change("gradient_checkpointing", value=True),
    _Change("load_in", value="nf4"),
    _Change("method", value="lora"),
)
"""By what they cost: nothing, time, a base that differs slightly, less that is learned."""

_ORDER: Final[tuple[State, ...]] = ("fits", "tight", "does not fit")
_NODES: Final = (2, 4, 8)
"""GPUs that one node has."""
_GPU: Final = "GPU memory"
_HOST: Final = "host memory"
_DISK: Final = "disk"


def _state(needed: int | None, there: int | None) -> State:
    if needed is None or there is None or needed <= (1 - MARGIN) * there:
        return "fits"
    return "tight" if needed <= (1 + MARGIN) * there else "does not fit"


def size(count: int) -> str:
    """Write a size for people, as the makers of memory count it."""
    return f"{count / 10**9:,.1f} GB" if count >= 10**9 else f"{count / 10**6:,.0f} MB"


def _gibibytes(count: int) -> str:
    """Write a quantity for a profile, with room for what an estimate may be off."""
    wanted = round(count / (1 - MARGIN))
    return f"{-(-wanted // 2**30)}Gi"
