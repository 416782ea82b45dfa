"""One training run with TRL's trainer: our token ids, our masks, our best weights.

Knows the trainer; must not know rows as text, nor what is written where.
"""

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from modelmill.models.prompt import EncodedRow
from modelmill.spec.errors import DataError, DoesNotFit
from modelmill.spec.finetune import FinetuneSpec
from modelmill.spec.records import CurvePoint
from modelmill.stages.finetune.examples import Examples
from modelmill.stages.finetune.trainer import IGNORED, Trainer
from modelmill.stages.stage import Pulse

CPU_ROWS = 4
"""135 M, WikiSQL, 2 cores: 4 x 2 takes 3.9 GB where 8 x 1 takes 5.9, at the same loss and speed."""

CUDA_TOKENS = 8192
"""Tokens of one forward pass; fills a data-centre GPU with a 1 B model."""

HALVINGS = 2
"""Of the micro-batch, before a GPU is too small."""

EVAL_ROWS = 8
"""The eval loss is a mean over batches; of a fixed size, so that memory cannot choose the best
weights."""


@dataclass(frozen=True)
class Training:
    """How to train, decided."""

    finetune: FinetuneSpec
    seed: int
    targets: tuple[str, ...]
    pad: int
    dtype: torch.dtype
    device: torch.device
    scratch: Path
    halvings: int = 0
    """Of the micro-batch, from the start: attempts before this one were killed for memory."""


@dataclass(frozen=True)
class Trained:
    """A model with its best adapter, and how it got there."""

    model: PeftModel
    steps: int
    tokens: int
    trainable_parameters: int
    parameters: int
    micro_batch_size: int
    best_step: int | None
    best_eval_loss: float | None
    curve: tuple[CurvePoint, ...]


def present_device() -> torch.device:
    """Name the device this process trains on."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def micro_batch_size(training: Training, longest: int, halvings: int = 0) -> int:
    """Choose the rows of one forward pass: at most what is asked, a divisor of the batch.

    Args:
        training: batch size, device and what was asked.
        longest: tokens of the longest row.
        halvings: how often half of that has to do; one row always may.
    """
    spec = training.finetune
    if isinstance(spec.micro_batch_size, int):
        limit = spec.micro_batch_size
    else:
        limit = CPU_ROWS if training.device.type == "cpu" else CUDA_TOKENS // longest
    rows = _divisor(spec.batch_size, limit)
    return _divisor(spec.batch_size, rows >> halvings)


def _divisor(number: int, limit: int) -> int:
    """Find the largest divisor up to a limit; 1 is one of any."""
    return max(each for each in range(1, max(1, limit) + 1) if number % each == 0)


def train(base: PreTrainedModel, examples: Examples, training: Training, pulse: Pulse) -> Trained:
    """Put an adapter on the base and train it; the result has the best weights in it.

    Equal inputs give equal adapters on one CPU.  Where GPU memory is too small it begins again
    with half the rows at a time, twice at most; the batch, and so the result, is the same.

    Raises:
        DataError: the loss or a weight stopped being a number.
        DoesNotFit: GPU memory is too small even so.
    """
    set_seed(training.seed)
    adapted = get_peft_model(base, _lora(training))
    longest = max(len(row.input_ids) for row in (*examples.train, *examples.eval))
    first = {name: each.detach().clone() for name, each in _trainable(adapted).items()}
    for halvings in range(training.halvings, training.halvings + HALVINGS + 1):
        micro_batch = micro_batch_size(training, longest, halvings)
        trained = _train_with(micro_batch, adapted, examples, training, pulse)
        if trained is not None:
            return trained
        if micro_batch == 1 or halvings == training.halvings + HALVINGS:
            break
        pulse.warn(f"GPU memory is too small for {micro_batch} rows at a time; taking half of them")
        gc.collect()  # the trainer and its optimizer are a cycle
        torch.cuda.empty_cache()
        _put_back(first, adapted)
    raise DoesNotFit(
        f"GPU memory is too small for {micro_batch} rows of up to {longest} tokens",
        fix="set finetune.micro_batch_size lower, or finetune.gradient_checkpointing: true",
    )


def _train_with(
    micro_batch: int, adapted: PeftModel, examples: Examples, training: Training, pulse: Pulse
) -> Trained | None:
    """Train with so many rows at a time; None where GPU memory is too small for them."""
    watch = _Watch(pulse)
    trainer = Trainer(
        model=adapted,
        args=_arguments(training, micro_batch, has_eval=bool(examples.eval)),
        train_dataset=dataset_of(examples.train),
        eval_dataset=dataset_of(examples.eval) if examples.eval else None,
        # A collator of our own pads with the contract's id and masks by length, so that a
        # pad that equals EOS takes no EOS out of the loss.
        data_collator=DataCollatorForLanguageModeling(pad_token_id=training.pad),
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    # The trainer casts a quantized model's adapter to bfloat16, whose 8 bits lose small
    # optimizer updates; on an unquantized base it keeps float32, and so do we.
    for weight in _trainable(adapted).values():
        weight.data = weight.data.float()
    try:
        trainer.train()
    except torch.OutOfMemoryError:
        return None
    if watch.best is not None:  # without an eval split the last weights are the best
        _put_back(watch.best.weights, adapted)
    _check_learned(adapted)
    return Trained(
        model=adapted,
        steps=trainer.state.global_step,
        tokens=trainer.tokens,
        trainable_parameters=sum(each.numel() for each in _trainable(adapted).values()),
        parameters=adapted.get_base_model().num_parameters(),
        micro_batch_size=micro_batch,
        best_step=watch.best_step,
        best_eval_loss=watch.best_eval_loss,
        curve=tuple(watch.curve),
    )


def _lora(training: Training) -> LoraConfig:
    return LoraConfig(
        r=training.finetune.r,
        lora_alpha=training.finetune.lora_alpha,
        lora_dropout=training.finetune.lora_dropout,
        target_modules=list(training.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _arguments(training: Training, micro_batch: int, *, has_eval: bool) -> SFTConfig:
    spec = training.finetune
    on_cpu = training.device.type == "cpu"
    return SFTConfig(
        output_dir=str(training.scratch),
        seed=training.seed,
        data_seed=training.seed,
        num_train_epochs=spec.num_train_epochs,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.lr_scheduler_type,
        warmup_steps=spec.warmup_steps,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        per_device_train_batch_size=micro_batch,
        per_device_eval_batch_size=EVAL_ROWS,
        gradient_accumulation_steps=spec.batch_size // micro_batch,
        activation_checkpointing=spec.gradient_checkpointing,
        bf16=training.dtype == torch.bfloat16,
        fp16=training.dtype == torch.float16,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        train_sampling_strategy="group_by_length",
        max_length=None,
        packing=False,
        completion_only_loss=False,  # the labels say it already
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="steps" if has_eval else "no",
        eval_steps=spec.eval_steps,
        prediction_loss_only=True,
        save_strategy="no",  # the best adapter is a few megabytes and stays in memory
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
    )


def dataset_of(rows: Sequence[EncodedRow]) -> Dataset:
    """Turn rows into what the collator takes: ids, and labels that ignore the prompt."""
    return Dataset.from_dict(
        {
            "input_ids": [row.input_ids for row in rows],
            "labels": [
                [IGNORED] * row.prompt_length + row.input_ids[row.prompt_length :] for row in rows
            ],
        }
    )


def _trainable(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def _put_back(weights: Mapping[str, torch.Tensor], model: PeftModel) -> None:
    for name, weight in _trainable(model).items():
        weight.data.copy_(weights[name])


def _check_learned(model: PeftModel) -> None:
    weights = _trainable(model)
    broken = [name for name, each in weights.items() if not each.isfinite().all()]
    if broken:
        raise DataError(
            f"{len(broken)} adapter weights are not numbers after training, first {broken[0]}",
            fix=_LOWER,
        )
    if not any(each.any() for name, each in weights.items() if ".lora_B." in name):
        raise DataError(
            "the adapter learned nothing: every lora_B is still zero",
            fix="train for more steps; a step of warm-up has a learning rate of 0",
        )


_LOWER = "lower finetune.learning_rate, or set finetune.precision: float32"


@dataclass
class _Best:
    step: int
    loss: float
    weights: dict[str, torch.Tensor]


@dataclass
class _Watch(TrainerCallback):
    """Shows progress, keeps the curve and the best weights, and stops at a loss of nan."""

    pulse: Pulse
    curve: list[CurvePoint] = field(default_factory=list)
    best: _Best | None = None
    note: str = ""

    @property
    def best_step(self) -> int | None:
        return None if self.best is None else self.best.step

    @property
    def best_eval_loss(self) -> float | None:
        return None if self.best is None else self.best.loss

    def on_substep_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the trainer calls by name
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: object,
    ) -> None:
        self._show(state)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: object,
    ) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True  # the last weights may be the best
        self._show(state)

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float],
        **_: object,
    ) -> None:
        loss, eval_loss = logs.get("loss"), logs.get("eval_loss")
        for value in (loss, eval_loss):
            if value is not None and not math.isfinite(value):
                raise DataError(f"the loss is {value} at step {state.global_step}", fix=_LOWER)
        if loss is not None:
            self.note = f"loss {loss:.3f}"
        if loss is not None or eval_loss is not None:
            self.curve.append(
                CurvePoint(
                    step=state.global_step,
                    epoch=state.epoch or 0.0,
                    loss=loss,
                    eval_loss=eval_loss,
                    learning_rate=logs.get("learning_rate"),
                )
            )
        self._show(state)

    def on_prediction_step(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: object,
    ) -> None:
        self._show(state)

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        model: PeftModel,
        metrics: dict[str, float],
        **_: object,
    ) -> None:
        loss = metrics["eval_loss"]
        if self.best is None or loss < self.best.loss:
            weights = {name: each.detach().clone() for name, each in _trainable(model).items()}
            self.best = _Best(state.global_step, loss, weights)

    def _show(self, state: TrainerState) -> None:
        self.pulse.progress(state.global_step, state.max_steps, "steps", self.note)
