"""How a model learns."""

from typing import Literal, Self

from pydantic import Field, model_validator

from modelmill.spec.closed import LARGEST_INTEGER, GroupSize, Spec
from modelmill.spec.sources import ModelSource

LoadIn = Literal["nf4", "fp4", "int8"]


class GridSpec(Spec):
    """What weights are rounded to while they are learned."""

    bits: Literal[4, 8] = 4
    """Per weight, scales not counted."""
    group_size: GroupSize = "auto"
    """Weights that share one scale; `auto` takes the largest that divides every layer."""


class FinetuneSpec(Spec):
    """How the model learns.  QLoRA is `method: lora` with `load_in: nf4`."""

    method: Literal["lora", "full"] = "lora"
    """`lora`: small matrices beside frozen weights; megabytes to store, merged later.
    `full`: every weight; 16 bytes of memory per parameter, and a whole model to store."""
    adapter: ModelSource | None = None
    """A trained adapter to merge as it is; nothing is trained, so no other field has a meaning."""
    init_adapter: ModelSource | None = None
    """A trained adapter to go on from, instead of a fresh one; its own r and targets hold."""
    load_in: LoadIn | None = None
    """Hold the frozen weights in 4 bits (double quantization on): a quarter of the memory,
    slower steps, and a base that differs slightly from the one merged onto.  `fp4` is a little
    worse than `nf4` at the same size; `int8` takes half the memory and is nearest to the base."""
    r: int = Field(16, ge=1, le=1024)
    """Width of the adapter matrices; doubling it doubles adapter and optimizer memory."""
    lora_alpha: int = Field(32, ge=1, le=LARGEST_INTEGER)
    """The adapter's weight is `lora_alpha / r`."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs left out in training; costs an operation per layer."""
    use_rslora: bool = False
    """Scale by `lora_alpha / sqrt(r)`, so that a large r does not learn more slowly; free."""
    use_dora: bool = False
    """Learn magnitude and direction apart: nearer to full fine-tuning at small r, steps that
    take up to twice as long."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which layers get an adapter; fewer is faster and weaker.  May name the embeddings too,
    which unties the output head: a second matrix of the vocabulary's size to store."""
    modules_to_save: tuple[str, ...] = ()
    """Layers trained whole beside the adapter, such as `lm_head`; each is stored in full."""
    qat: GridSpec | None = None
    """Quantization-aware training, of method full: compute with the linear layers' weights rounded
    as `quantize: [{method: qat}]` packs them, so that the model learns to live with it.  Writes
    float32, which holds rounded weights exactly; a step takes as much more time as rounding does,
    and in float32 4 bytes of memory more for each rounded weight."""
    num_train_epochs: float = Field(1.0, gt=0, le=1000)
    """Times that every row is seen; the best weights by eval loss are kept."""
    learning_rate: float = Field(2e-4, gt=0, lt=1)
    """Of LoRA; full fine-tuning wants about a tenth of it."""
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "constant",
        "constant_with_warmup",
        "cosine_with_restarts",
        "polynomial",
        "inverse_sqrt",
    ] = "linear"
    """How the learning rate falls."""
    warmup_steps: float = Field(0.03, ge=0, le=LARGEST_INTEGER)
    """Below 1: a share of all steps."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """Pulls trained weights towards zero; costs nothing."""
    max_grad_norm: float = Field(1.0, gt=0)
    """A larger gradient is scaled down to this norm."""
    neftune_noise_alpha: float | None = Field(None, gt=0)
    """Noise on the embeddings in training: longer answers to instructions, at no cost."""
    batch_size: int = Field(16, ge=1, le=65536)
    """Rows per optimizer step, whatever the micro-batch and the number of devices."""
    packing: bool = False
    """Fill sequences of `data.max_length` with several rows, of which `batch_size` then counts
    the sequences: faster on short rows.  Refused where this model's attention would let a row
    see its neighbours, which is measured on the model itself."""
    eval_steps: int | float = Field(0.1, gt=0, le=LARGEST_INTEGER)
    """How often the eval split is scored; below 1: a share of all steps."""
    early_stopping_patience: int | None = Field(None, ge=1, le=LARGEST_INTEGER)
    """Stop when so many evaluations in a row brought nothing better."""
    early_stopping_threshold: float = Field(0.0, ge=0)
    """What counts as better: the eval loss has to fall by more than this."""
    micro_batch_size: Literal["auto"] | int = "auto"
    """Rows per forward pass: memory, not mathematics."""
    gradient_checkpointing: bool = False
    """Recompute activations: about a third slower, far less memory."""
    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """`auto` measures the device for a moment and says why in the log."""
    tf32: bool | None = None
    """Multiply float32 matrices in TensorFloat-32 on GPUs from Ampere on: faster, 10 bits of
    mantissa.  Absent: torch's own choice."""

    stop_when_diverging: bool = True
    """End with an error when the smoothed loss stays above twice its start and one more for 64
    steps: nothing good comes of such a run."""

    @property
    def is_trained(self) -> bool:
        """Whether there is anything to train."""
        return self.adapter is None

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Self:
        if isinstance(self.micro_batch_size, int):
            if self.micro_batch_size < 1:
                msg = "micro_batch_size must be 'auto' or at least 1"
                raise ValueError(msg)
            if self.batch_size % self.micro_batch_size:
                msg = (
                    f"batch_size {self.batch_size} is not a multiple of "
                    f"micro_batch_size {self.micro_batch_size}"
                )
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _fields_belong_together(self) -> Self:
        given = self.changed()
        wrong = []
        if self.adapter is not None:
            wrong = [
                f"{name}: has no meaning beside `adapter`, with which nothing is trained"
                for name in sorted(given - {"adapter"})
            ]
        elif self.method == "full":
            wrong = [f"{name}: belongs to method lora" for name in sorted(given & _OF_LORA)]
        elif self.init_adapter is not None:
            wrong = [
                f"{name}: is what the adapter of `init_adapter` was made with"
                for name in sorted(given & _OF_ADAPTER)
            ]
        if self.method == "lora" and self.qat is not None and self.adapter is None:
            wrong.append("qat: belongs to method full; an adapter's sum is rounded after merging")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


_OF_ADAPTER = frozenset(
    {
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"),
        *("target_modules", "modules_to_save"),
    }
)
_OF_LORA = _OF_ADAPTER | {"load_in", "init_adapter"}
