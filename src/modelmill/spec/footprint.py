"""What each kind of stage has in memory at a time: phases of parts, on the host and on a GPU.

Pure.  Follows what `stages/` really holds; a stage that comes to hold something else changes its
function here, and docs/fit.md shows how far it was off.
"""

from typing import Final

from modelmill.spec.batching import (
    AUTOROUND_ROWS,
    CALIBRATION_TOKENS,
    FEW_PROMPTS,
    LOGITS_BYTES,
    PROBE_POSITIONS,
    micro_batch_size,
)
from modelmill.spec.closed import Dtype, Spec
from modelmill.spec.memory import (
    ADAM_BYTES,
    BYTES_OF,
    Part,
    Phase,
    adapter_parameters,
    cached_per_token,
    held_bytes,
    kept_per_token,
    part,
    passing_per_token,
    quantized_bytes,
    rounded_bytes,
    widest_linear,
)
from modelmill.spec.quantize import AutoroundSpec, PackedSpec, QatSpec, QuantizeSpec, RtnSpec
from modelmill.spec.settings import (
    FinetuneSettings,
    InferSettings,
    MergeSettings,
    QuantizeSettings,
)
from modelmill.spec.shape import ModelShape

MB: Final = 10**6

LIGHT_BYTES: Final = 220 * MB
"""Of a fetch, with the parts of a file that it sends side by side."""
BITSANDBYTES_BYTES: Final = 730 * MB
"""Python and what this quantizer imports, measured without running it."""
QAT_BYTES: Final = 800 * MB
"""The peak of packing a model of 0.1 million parameters: no engine is imported."""
FINETUNE_BYTES: Final = 1160 * MB
MERGE_BYTES: Final = 880 * MB
GPTQ_BYTES: Final = 1090 * MB
AUTOROUND_BYTES: Final = 1040 * MB
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

PROBE_COPIES: Final = 2
"""Of logits: as they come, and put together in the order of prompts."""
PROVED_MODELS: Final = 3
"""The base, with its adapter, and as it was written."""
TENSOR_COPIES: Final = 3
"""In 16 bits: the base's, what was written, and pieces of both in float32."""

TUNING_COPIES: Final = 5
"""Of a block that AutoRound tunes, in float32: offsets, their gradient, the best so far, the
rounded weights and their gradient."""

PACKING_COPIES: Final = 6
"""Of the widest layer, in 32 bits: its weights, their size, codes as numbers and as integers, and
these laid side by side."""

HESSIAN_COPIES: Final = 3
"""Of the widest layer's: itself, its Cholesky factor, the inverse's."""


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
) -> Memory:
    """Estimate a fine-tune.

    Args:
        shape: the base.
        settings: of the stage.
        rows: of training; packed ones are as long as may be.
        is_gpu: where it computes.
        given_parameters: of an adapter to go on from.
    """
    spec = settings.finetune
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
    elif is_full and dtype != "float32":  # autocast keeps a copy of what it has cast
        working = shape.parameters * BYTES_OF[dtype]
    if spec.qat is not None:
        working += rounded_bytes(shape, dtype, is_checkpointed=spec.gradient_checkpointing)
    device = (
        part("weights", weights),
        *(() if is_full else (part("adapter", 4 * trained),)),
        part("gradients", 4 * trained),
        part("optimizer", ADAM_BYTES * trained),
        part("activations", kept if is_gpu else SLACK * kept),
        part("logits", _loss_bytes(shape, scored, dtype, is_gpu=is_gpu)),
        *((part("working set", working),) if working else ()),
    )
    # The best weights so far, and the first ones where training may begin again.
    copies = part("copies of what is trained", 4 * trained * (1 if is_full and not is_gpu else 2))
    return _placed(FINETUNE_BYTES, (part("weights", weights), _file(shape)), device, copies, is_gpu)


def _loss_bytes(shape: ModelShape, scored: int, dtype: Dtype, *, is_gpu: bool) -> float:
    if is_gpu:
        tile = min(scored, HEAD_TOKENS) * min(shape.vocabulary, HEAD_VOCABULARY)
        return tile * BYTES_OF[dtype] + scored * shape.hidden * 4
    half = 0 if dtype == "float32" else BYTES_OF[dtype]
    return SLACK * scored * shape.vocabulary * (4 * LOSS_COPIES + half)


def _placed(
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


def _file(shape: ModelShape) -> Part:
    return part("weight files", shape.weight_bytes, is_reclaimable=True)


def merge_memory(shape: ModelShape, settings: MergeSettings) -> Memory:
    """Estimate a merge, tensor by tensor on the host, wherever it runs.

    Kinds of adapters that need the whole model in memory (ADR 27) are not foreseen here.
    """
    runtime = part("runtime", MERGE_BYTES)
    held = settings.load_in is not None
    logits = FEW_PROMPTS * PROBE_POSITIONS * shape.vocabulary * 4 * PROBE_COPIES
    # What the files hold of it, its float32, the change, the scaled change, the rounded sum.
    merging = part("largest layer", widest_linear(shape) * (2 * BYTES_OF["bfloat16"] + 3 * 4))
    proving = part("largest tensor", TENSOR_COPIES * shape.largest_parameters * 2)
    phases = [
        Phase(name="work", parts=(runtime, merging)),
        Phase(
            name="verify",
            parts=(runtime, proving, part("logits", logits * (PROVED_MODELS + held))),
        ),
    ]
    if settings.load_in == "int8":  # rounds activations too, so all of it must answer
        weights = part("weights", held_bytes(shape, "float32", settings.load_in))
        phases.append(Phase(name="compare", parts=(runtime, weights, _file(shape))))
    return Memory(host=tuple(phases))


def quantize_memory(
    shape: ModelShape, settings: QuantizeSettings, group_size: int, *, is_gpu: bool
) -> Memory:
    """Estimate a quantizer."""
    spec = settings.quantize
    packed = part("packed weights", quantized_bytes(shape, spec, group_size))
    if not isinstance(spec, PackedSpec):
        device = (packed, part("working set", 2 * 4 * widest_linear(shape)))
        return _placed(
            BITSANDBYTES_BYTES, (*device, _file(shape)), device, part("copies", 0), is_gpu
        )
    if isinstance(spec, AutoroundSpec):
        return _autoround_memory(shape, settings, spec, packed, is_gpu=is_gpu)
    if isinstance(spec, QatSpec):
        tensor = max(PACKING_COPIES * 4 * widest_linear(shape), 6 * shape.largest_parameters)
        parts = (part("runtime", QAT_BYTES), part("largest tensor", tensor))
        return Memory(host=(Phase(name="work", parts=parts),))
    if isinstance(spec, RtnSpec):  # on the host, wherever it runs
        runtime = part("runtime", GPTQ_BYTES + (CUDA_HOST_BYTES if is_gpu else 0))
        layer = part("layer in float32", 4 * 4 * widest_linear(shape))
        weights = part("weights", shape.parameters * BYTES_OF["float32"])
        return Memory(
            host=(
                Phase(name="load", parts=(runtime, weights, _file(shape))),
                Phase(name="work", parts=(runtime, weights, packed, layer)),
            )
        )
    dtype: Dtype = "float16" if is_gpu else "float32"
    work = calibration_parts(shape, spec.calibration.tokens, dtype)
    weights = part("weights", shape.parameters * BYTES_OF[dtype])
    runtime = part("runtime", GPTQ_BYTES + (CUDA_HOST_BYTES if is_gpu else 0))
    load = Phase(name="load", parts=(runtime, weights, _file(shape)))
    if not is_gpu:
        return Memory(host=(load, Phase(name="work", parts=(runtime, weights, *work))))
    block = part(
        "embeddings and a block",
        BYTES_OF[dtype]
        * (shape.embedding_parameters + shape.linear_parameters // max(1, shape.layers)),
    )
    return Memory(
        host=(load, Phase(name="work", parts=(runtime, weights, packed))),
        gpu=(Phase(name="work", parts=(part("runtime", CONTEXT_BYTES), block, *work)),),
    )


def _autoround_memory(
    shape: ModelShape,
    settings: QuantizeSettings,
    spec: AutoroundSpec,
    packed: Part,
    *,
    is_gpu: bool,
) -> Memory:
    dtype: Dtype = "bfloat16" if is_gpu else "float32"
    layers = max(1, shape.layers)
    tokens = AUTOROUND_ROWS * settings.contract.max_length
    kept = tokens * kept_per_token(shape, dtype, is_checkpointed=False) / layers
    block = shape.linear_parameters / layers
    work = (
        # What a block was given, what it made of it, and what the rounded one makes of it.
        part("calibration states", 3 * spec.calibration.tokens * shape.hidden * BYTES_OF[dtype]),
        part("block in tuning", TUNING_COPIES * 4 * block),
        part("activations", kept if is_gpu else SLACK * kept),
    )
    weights = part("weights", shape.parameters * BYTES_OF[dtype])
    runtime = part("runtime", AUTOROUND_BYTES + (CUDA_HOST_BYTES if is_gpu else 0))
    load = Phase(name="load", parts=(runtime, weights, _file(shape)))
    if not is_gpu:
        return Memory(host=(load, Phase(name="work", parts=(runtime, weights, packed, *work))))
    held = part("embeddings and a block", BYTES_OF[dtype] * (shape.embedding_parameters + block))
    return Memory(
        host=(load, Phase(name="work", parts=(runtime, weights, packed))),
        gpu=(Phase(name="work", parts=(part("runtime", CONTEXT_BYTES), held, *work)),),
    )


def calibration_parts(shape: ModelShape, tokens: int, dtype: Dtype) -> tuple[Part, ...]:
    """List what GPTQ works with beside the weights."""
    widest = max((each.in_features for each in shape.linears), default=shape.inner)
    states = 2 * tokens * shape.hidden * BYTES_OF[dtype]  # into a block, and out of it
    return (
        part("calibration states", states),
        part("hessian", HESSIAN_COPIES * 4 * widest**2),
        part("layer in float32", 2 * 4 * widest_linear(shape)),
        part("activations", min(tokens, CALIBRATION_TOKENS) * passing_per_token(shape, dtype)),
    )


class Form(Spec):
    """In which form a model is judged."""

    quantized: QuantizeSpec | None = None
    group_size: int = 0
    """Of a model in GPTQ's format."""
    adapter: int = 0
    """Parameters of one that is not merged."""


def infer_memory(
    shape: ModelShape, settings: InferSettings, rows: Rows, form: Form, *, is_gpu: bool
) -> Memory:
    """Estimate an answering model: while it generates, and while it is asked for likelihoods."""
    dtype = settings.dtype
    packed = _packed(shape, form)
    # Quantized models are unpacked on a CPU, and where GPTQ's kernels have no float32.
    stays_packed = is_gpu and not (isinstance(form.quantized, PackedSpec) and dtype == "float32")
    weights = packed if stays_packed else None
    if weights is None:
        weights = held_bytes(shape, dtype, settings.base_load_in)
    held = (part("weights", weights), part("adapter", 4 * form.adapter))
    doing = _answering(shape, settings, rows)
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
    return Memory(
        host=(
            Phase(name="load", parts=(runtime, *held, unpacked, stored)),
            *(
                Phase(name=each.name, parts=(runtime, *held, *map(_slack, each.parts)))
                for each in doing
            ),
        )
    )


def _answering(shape: ModelShape, settings: InferSettings, rows: Rows) -> tuple[Phase, ...]:
    """List what takes memory beside weights, one thing after the other."""
    dtype = settings.dtype
    prompt = rows.prompt * (1 + (settings.shots or 0))
    if shape.positions is not None:
        prompt = min(prompt, shape.positions)
    activations = part(
        "activations", settings.batch_size * prompt * passing_per_token(shape, dtype)
    )
    answered = settings.batch_size * (prompt + settings.max_new_tokens)
    cache = part("KV cache", answered * cached_per_token(shape, dtype))
    generating = Phase(name="generate", parts=(cache, activations))
    if not settings.nll:
        return (generating,)
    row = rows.learned * shape.vocabulary * 4
    logits = max(row, min(LOGITS_BYTES, settings.batch_size * row))
    half = 1 if dtype == "float32" else 1 + BYTES_OF[dtype] / 4
    judging = Phase(name="judge", parts=(part("logits", half * logits), activations))
    return (generating, judging)


def _packed(shape: ModelShape, form: Form) -> int | None:
    if form.quantized is None:
        return None
    return quantized_bytes(shape, form.quantized, form.group_size)


def _slack(each: Part) -> Part:
    return part(each.name, SLACK * each.bytes)
