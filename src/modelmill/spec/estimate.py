"""What each stage of a plan will take: estimates before anything runs.

Pure: a function of the plan and of what is known about its sources.  docs/fit.md holds the
estimates against what was measured; `fit` holds them against a place.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from modelmill.spec.batching import ANSWERED_AT_ONCE, ranks_for, undividable
from modelmill.spec.closed import Spec
from modelmill.spec.footprint import (
    Form,
    Memory,
    Rows,
    fetch_memory,
    finetune_memory,
    infer_memory,
    merge_memory,
    micro_batch,
)
from modelmill.spec.grouping import largest_group
from modelmill.spec.memory import BYTES_OF, adapter_parameters, quantized_bytes
from modelmill.spec.names import Fsdp, Kind, is_fetch
from modelmill.spec.plan import Plan, Stage
from modelmill.spec.quantize import BitnetSpec, GptqSpec, PackedSpec, QuantizeSpec
from modelmill.spec.quantizer_footprint import quantize_memory
from modelmill.spec.rank_footprint import Ranks, memory_of_ranks, share_of
from modelmill.spec.settings import (
    FetchAdapterSettings,
    FetchDataSettings,
    FetchModelSettings,
    FetchTestSettings,
    FetchTextSettings,
    FinetuneSettings,
    InferSettings,
    MergeSettings,
    QuantizeSettings,
)
from modelmill.spec.shape import ModelShape

GPTQ_GROUP: Final = 128
"""Where nothing is known of the layers."""


class Known(Spec):
    """What is known about the sources of a plan before anything runs."""

    shape: ModelShape | None = None
    """Of the base model."""
    why_unknown: str = ""
    """A sentence where there is no shape."""
    adapter_parameters: int | None = None
    """Of an adapter that is given."""
    bytes_by_address: Mapping[str, int] = {}
    """Of sources, as pinned."""
    measured_seconds: Mapping[str, float] = {}
    """By stage: what it took before it was asked for once more."""


class Estimate(Spec):
    """What one stage will take."""

    stage: str
    kind: Kind
    memory: Memory | None
    """None where the model is not known."""
    parameters: int | None
    """Of the model it works on."""
    bytes_in: int | None
    bytes_out: int | None
    """None where it depends on what comes out, such as answers."""
    assumed: tuple[str, ...] = ()
    stays_in_store: bool = False
    """Whether weights are read and written there, with no file between."""

    @property
    def disk_bytes(self) -> int | None:
        """What lies on the volume at the end: the inputs, and the output beside them."""
        if self.bytes_in is None or self.stays_in_store:
            return None
        return self.bytes_in + (self.bytes_out or 0)


@dataclass(frozen=True)
class Devices:
    """What stages compute on, as far as a place says it."""

    is_gpu: bool
    """Whether stages that can use a GPU have one."""
    count: int = 1
    """That a finetune may share its batches among."""
    cores: int = ANSWERED_AT_ONCE
    """Of the host, where an infer has no GPU."""
    fsdp: Fsdp = "auto"
    """Whether each of several that train holds a part of the weights."""


def estimates(plan: Plan, known: Known, devices: Devices) -> tuple[Estimate, ...]:
    """Estimate every stage of a plan.

    Args:
        plan: with its inputs first.
        known: about its sources.
        devices: that they compute on.
    """
    return Estimator(plan, known, devices).estimates()


def rows_of(settings: FinetuneSettings | InferSettings) -> Rows:
    """Assume that rows are as long as they may be, for nobody has read them yet."""
    longest = settings.contract.max_length
    return Rows(longest=longest, learned=longest, prompt=longest)


class Estimator:
    """Goes through a plan once, with the sizes of what earlier stages write."""

    def __init__(self, plan: Plan, known: Known, devices: Devices) -> None:
        """Estimate a plan on some devices."""
        self.plan = plan
        self.known = known
        self.is_gpu = devices.is_gpu
        self.devices = devices
        self.sizes: dict[str, int | None] = {}

    def estimates(self) -> tuple[Estimate, ...]:
        """Estimate every stage, in the order of the plan."""
        return tuple(map(self._estimate, self.plan.stages))

    def _estimate(self, stage: Stage) -> Estimate:
        bytes_in = self._bytes_in(stage)
        out = self._bytes_out(stage, bytes_in)
        self.sizes[stage.name] = out
        return Estimate(
            stage=stage.name,
            kind=stage.kind,
            memory=self._memory(stage),
            parameters=None if self.known.shape is None else self.known.shape.parameters,
            bytes_in=bytes_in,
            bytes_out=out,
            assumed=tuple(self._assumed(stage)),
        )

    def _bytes_in(self, stage: Stage) -> int | None:
        match stage.settings:
            case FetchModelSettings() | FetchAdapterSettings() | FetchTextSettings():
                return self.known.bytes_by_address.get(stage.settings.source.address)
            case FetchTestSettings():
                return self.known.bytes_by_address.get(stage.settings.test.address)
            case FetchDataSettings():
                pins = [each.pin for each in stage.settings.train_by_role().values()]
                held_out = stage.settings.eval_source
                pins += [] if held_out is None else [held_out]
                return _sum(self.known.bytes_by_address.get(pin.address) for pin in pins)
        return _sum(self.sizes.get(each.stage) for each in stage.inputs)

    def _bytes_out(self, stage: Stage, bytes_in: int | None) -> int | None:
        if is_fetch(stage.kind):
            return bytes_in
        weights = self._weights_out(stage)
        return None if weights is None else weights + self._beside()

    def _weights_out(self, stage: Stage) -> int | None:
        shape = self.known.shape
        match stage.settings:
            case FinetuneSettings() if shape is not None:
                if stage.settings.finetune.method == "full":
                    return shape.parameters * BYTES_OF[stage.settings.dtype or "bfloat16"]
                return 4 * self._adapter()
            case MergeSettings() if shape is not None:
                return shape.parameters * BYTES_OF[stage.settings.merge.dtype]
            case QuantizeSettings() if shape is not None:
                spec = stage.settings.quantize
                return quantized_bytes(shape, spec, group_of(shape, spec))
        return None

    def _beside(self) -> int:
        """Count what goes along with weights: the tokenizer and the configs."""
        source = self.plan.pins[self.plan.run.model.source].address
        whole, shape = self.known.bytes_by_address.get(source), self.known.shape
        return max(0, whole - shape.weight_bytes) if whole and shape else 0

    def _adapter(self) -> int:
        if self.known.adapter_parameters is not None:
            return self.known.adapter_parameters
        asked = self.plan.run.finetune
        if asked is None or self.known.shape is None:
            return 0
        return adapter_parameters(self.known.shape, asked)

    def _memory(self, stage: Stage) -> Memory | None:
        shape = self.known.shape
        if is_fetch(stage.kind):
            return fetch_memory()
        if shape is None:
            return None
        match stage.settings:
            case FinetuneSettings() as settings:
                return self.finetune(settings)
            case MergeSettings() as settings:
                return merge_memory(shape, settings)
            case QuantizeSettings() as settings:
                group = group_of(shape, settings.quantize)
                return quantize_memory(shape, settings, group, is_gpu=self.is_gpu)
            case InferSettings() as settings:
                form = self._form(stage, shape)
                rows = rows_of(settings)
                cores = 0 if self.is_gpu else self.devices.cores
                return infer_memory(shape, settings, rows, form, cores)
        return None

    def finetune(self, settings: FinetuneSettings, ranks: Ranks | None = None) -> Memory:
        """Estimate a fine-tune of the known model; without `ranks`, by those that begin."""
        ranks = ranks or self.ways(settings)[0]
        assert self.known.shape is not None
        own = finetune_memory(
            self.known.shape,
            share_of(settings, ranks.count),
            rows_of(settings),
            is_gpu=self.is_gpu,
            given_parameters=self.known.adapter_parameters,
            devices=ranks.count if ranks.is_divided else 1,
        )
        return memory_of_ranks(own, ranks)

    def micro_batch(self, settings: FinetuneSettings) -> int:
        """Say how many rows each device takes at a time."""
        share = share_of(settings, self.ranks(settings))
        return micro_batch(share, settings.contract.max_length, is_gpu=self.is_gpu)

    def ranks(self, settings: FinetuneSettings) -> int:
        """Say how many processes will train, each on a device of its own."""
        return ranks_for(settings.finetune.batch_size, self.devices.count)

    def ways(self, settings: FinetuneSettings) -> tuple[Ranks, ...]:
        """Say how the devices will share the work: the ways, as they are tried."""
        count, asked = self.ranks(settings), self.devices.fsdp
        whole, divided = Ranks(count), Ranks(count, is_divided=True)
        if count == 1 or asked == "never" or undividable(settings.finetune):
            return (whole,)
        return (divided,) if asked == "always" else (whole, divided)

    def _form(self, stage: Stage, shape: ModelShape) -> Form:
        roles = {each.role: self.plan.stage(each.stage) for each in stage.inputs}
        source = roles["model"].settings
        adapter = self._adapter() if "adapter" in roles else 0
        if not isinstance(source, QuantizeSettings):
            return Form(adapter=adapter)
        spec = source.quantize
        return Form(quantized=spec, group_size=group_of(shape, spec), adapter=adapter)

    def _assumed(self, stage: Stage) -> Iterator[str]:
        if self.known.shape is None and not is_fetch(stage.kind):
            yield self.known.why_unknown or "the model is not known yet"
            return
        match stage.settings:
            case FinetuneSettings() as settings:
                longest, ranks = settings.contract.max_length, self.ranks(settings)
                each = f" in each of {ranks} ranks" if ranks > 1 else ""
                rows = self.micro_batch(settings)
                yield f"{rows} rows of data.max_length {longest} at a time{each}"
                if not self.is_gpu and settings.finetune.precision == "auto":
                    yield "float32, which takes most; the device is asked when it is there"
            case QuantizeSettings(quantize=GptqSpec(bits=2 | 3 as bits)):
                yield f"gptq at {bits} bits, where `method: autoround` keeps more of a model"
            case QuantizeSettings(quantize=BitnetSpec()):
                yield (
                    "bitnet is a demonstration: it ruins a model that was not trained so "
                    "(docs/quantization.md)"
                )
            case InferSettings() as settings:
                yield f"prompts of data.max_length {settings.contract.max_length}"


def group_of(shape: ModelShape, spec: QuantizeSpec) -> int:
    """Say which group size a quantizer will take."""
    if isinstance(spec, PackedSpec) and spec.group_size != "auto":
        return spec.group_size
    return largest_group(shape.in_features()) or GPTQ_GROUP


def _sum(counts: Iterable[int | None]) -> int | None:
    total = 0
    for each in counts:
        if each is None:
            return None
        total += each
    return total
