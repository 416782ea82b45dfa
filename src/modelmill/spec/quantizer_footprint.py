"""What each way of quantizing has in memory at a time: phases of parts, on the host and on a GPU.

Pure.  A method that comes to hold something else changes its function here, and docs/fit.md shows
how far it was off.
"""

from typing import Final

from modelmill.spec.batching import AUTOROUND_ROWS, CALIBRATION_TOKENS
from modelmill.spec.closed import Dtype
from modelmill.spec.footprint import (
    CONTEXT_BYTES,
    CUDA_HOST_BYTES,
    MB,
    SLACK,
    Memory,
    placed,
    weight_files,
)
from modelmill.spec.memory import (
    BYTES_OF,
    Part,
    Phase,
    kept_per_token,
    part,
    passing_per_token,
    quantized_bytes,
    widest_linear,
)
from modelmill.spec.quantize import (
    AutoroundSpec,
    BitnetSpec,
    BitsandbytesSpec,
    GptqSpec,
    QatSpec,
    RtnSpec,
)
from modelmill.spec.settings import QuantizeSettings
from modelmill.spec.shape import ModelShape

BITSANDBYTES_BYTES: Final = 890 * MB
"""The peak with a model of 3 million parameters, 906 MB in two runs, less what the formulas say of
it.  730 MB are there after the imports."""
QAT_BYTES: Final = 800 * MB
"""The peak of packing a model of 0.1 million parameters: no engine is imported."""
BITNET_BYTES: Final = 940 * MB
"""Of the same: a run's peak of 1.05 GB with SmolLM2-135M, less the largest tensor."""
GPTQ_BYTES: Final = 1090 * MB
AUTOROUND_BYTES: Final = 1040 * MB
"""Python, libraries, and what they do once: the peak with a model of 3 million parameters, less
what the formulas say of such a model."""
GPTQ_LOADING_BYTES: Final = 940 * MB
"""Of the same while files are read: kernels are loaded, and threads started, after that."""

TUNING_COPIES: Final = 5
"""Of a block that AutoRound tunes, in float32: offsets, their gradient, the best so far, the
rounded weights and their gradient."""

PACKING_COPIES: Final = 6
"""Of the widest layer, in 32 bits: its weights, their size, codes as numbers and as integers, and
these laid side by side."""
TERNARY_BYTES: Final = 4 + 3
"""Of a weight that becomes ternary, beside what is stored: itself in float32, and three bytes on
the way from its value to its place in one."""

HESSIAN_COPIES: Final = 3
"""Of the widest layer's: itself, its Cholesky factor, the inverse's."""


def quantize_memory(
    shape: ModelShape, settings: QuantizeSettings, group_size: int, *, is_gpu: bool
) -> Memory:
    """Estimate a quantizer."""
    match settings.quantize:
        case BitnetSpec():
            return _bitnet_memory(shape)
        case QatSpec():
            return _qat_memory(shape)
        case spec:
            packed = part("packed weights", quantized_bytes(shape, spec, group_size))
    match spec:
        case BitsandbytesSpec():
            device = (packed, part("working set", 2 * 4 * widest_linear(shape)))
            loading = (*device, weight_files(shape))
            return placed(BITSANDBYTES_BYTES, loading, device, part("copies", 0), is_gpu)
        case RtnSpec():
            return _rtn_memory(shape, packed, is_gpu=is_gpu)
        case AutoroundSpec():
            return _autoround_memory(shape, settings, spec, packed, is_gpu=is_gpu)
        case GptqSpec():
            return _gptq_memory(shape, spec, is_gpu=is_gpu)


def _qat_memory(shape: ModelShape) -> Memory:
    """Estimate a pass over the files, tensor by tensor on the host, wherever it runs."""
    tensor = max(PACKING_COPIES * 4 * widest_linear(shape), 6 * shape.largest_parameters)
    parts = (part("runtime", QAT_BYTES), part("largest tensor", tensor))
    return Memory(host=(Phase(name="work", parts=parts),))


def _rtn_memory(shape: ModelShape, packed: Part, *, is_gpu: bool) -> Memory:
    """Estimate rounding a layer after the other on the host, wherever it runs."""
    runtime = part("runtime", GPTQ_BYTES + (CUDA_HOST_BYTES if is_gpu else 0))
    layer = part("layer in float32", 4 * 4 * widest_linear(shape))
    weights = part("weights", shape.parameters * BYTES_OF["float32"])
    return Memory(
        host=(
            Phase(name="load", parts=(runtime, weights, weight_files(shape))),
            Phase(name="work", parts=(runtime, weights, packed, layer)),
        )
    )


def _gptq_memory(shape: ModelShape, spec: GptqSpec, *, is_gpu: bool) -> Memory:
    dtype: Dtype = "float16" if is_gpu else "float32"
    work = calibration_parts(shape, spec.calibration.tokens, dtype)
    weights = part("weights", shape.parameters * BYTES_OF[dtype])
    cuda = CUDA_HOST_BYTES if is_gpu else 0
    loading = part("runtime", GPTQ_LOADING_BYTES + cuda)
    runtime = part("runtime", GPTQ_BYTES + cuda)
    load = Phase(name="load", parts=(loading, weights, weight_files(shape)))
    # A layer's packed weights take the place of its plain ones, which are larger and are given
    # back: most is there before the first layer is packed.
    if not is_gpu:
        return Memory(host=(load, Phase(name="work", parts=(runtime, weights, *work))))
    block = part(
        "embeddings and a block",
        BYTES_OF[dtype]
        * (shape.embedding_parameters + shape.linear_parameters // max(1, shape.layers)),
    )
    return Memory(
        host=(load, Phase(name="work", parts=(runtime, weights))),
        gpu=(Phase(name="work", parts=(part("runtime", CONTEXT_BYTES), block, *work)),),
    )


def _bitnet_memory(shape: ModelShape) -> Memory:
    """Estimate a pass over the files, tensor by tensor on the host, wherever it runs."""
    stored = shape.weight_bytes // shape.parameters
    layer = widest_linear(shape) * (stored + TERNARY_BYTES)
    copied = shape.largest_parameters * (stored + BYTES_OF["bfloat16"])
    tensor = part("largest tensor", max(layer, copied))
    return Memory(host=(Phase(name="work", parts=(part("runtime", BITNET_BYTES), tensor)),))


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
    load = Phase(name="load", parts=(runtime, weights, weight_files(shape)))
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
