"""How long the stages of a plan will hold devices: ranges, each with what it rests on.

Pure.  Where nothing is known that seconds could follow from there are none: a wrong number
is worse than the word.  docs/fit.md holds the ranges against what was measured and told.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from modelmill.spec.accelerators import Accelerator, accelerator_called
from modelmill.spec.estimate import Known
from modelmill.spec.names import DEVICE_DEPENDENT, Kind
from modelmill.spec.plan import Plan, Stage
from modelmill.spec.profile import Facts, Profile
from modelmill.spec.quantize import AutoroundSpec, GptqSpec, QuantizeSpec
from modelmill.spec.records import Foretold
from modelmill.spec.settings import FetchDataSettings, FinetuneSettings, QuantizeSettings
from modelmill.spec.shape import ModelShape

CPU: Final = "cpu"
UNNAMED_GPU: Final = "gpu"

LEAST_USE: Final = 0.04
MOST_USE: Final = 0.4
"""Of a GPU's peak, in training.  Short rows in small batches came to some 5 % in the hand-run
original (docs/fit.md); 40 % is believed to be what long, packed rows reach.  Evaluating, loading
and saving are in it."""

FEWEST_BYTES: Final = 3
MOST_BYTES: Final = 5
"""Of a file of rows for each token that is learned from: words, code, the names of fields."""

_PLAIN: Final = (".jsonl", ".csv", ".tsv", ".txt")
"""Files whose size says how much text is in them."""

_FORWARD: Final = 2
"""A multiplication and an addition for each weight and token.  What is computed for a loss takes as
much backwards again for the activations, and once more for weights that are trained."""

GPTQ_SECONDS: Final = (190, 580)
"""For each billion parameters: 7 billion took 22, 35 and 70 minutes in three write-ups."""
AUTOROUND_SECONDS: Final = (85, 190)
"""For each billion parameters and 200 steps: by its authors 3 to 70 billion took 7 to 120 minutes
on an A100, the longest where memory was short."""
AUTOROUND_STEPS: Final = 200

REPEATED: Final = (0.8, 1.25)
"""How far the same stage may be off when it runs once more in the same place."""

_BILLION: Final = 10**9
_TERA: Final = 10**12


@dataclass(frozen=True)
class Reckoned:
    """Seconds on one device, and what they rest on."""

    basis: str
    seconds: tuple[float, float] | None = None


def foretell(plan: Plan, known: Known, profile: Profile, gpu: str) -> Mapping[str, Foretold]:
    """Say how long each stage will hold which devices, by its name.

    Args:
        plan: as laid out.
        known: about its sources, and of stages that ran before.
        profile: how many devices each kind of stage gets.
        gpu: which they are; empty where nobody says.
    """
    told: dict[str, Foretold] = {}
    for stage in plan.stages:
        device, devices = devices_of(stage.kind, plan.facts, profile, gpu)
        reckoned = _reckon(plan, stage, known, accelerator_called(device))
        low, high = reckoned.seconds or (None, None)
        told[stage.name] = Foretold(
            device=device,
            devices=devices,
            low_seconds=low,
            high_seconds=high,
            basis=reckoned.basis,
        )
    return told


def devices_of(kind: Kind, facts: Facts, profile: Profile, gpu: str) -> tuple[str, int]:
    """Say what a stage holds while it runs: the name of a device, and how many of them."""
    pods = profile.stages[kind]
    # Only a cluster shares a stage; elsewhere there is one process all the same.
    processes = pods.shards if profile.images.registry else 1
    if facts.accelerator == "cuda" and pods.gpu:
        return gpu or UNNAMED_GPU, pods.gpu * processes
    return CPU, processes


def training_flops(shape: ModelShape, settings: FinetuneSettings) -> int:
    """Count the operations of learning from one token; attention's own few are left out."""
    multiplied = shape.linear_parameters + shape.vocabulary * shape.hidden
    passes = 3 if settings.finetune.method == "full" else 2
    return _FORWARD * multiplied * (passes + settings.finetune.gradient_checkpointing)


def seconds_of(flops: float, device: Accelerator) -> tuple[float, float]:
    """Divide the operations of a training by what a GPU makes of its peak, at best and at worst."""
    best, worst = (flops / (use * device.teraflops * _TERA) for use in (MOST_USE, LEAST_USE))
    return best, worst


def _reckon(plan: Plan, stage: Stage, known: Known, device: Accelerator | None) -> Reckoned:
    before = known.measured_seconds.get(stage.name)
    if before is not None:
        low, high = (each * before for each in REPEATED)
        basis = (
            f"measured before: {before:,.0f} s; 0.8 to 1.25 times that, and starting comes on top"
        )
        return Reckoned(basis, (low, high))
    if stage.kind not in DEVICE_DEPENDENT:
        return Reckoned("no basis: it depends on how fast the store and the network are")
    if plan.facts.accelerator == "cpu":
        return Reckoned("no basis: processors differ too much")
    if device is None or not device.is_gpu:
        return Reckoned("no basis: which GPU it will be is not said, or not known")
    if known.shape is None:
        return Reckoned(f"no basis: {known.why_unknown or 'the model is not known yet'}")
    match stage.settings:
        case FinetuneSettings() as settings:
            return _training(plan, settings, known, device)
        case QuantizeSettings() as settings:
            return _quantizing(settings.quantize, known.shape)
    return Reckoned("no basis: how long answers will be is not known")


def _training(
    plan: Plan, settings: FinetuneSettings, known: Known, device: Accelerator
) -> Reckoned:
    assert known.shape is not None
    if settings.finetune.precision == "float32":
        return Reckoned("no basis: float32 was not measured on any GPU")
    size = _bytes_to_learn_from(plan, known)
    if size is None:
        return Reckoned("no basis: the size of the training rows is not known, or they are packed")
    epochs = settings.finetune.num_train_epochs
    tokens = [epochs * size / each for each in (MOST_BYTES, FEWEST_BYTES)]
    flops = training_flops(known.shape, settings)
    low, _ = seconds_of(tokens[0] * flops, device)
    _, high = seconds_of(tokens[1] * flops, device)
    basis = (
        f"{_short(flops)}FLOPs for each of {_short(tokens[0])}to {_short(tokens[1])}tokens "
        f"({MOST_BYTES} to {FEWEST_BYTES} bytes of the files each), at "
        f"{MOST_USE:.0%} to {LEAST_USE:.0%} of {device.teraflops:,.0f} TFLOPS in 16 bits"
    ).replace("%", " %")
    if settings.finetune.early_stopping_patience is not None:
        basis += "; less if it stops early"
    return Reckoned(basis, (low, high))


def _bytes_to_learn_from(plan: Plan, known: Known) -> float | None:
    """Add up the files of training rows, less the share that is kept to evaluate on."""
    settings = next(
        (each.settings for each in plan.stages if isinstance(each.settings, FetchDataSettings)),
        None,
    )
    # Of several sources, weights decide how much is taken.
    if settings is None or isinstance(settings.train, tuple):
        return None
    address = settings.train.address
    size = known.bytes_by_address.get(address)
    if size is None or not address.endswith(_PLAIN):
        return None
    return size * (1 - (settings.eval_share or 0))


def _quantizing(spec: QuantizeSpec, shape: ModelShape) -> Reckoned:
    billions = shape.parameters / _BILLION
    match spec:
        case GptqSpec():
            (low, high), steps, told = GPTQ_SECONDS, 1.0, "three write-ups of 7 billion"
        case AutoroundSpec():
            (low, high), steps = AUTOROUND_SECONDS, spec.iters / AUTOROUND_STEPS
            told = f"its authors' runs on an A100, for {spec.iters} steps"
        case _:
            return Reckoned("no basis: it depends on how fast weights are read and written")
    seconds = (low * steps * billions, high * steps * billions)
    basis = (
        f"{low * steps:,.0f} to {high * steps:,.0f} s for each of {billions:.3g} billion "
        f"parameters, by {told}, whatever the GPU"
    )
    return Reckoned(basis, seconds)


def _short(count: float) -> str:
    """Write a large count with a word, and a blank after it."""
    for word, factor in (("trillion", 10**12), ("billion", _BILLION), ("million", 10**6)):
        if count >= factor:
            return f"{count / factor:.3g} {word} "
    return f"{count:,.0f} "
