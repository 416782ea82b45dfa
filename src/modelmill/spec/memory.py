"""What memory is made of: weights as they are held, activations, caches, logits.  Pure.

Formulas over a model's sizes, used by `footprint`, which knows what each stage holds at a time.
Every constant says why it is what it is, or what measured it.
"""

from collections.abc import Iterable
from typing import Final

from modelmill.spec.closed import Dtype, Spec
from modelmill.spec.finetune import FinetuneSpec
from modelmill.spec.quantize import TERNARY_BITS, BitnetSpec, HoldIn, PackedSpec, QuantizeSpec
from modelmill.spec.shape import LinearShape, ModelShape

BYTES_OF: Final[dict[Dtype, int]] = {"float32": 4, "float16": 2, "bfloat16": 2}

ADAM_BYTES: Final = 8
"""Two float32 moments for each trained number."""

KEPT_BYTES: Final = 256 * 2**20
"""Of what a merge has freed, that the C library keeps: what one layer took is used by the next."""

_BITS: Final[dict[HoldIn, float]] = {
    # 64 weights share a scale of 8 bits, and 256 of these one of 32.
    "nf4": 4 + 8 / 64 + 32 / (64 * 256),
    "fp4": 4 + 8 / 64 + 32 / (64 * 256),
    "nf4-single": 4 + 32 / 64,
    "fp4-single": 4 + 32 / 64,
    "int8": 8,
}

NORMED: Final = 4
"""Of `hidden` features, kept for the backward pass: both norms' inputs and outputs."""
ATTENDED: Final = 5
"""Of all heads' features: queries, keys and values as repeated for the queries' heads, what
attention gives, and that as laid out for the next layer."""
GATED: Final = 4
"""Of `inner` features: the gate, its activation, the other half, and their product."""
PLAIN: Final = 2
"""Of `inner` features without a gate: before and after the activation."""
RECAST: Final = 3
"""Of `hidden` features, in half precision only: an adapter's input is cast once for each layer
that reads it (queries, keys, values; gate and the other half) instead of being shared."""


class Part(Spec):
    """Something that takes memory."""

    name: str
    bytes: int
    is_reclaimable: bool = False
    """Pages of a file: resident while there is room, taken back by the kernel where there is
    none, so they count in a measured peak and not in what is needed."""


class Phase(Spec):
    """What is in memory at the same time."""

    name: str
    parts: tuple[Part, ...]

    @property
    def needed_bytes(self) -> int:
        """What must be there."""
        return sum(part.bytes for part in self.parts if not part.is_reclaimable)

    @property
    def resident_bytes(self) -> int:
        """What a measurement sees."""
        return sum(part.bytes for part in self.parts)


def part(name: str, size_bytes: float, *, is_reclaimable: bool = False) -> Part:
    """Make a part of whole bytes."""
    return Part(name=name, bytes=round(size_bytes), is_reclaimable=is_reclaimable)


def held_bytes(shape: ModelShape, dtype: Dtype, load_in: HoldIn | None) -> int:
    """Count the bytes of weights as they are held; embeddings and head stay in `dtype`."""
    if load_in is None:
        return shape.parameters * BYTES_OF[dtype]
    rest = shape.parameters - shape.linear_parameters
    scales = 4 * sum(each.out_features * each.count for each in shape.linears)
    held = shape.linear_parameters * _BITS[load_in] / 8 + (scales if load_in == "int8" else 0)
    return round(held) + rest * BYTES_OF[dtype]


def quantized_bytes(shape: ModelShape, spec: QuantizeSpec, group_size: int) -> int:
    """Count the bytes of a quantized model's weights, on disk and packed in memory."""
    rest = shape.parameters - shape.linear_parameters
    if isinstance(spec, BitnetSpec):
        scales = 4 * sum(each.count for each in shape.linears)
        return shape.linear_parameters * TERNARY_BITS // 8 + scales + rest * BYTES_OF["bfloat16"]
    if not isinstance(spec, PackedSpec):
        return held_bytes(shape, "bfloat16", spec.hold_in)
    # A scale of 16 bits and a packed zero point for each group and output, and the group's
    # number, in 32 bits, for each input.
    bits = spec.bits + (16 + spec.bits) / group_size
    linears = shape.linear_parameters * bits / 8
    numbers = sum(4 * each.in_features * each.count for each in shape.linears)
    if spec.compat and shape.tied:
        rest += shape.embedding_parameters
    return round(linears) + numbers + rest * BYTES_OF["float16"]


def rounded_bytes(shape: ModelShape, dtype: Dtype, *, is_checkpointed: bool) -> int:
    """Count the bytes that rounding in training adds: the backward pass needs rounded weights.

    In 16 bits these are the copies that autocast makes anyway, each of one in float32.
    """
    if dtype != "float32":
        return 4 * widest_linear(shape)
    return 4 * shape.linear_parameters // (max(1, shape.layers) if is_checkpointed else 1)


def gathered_bytes(shape: ModelShape, dtype: Dtype, *, is_full: bool) -> int:
    """Count the bytes of what is whole for a while in a device that holds a part of the weights.

    What belongs to no layer is so all the time; of layers the present one and the next.
    """
    unit, rest = BYTES_OF[dtype], shape.parameters - shape.linear_parameters
    layer = shape.linear_parameters // max(1, shape.layers)
    if not is_full:
        return unit * (rest + 2 * layer)
    # Its gradients too, and once more in float32 where they are added up; the head is cast.
    return (4 + 4 + unit) * rest + (2 * unit + unit + 4) * layer


def adapter_parameters(shape: ModelShape, spec: FinetuneSpec) -> int:
    """Count what is trained beside the frozen weights."""
    chosen = _targets(shape, spec)
    low_rank = sum(spec.r * (each.in_features + each.out_features) * each.count for each in chosen)
    magnitudes = sum(each.out_features * each.count for each in chosen) if spec.use_dora else 0
    names = {_last(each.name) for each in shape.linears}
    others = () if isinstance(spec.target_modules, str) else spec.target_modules
    # What is no layer of a block and fits an adapter is the embeddings.
    embedded = sum(spec.r * (shape.vocabulary + shape.hidden) for n in others if n not in names)
    whole = sum(_module_parameters(shape, name) for name in spec.modules_to_save)
    return low_rank + magnitudes + embedded + whole


def _targets(shape: ModelShape, spec: FinetuneSpec) -> Iterable[LinearShape]:
    if isinstance(spec.target_modules, str):
        return shape.linears
    return [each for each in shape.linears if _last(each.name) in spec.target_modules]


def _module_parameters(shape: ModelShape, name: str) -> int:
    inside = [each.parameters for each in shape.linears if _last(each.name) == name]
    return sum(inside) or shape.vocabulary * shape.hidden


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def kept_per_token(shape: ModelShape, dtype: Dtype, *, is_checkpointed: bool) -> int:
    """Count the bytes that a token leaves behind for the backward pass.

    Attention itself leaves none: its fused kernels keep no scores.
    """
    unit = BYTES_OF[dtype]
    heads = shape.heads * shape.head_dim
    inner = (GATED if shape.is_gated else PLAIN) * shape.inner
    layer = unit * (NORMED * shape.hidden + ATTENDED * heads + inner)
    if dtype != "float32":
        # Norms keep what they have cast to float32: two of the four are twice as large.
        layer += 2 * shape.hidden * (4 - unit) + RECAST * unit * shape.hidden
    if is_checkpointed:
        return shape.layers * unit * shape.hidden + layer
    return shape.layers * layer


def passing_per_token(shape: ModelShape, dtype: Dtype) -> int:
    """Count the bytes of a token on its way through one block, without a backward pass."""
    heads = shape.heads * shape.head_dim
    return BYTES_OF[dtype] * (2 * shape.hidden + 3 * heads + 3 * shape.inner)


def cached_per_token(shape: ModelShape, dtype: Dtype) -> int:
    """Count the bytes of a token's keys and values in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * BYTES_OF[dtype]


def widest_linear(shape: ModelShape) -> int:
    """Count the parameters of the largest layer, which is unpacked or worked on alone."""
    return max((each.in_features * each.out_features for each in shape.linears), default=0)
