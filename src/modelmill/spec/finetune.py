"""How a model learns."""

from typing import Literal, Self

from pydantic import Field, model_validator

from modelmill.spec.closed import LARGEST_INTEGER, Spec


class FinetuneSpec(Spec):
    """How the model learns.  QLoRA is `method: lora` with `load_in: nf4`."""

    method: Literal["lora"] = "lora"
    """`lora`: small matrices beside frozen weights; megabytes to store, merged later."""
    load_in: Literal["nf4"] | None = None
    """Hold the frozen weights in 4 bits (double quantization on): a quarter of the memory,
    slower steps, and a base that differs slightly from the one merged onto."""
    r: int = Field(16, ge=1, le=1024)
    """Width of the adapter matrices; doubling it doubles adapter and optimizer memory."""
    lora_alpha: int = Field(32, ge=1, le=LARGEST_INTEGER)
    """The adapter's weight is `lora_alpha / r`."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which layers get an adapter; fewer is faster and weaker."""
    num_train_epochs: float = Field(1.0, gt=0, le=1000)
    learning_rate: float = Field(2e-4, gt=0, lt=1)
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: float = Field(0.03, ge=0, le=LARGEST_INTEGER)
    """Below 1: a share of all steps."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    batch_size: int = Field(16, ge=1, le=65536)
    """Rows per optimizer step, whatever the micro-batch and the number of devices."""
    eval_steps: int | float = Field(0.1, gt=0, le=LARGEST_INTEGER)
    """How often the eval split is scored; below 1: a share of all steps."""
    micro_batch_size: Literal["auto"] | int = "auto"
    """Rows per forward pass: memory, not mathematics."""
    gradient_checkpointing: bool = False
    """Recompute activations: about a third slower, far less memory."""
    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """`auto` measures the device for a moment and says why in the log."""

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
