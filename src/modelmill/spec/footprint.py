"""What each kind of stage has in memory at a time: phases of parts, on the host and on a GPU.

`quantizer_footprint` has the ways of quantizing.  Pure.  Follows what `stages/` really holds; a
stage that comes to hold something else changes its function here, and docs/fit.md shows how far
it was off.
"""

from typing import Final

from modelmill.spec.batching import (
    ANSWERED_AT_ONCE,
    FEW_PROMPTS,
    FEW_TOKENS,
    LOGITS_BYTES,
    micro_batch_size,
)
from modelmill.spec.closed import Dtype, Spec
from modelmill.spec.memory import (
    ADAM_BYTES,
    BYTES_OF,
    KEPT_BYTES,
    Part,
    Phase,
    adapter_parameters,
    cached_per_token,
    gathered_bytes,
    held_bytes,
    kept_per_token,
    part,
    passing_per_token,
    quantized_bytes,
    rounded_bytes,
    widest_linear,
)
from modelmill.spec.quantize import (
    BitnetSpec,
    BitsandbytesSpec,
    PackedSpec,
    QuantizeSpec,
)
from modelmill.spec.settings import (
    FinetuneSettings,
    InferSettings,
    MergeSettings,
)
from modelmill.spec.shape import ModelShape

MB: Final = 10**6

LIGHT_BYTES: Final = 220 * MB
"""Of a fetch, with the parts of a file that it sends side by side."""
FINETUNE_BYTES: Final = 1160 * MB
MERGE_BYTES: Final = 880 * MB
INFER_BYTES: Final = 950 * MB
"""Python, libraries, and what they do once: each stage's peak with a model of 3 million parameters
(`smallest` in docs/measured/peaks.json), less what the formulas say of such a model."""

CUDA_HOST_BYTES: Final = 1500 * MB
"""What CUDA's libraries add on the host.  Believed, not measured."""

CONTEXT_BYTES: Final = 500 * MB
"""Of a GPU, taken by CUDA and cuBLAS before the first tensor.  Believed, not measured."""

SLACK: Final = 1.2
"""glibc keeps freed blocks between live ones.  135 M on two cores: a micro-batch of 8 takes
2.0 GB more than one of 4, where the tensors of four rows of 244 tokens are 1.63 GB."""

LOSS_COPIES: Final = 3
"""Of float32 logits: themselves, their log-softmax and its gradient."""
HEAD_TOKENS: Final = 4096
HEAD_VOCABULARY: Final = 32768
"""On a GPU TRL scores so many tokens against so many words at a time."""

COPIES: Final = "copies of what is trained"
HANDED_OUT: Final = "weights to be handed out"
"""The parts that only the first of several ranks has."""

PROBE_COPIES: Final = 2
"""Of logits: as they come, and put together in the order of prompts."""
PROVED_MODELS: Final = 3
"""The base, with its adapter, and as it was written."""
TENSOR_COPIES: Final = 3
"""In 16 bits: the base's, what was written, and pieces of both in float32."""


class Rows(Spec):
    """How long rows are, in tokens."""

    longest: int
    learned: int
    """From the first token that is learned or judged to the end, in the widest batch."""
    prompt: int


class Memory(Spec):
    """What a stage takes, phase by phase."""

    host: tuple[Phase, ...]
    gpu: tuple[Phase, ...] = ()

    @property
    def host_bytes(self) -> int:
        """What the host must have."""
        return max(phase.needed_bytes for phase in self.host)

    @property
    def host_peak(self) -> tuple[Part, ...]:
        """What is on the host when most must be there."""
        return max(self.host, key=lambda phase: phase.needed_bytes).parts

    @property
    def gpu_peak(self) -> tuple[Part, ...]:
        """What is on the GPU when most must be there."""
        return max(self.gpu, key=lambda phase: phase.needed_bytes).parts if self.gpu else ()

    @property
    def resident_bytes(self) -> int:
        """What a measured peak of the host counts."""
        return max(phase.resident_bytes for phase in self.host)

    @property
    def gpu_bytes(self) -> int:
        """What the GPU must have."""
        return max((phase.needed_bytes for phase in self.gpu), default=0)


def fetch_memory() -> Memory:
    """Estimate a stage that passes files on: none of them is ever in memory as a whole."""
    return Memory(host=(Phase(name="work", parts=(part("runtime", LIGHT_BYTES),)),))


def micro_batch(settings: FinetuneSettings, longest: int, *, is_gpu: bool) -> int:
    """Say how many rows a forward pass takes, as the stage will choose."""
    halvings = settings.micro_batch_halvings
    return micro_batch_size(settings.finetune, longest, is_gpu=is_gpu, halvings=halvings)


def training_dtype(settings: FinetuneSettings, *, is_gpu: bool) -> Dtype:
    """Say what is computed in; where a CPU's speed will decide, float32, which takes more."""
    asked = settings.finetune.precision
    if asked != "auto":
        return asked
    return "bfloat16" if is_gpu else "float32"


def finetune_memory(
    shape: ModelShape,
    settings: FinetuneSettings,
    rows: Rows,
    *,
    is_gpu: bool,
    given_parameters: int | None = None,
    devices: int = 1,
) -> Memory:
    """Estimate a fine-tune.

    Args:
        shape: the base.
        settings: of the stage.
        rows: of training; packed ones are as long as may be.
        is_gpu: where it computes.
        given_parameters: of an adapter to go on from.
        devices: GPUs that hold a part of the weights each.
    """
    spec = settings.finetune
    is_divided = devices > 1
    dtype = training_dtype(settings, is_gpu=is_gpu)
    is_full = spec.method == "full"
    trained = shape.parameters if is_full else given_parameters or adapter_parameters(shape, spec)
    tokens = micro_batch(settings, rows.longest, is_gpu=is_gpu) * rows.longest
    scored = tokens * rows.learned // rows.longest
    weights = held_bytes(shape, "float32" if is_full else dtype, spec.load_in)
    kept = tokens * kept_per_token(shape, dtype, is_checkpointed=spec.gradient_checkpointing)
    working = 0
    if spec.load_in is not None:  # a layer is unpacked for its product
        working = widest_linear(shape) * BYTES_OF[dtype]
    elif is_divided:
        working = gathered_bytes(shape, dtype, is_full=is_full)
    elif is_full and dtype != "float32":  # autocast keeps a copy of what it has cast
        working = shape.parameters * BYTES_OF[dtype]
    if spec.qat is not None:
        working += rounded_bytes(shape, dtype, is_checkpointed=spec.gradient_checkpointing)
    device = (
        part("weights", weights / devices),
        *(() if is_full else (part("adapter", 4 * trained / devices),)),
        part("gradients", 4 * trained / devices),
        part("optimizer", ADAM_BYTES * trained / devices),
        part("activations", kept if is_gpu else SLACK * kept),
        part("logits", _loss_bytes(shape, scored, dtype, is_gpu=is_gpu and not is_divided)),
        *((part("working set", working),) if working else ()),
    )
    # The best weights so far, and the first ones where training may begin again.
    copies = part(COPIES, 4 * trained * (1 if is_full and not is_gpu else 2))
    if is_divided and weights > copies.bytes:  # whole once, on the host, to be handed out
        copies = part(HANDED_OUT, weights)
    loading = (part(HANDED_OUT if is_divided else "weights", weights), weight_files(shape))
    return placed(FINETUNE_BYTES, loading, device, copies, is_gpu)


def _loss_bytes(shape: ModelShape, scored: int, dtype: Dtype, *, is_gpu: bool) -> float:
    if is_gpu:
        tile = min(scored, HEAD_TOKENS) * min(shape.vocabulary, HEAD_VOCABULARY)
        return tile * BYTES_OF[dtype] + scored * shape.hidden * 4
    half = 0 if dtype == "float32" else BYTES_OF[dtype]
    return SLACK * scored * shape.vocabulary * (4 * LOSS_COPIES + half)


def placed(
    runtime_bytes: int,
    loading: tuple[Part, ...],
    device: tuple[Part, ...],
    copies: Part,
    is_gpu: bool,
) -> Memory:
    """Put the parts of a device where they are: in its own memory, or in the host's."""
    if not is_gpu:
        runtime = part("runtime", runtime_bytes)
        return Memory(
            host=(
                Phase(name="load", parts=(runtime, *loading)),
                Phase(name="work", parts=(runtime, *device, copies)),
            )
        )
    runtime = part("runtime", runtime_bytes + CUDA_HOST_BYTES)
    files = tuple(each for each in loading if each.is_reclaimable)
    return Memory(
        host=(Phase(name="load", parts=(runtime, *files, copies)),),
        gpu=(Phase(name="work", parts=(part("runtime", CONTEXT_BYTES), *device)),),
    )


def weight_files(shape: ModelShape) -> Part:
    """Count what a peak counts of files that are read through the page cache."""
    return part("weight files", shape.weight_bytes, is_reclaimable=True)


def merge_memory(shape: ModelShape, settings: MergeSettings) -> Memory:
    """Estimate a merge, tensor by tensor on the host, wherever it runs.

    Kinds of adapters that need the whole model in memory (ADR 27) are not foreseen here.
    """
    runtime = part("runtime", MERGE_BYTES)
    held = settings.load_in is not None
    logits = FEW_PROMPTS * FEW_TOKENS * shape.vocabulary * 4 * PROBE_COPIES
    # What the files hold of it, its float32, the change, the scaled change, the rounded sum.
    layer_bytes = widest_linear(shape) * (2 * BYTES_OF["bfloat16"] + 3 * 4)
    merging = part("largest layer", layer_bytes)
    kept = part("freed blocks", min(KEPT_BYTES, layer_bytes))
    proving = part("largest tensor", TENSOR_COPIES * shape.largest_parameters * 2)
    phases = [
        Phase(name="work", parts=(runtime, merging)),
        Phase(
            name="verify",
            parts=(runtime, proving, kept, part("logits", logits * (PROVED_MODELS + held))),
        ),
    ]
    if settings.needs_whole_base:
        weights = part("weights", held_bytes(shape, "float32", settings.load_in))
        phases.append(Phase(name="compare", parts=(runtime, weights, weight_files(shape))))
    return Memory(host=tuple(phases))


class Form(Spec):
    """In which form a model is judged."""

    quantized: QuantizeSpec | None = None
    group_size: int = 0
    """Of a model in GPTQ's format."""
    adapter: int = 0
    """Parameters of one that is not merged."""


def infer_memory(
    shape: ModelShape, settings: InferSettings, rows: Rows, form: Form, cores: int
) -> Memory:
    """Estimate an answering model: while it generates, and while it is asked for likelihoods.

    Args:
        shape: of the plain model.
        settings: of the stage.
        rows: of the test split.
        form: in which the model is stored.
        cores: that answer, a batch each up to a limit; 0 for a GPU.
    """
    is_gpu = cores == 0
    dtype = settings.dtype
    packed = _packed(shape, form)
    weights = packed if _stays_packed(form.quantized, dtype, is_gpu=is_gpu) else None
    if weights is None:
        weights = held_bytes(shape, dtype, settings.base_load_in)
    held = (part("weights", weights), part("adapter", 4 * form.adapter))
    # Some answer one batch at a time (`stages/infer/workers.py`), as bitsandbytes' layers do.
    is_alone = settings.base_load_in is not None or shape.answers_alone
    at_once = 1 if is_alone else min(max(cores, 1), ANSWERED_AT_ONCE)
    doing = _answering(shape, settings, rows, at_once)
    stored = part("weight files", packed or shape.weight_bytes, is_reclaimable=True)
    if is_gpu:
        context = part("runtime", CONTEXT_BYTES)
        runtime = part("runtime", INFER_BYTES + CUDA_HOST_BYTES)
        return Memory(
            host=(Phase(name="load", parts=(runtime, stored)),),
            gpu=tuple(Phase(name=each.name, parts=(context, *held, *each.parts)) for each in doing),
        )
    runtime = part("runtime", INFER_BYTES)
    unpacked = part("packed weights", packed or 0)
    # bitsandbytes' lie in the heap below what they were unpacked to, where glibc keeps them.
    is_kept = isinstance(form.quantized, BitsandbytesSpec)
    kept = (*held, unpacked) if is_kept else held
    return Memory(
        host=(
            Phase(name="load", parts=(runtime, *held, unpacked, stored)),
            *(
                Phase(name=each.name, parts=(runtime, *kept, *map(_slack, each.parts)))
                for each in doing
            ),
        )
    )


def _answering(
    shape: ModelShape, settings: InferSettings, rows: Rows, at_once: int
) -> tuple[Phase, ...]:
    """List what takes memory beside weights, one thing after the other."""
    dtype, batch = settings.dtype, settings.batch_size
    # Examples are whole rows, and the model reads them once: only their cache is in every batch.
    examples = rows.longest * (settings.shots or 0)
    own = rows.prompt
    if shape.positions is not None:
        own = min(own, shape.positions)
        examples = min(examples, shape.positions - own)
    passing = max(batch * own, examples)
    activations = part("activations", passing * passing_per_token(shape, dtype))
    cached = cached_per_token(shape, dtype)
    answered = batch * (examples + own + settings.max_new_tokens)
    all_activations = part("activations", at_once * activations.bytes)
    caches = part("KV cache", at_once * answered * cached)
    generating = Phase(name="generate", parts=(caches, all_activations))
    if not settings.nll:
        return (generating,)
    row = rows.learned * shape.vocabulary * 4
    logits = max(row, min(LOGITS_BYTES, batch * row))
    half = 1 if dtype == "float32" else 1 + BYTES_OF[dtype] / 4
    # Without examples a likelihood is one pass, which caches nothing.
    judged = batch * (examples + own + rows.learned) if examples else 0
    cache = part("KV cache", judged * cached)
    judging = Phase(name="judge", parts=(part("logits", half * logits), cache, activations))
    return (generating, judging)


def _stays_packed(quantized: QuantizeSpec | None, dtype: Dtype, *, is_gpu: bool) -> bool:
    """Say whether weights answer as they are stored.

    On a CPU all are unpacked, ternary ones everywhere, GPTQ's where its kernels have no float32.
    """
    if not is_gpu or isinstance(quantized, BitnetSpec):
        return False
    return not (isinstance(quantized, PackedSpec) and dtype == "float32")


def _packed(shape: ModelShape, form: Form) -> int | None:
    if form.quantized is None:
        return None
    return quantized_bytes(shape, form.quantized, form.group_size)


def _slack(each: Part) -> Part:
    return part(each.name, SLACK * each.bytes)
