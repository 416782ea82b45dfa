"""One training run with TRL's trainer: our token ids, our masks, our best weights.

Knows the trainer; must not know rows as text, nor what is trained, nor what is written where.
"""

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PrinterCallback
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from modelmill.models.precision import name_of
from modelmill.models.prompt import EncodedRow
from modelmill.spec.batching import HALVINGS, micro_batch_size
from modelmill.spec.errors import DataError, DoesNotFit
from modelmill.spec.figures import CurvePoint
from modelmill.spec.finetune import FinetuneSpec
from modelmill.stages.finetune.divergence import Divergence
from modelmill.stages.finetune.examples import Examples
from modelmill.stages.finetune.fsdp import own
from modelmill.stages.finetune.state import (
    Kept,
    MadeWith,
    newest_that_fits,
    restore_watch,
    write_state,
)
from modelmill.stages.finetune.team import ALONE, Team
from modelmill.stages.finetune.trainer import IGNORED, Trainer
from modelmill.stages.finetune.watch import LOWER, Watch, copied, put_back, trainable
from modelmill.stages.machine import NO_MEMORY
from modelmill.stages.stage import Pulse

EVAL_ROWS = 8
"""The eval loss is a mean over batches; of a fixed size, so that memory cannot choose the best
weights."""


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """How to train, decided."""

    finetune: FinetuneSpec
    seed: int
    max_length: int
    pad: int
    dtype: torch.dtype
    device: torch.device
    scratch: Path
    """Holds what to go on from, and what is kept for another attempt to go on from."""
    fall_back: Callable[[], bool] = lambda: False
    """Puts there what was kept before that."""
    halvings: int = 0
    """Of the micro-batch, from the start: attempts before this one were killed for memory."""
    head_is_trained: bool = False
    """Whether the output head has an adapter or is trained itself."""
    team: Team = ALONE
    """The processes that train it together; each has called this with the same."""

    @property
    def memory(self) -> str:
        """Name the memory that may be too small."""
        return "Memory" if self.device.type == "cpu" else "GPU memory"


@dataclass(frozen=True)
class Trained:
    """How a model got its best weights, which it has now."""

    steps: int
    tokens: int
    trainable_parameters: int
    micro_batch_size: int
    sequences: int
    """Of a pass over the data: rows, or what they were packed to."""
    stopped_early: bool
    best_step: int | None
    best_eval_loss: float | None
    curve: tuple[CurvePoint, ...]


class TooManyRows(DoesNotFit):
    """Memory is too small for so many rows at a time; ranks begin anew with fewer, all of them."""

    rows: int = 0
    """0 where whoever says it cannot know."""


def present_device(team: Team) -> torch.device:
    """Name the device this process trains on."""
    return torch.device("cuda", team.rank) if torch.cuda.is_available() else torch.device("cpu")


def train(
    model: PreTrainedModel | PeftModel, examples: Examples, training: Training, pulse: Pulse
) -> Trained:
    """Train what of the model wants gradients; the model has the best weights afterwards.

    Equal inputs give equal weights on one CPU, however often training is interrupted.  Where
    memory is too small it goes on, from its last checkpoint or from the start, with half the
    rows at a time, twice at most; the batch, and so the result, is the same.

    Raises:
        DataError: the loss or a weight stopped being a number, or the loss ran away.
        DoesNotFit: memory is too small even so.
        Interrupted: the stage was asked to stop; a state between two steps is kept.
    """
    session = _Session(model, examples, training, pulse)
    kept = session.kept()
    # A copy of a whole model is made only where there may be a second try: of GPU memory.
    is_small = isinstance(model, PeftModel)
    # A rank that begins anew alone would leave the others waiting.
    is_alone = training.team.size == 1
    first = copied(model) if is_alone and (is_small or training.device.type == "cuda") else None
    begun = session.halvings_so_far(kept)
    for halvings in range(begun, begun + HALVINGS + 1):
        trained = session.train_with(halvings, kept)
        if trained is not None:
            return trained
        rows = session.micro_batch(halvings)
        if first is None or rows == 1 or halvings == begun + HALVINGS:
            break
        pulse.warn(
            f"{training.memory} is too small for {rows} rows at a time; "
            f"taking {session.micro_batch(halvings + 1)} of them, the batch stays the same"
        )
        gc.collect()  # the trainer and its optimizer are a cycle
        torch.cuda.empty_cache()
        kept = session.kept()
        if kept is None:
            put_back(first, model)
    error = TooManyRows(
        f"{training.memory} is too small for {rows} rows of up to {session.longest} tokens"
        f"{memory_figures(training.device)}",
        fix="set finetune.micro_batch_size lower, or finetune.gradient_checkpointing: true",
    )
    error.rows = rows
    raise error


@dataclass
class _Session:
    """What stays the same however often training begins."""

    model: PreTrainedModel | PeftModel
    examples: Examples
    training: Training
    pulse: Pulse

    def __post_init__(self) -> None:
        """Turn rows into what the trainer takes."""
        rows = (*self.examples.train, *self.examples.eval)
        self.longest = max(len(row.input_ids) for row in rows)
        self.rows = dataset_of(self.examples.train)
        if self.training.finetune.packing:
            self.longest = self.training.max_length
            self.rows = pack_dataset(self.rows, self.longest, strategy="bfd")

    def micro_batch(self, halvings: int) -> int:
        """Choose the rows of one forward pass."""
        is_gpu = self.training.device.type != "cpu"
        return micro_batch_size(
            self.training.finetune,
            self.longest,
            is_gpu=is_gpu,
            halvings=halvings,
            ranks=self.training.team.size,
        )

    def made_with(self, halvings: int) -> MadeWith:
        """Say what a state's numbers depend on."""
        return MadeWith(
            method=self.training.finetune.method,
            device="cpu" if self.training.device.type == "cpu" else "cuda",
            precision=name_of(self.training.dtype),
            world_size=self.training.team.size,
            micro_batch_size=self.micro_batch(halvings),
            divided=self.training.team.divides,
        )

    def kept(self) -> Kept | None:
        """Find what to go on from: one looks for it, and all read it."""
        training, found = self.training, None
        if training.team.is_first:
            present = self.made_with(training.halvings)
            found = newest_that_fits(training.scratch, training.fall_back, present, self.pulse.warn)
        return training.team.agree(found)

    def halvings_so_far(self, kept: Kept | None) -> int:
        """Count what did not fit in this attempt's time or before; it is not tried again."""
        ordered = self.training.halvings
        if ordered:
            self.pulse.warn(
                f"Earlier attempts were killed for their memory; taking "
                f"{self.micro_batch(ordered)} rows at a time, the batch stays the same"
            )
        if kept is None or kept.state.halvings <= ordered:
            return ordered
        self.pulse.warn(
            f"{self.training.memory} was too small in an earlier attempt; taking "
            f"{self.micro_batch(kept.state.halvings)} rows at a time, the batch stays the same"
        )
        return kept.state.halvings

    def train_with(self, halvings: int, kept: Kept | None) -> Trained | None:
        """Train with so many rows at a time; None where memory is too small for them."""
        watch, trainer = self._trainer(halvings)
        if kept is not None:
            self._go_on(trainer, watch, kept, self.made_with(halvings))
        try:
            with self.pulse.steps():
                trainer.go()
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            if NO_MEMORY not in str(error):
                raise
            return None
        team = self.training.team
        # Without an eval split the last weights are the best.
        if watch.best is not None and (watch.keeps_weights or team.divides):
            put_back(watch.best.weights, self.model)
        _check_learned(trainable(self.model), team)
        return Trained(
            steps=trainer.state.global_step,
            tokens=sum(team.gather(trainer.tokens)),
            trainable_parameters=sum(each.numel() for each in trainable(self.model).values()),
            micro_batch_size=self.micro_batch(halvings),
            sequences=len(self.rows),
            stopped_early=watch.has_stopped_early,
            best_step=None if watch.best is None else watch.best.step,
            best_eval_loss=None if watch.best is None else watch.best.loss,
            curve=tuple(watch.curve),
        )

    def _trainer(self, halvings: int) -> tuple[Watch, Trainer]:
        training, spec, evaluated = self.training, self.training.finetune, self.examples.eval
        watch = Watch(
            self.pulse,
            spec.early_stopping_patience,
            spec.early_stopping_threshold,
            divergence=Divergence() if spec.stop_when_diverging else None,
            repeats_exactly=training.device.type == "cpu",
            keeps_weights=training.team.is_first,
        )
        trainer = Trainer(
            model=self.model,
            args=_arguments(training, self.micro_batch(halvings), has_eval=bool(evaluated)),
            train_dataset=self.rows,
            eval_dataset=dataset_of(evaluated) if evaluated else None,
            # A collator of our own pads with the contract's id and masks by length, so that a
            # pad that equals EOS takes no EOS out of the loss.
            data_collator=DataCollatorForLanguageModeling(
                pad_token_id=training.pad, padding_free=spec.packing
            ),
            callbacks=[watch],
        )
        trainer.head_is_trained = training.head_is_trained
        trainer.join(training.team)
        trainer.remove_callback(PrinterCallback)
        # The trainer casts a quantized model's adapter to bfloat16, whose 8 bits lose small
        # optimizer updates; on an unquantized base it keeps float32, and so do we.
        for weight in trainable(self.model).values():
            if weight.dtype != torch.float32:
                weight.data = weight.data.float()
        made_with = self.made_with(halvings)

        def write() -> None:
            write_state(trainer, watch, made_with, halvings, training.scratch)

        # Weights, two moments of the optimizer, and the best weights.
        size_bytes = 4 * sum(each.nbytes for each in trainable(self.model).values())
        trainer.keep = partial(self.pulse.keep, size_bytes, write)
        return watch, trainer

    def _go_on(self, trainer: Trainer, watch: Watch, kept: Kept, present: MadeWith) -> None:
        trainer.kept = kept
        trainer.tokens = kept.state.tokens if self.training.team.is_first else 0
        restore_watch(kept, watch)
        logger.info("going on from a checkpoint after step %d", kept.state.step)
        inexact = kept.state.made_with.inexactness(present)
        if inexact:
            logger.warning("not bit by bit what it would have been: %s", inexact)


def _arguments(training: Training, micro_batch: int, *, has_eval: bool) -> SFTConfig:
    spec = training.finetune
    on_cpu = training.device.type == "cpu"
    arguments = SFTConfig(
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
        gradient_accumulation_steps=spec.batch_size // (micro_batch * training.team.size),
        neftune_noise_alpha=spec.neftune_noise_alpha,
        tf32=None if on_cpu else spec.tf32,
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
        # Every weight that is trained is used in every pass.
        ddp_find_unused_parameters=False,
    )
    # The library would otherwise split each micro-batch among all GPUs it sees, by threads.
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001
    return arguments


def memory_figures(device: torch.device) -> str:
    """Say how much GPU memory was used, and how much there is; nothing for a CPU."""
    if device.type == "cpu" or not torch.cuda.is_available():
        return ""
    used = torch.cuda.max_memory_reserved(device)
    free, there = torch.cuda.mem_get_info(device)
    return f" ({used / 2**30:.1f} of {there / 2**30:.1f} GiB used, {free / 2**30:.1f} GiB free)"


def dataset_of(rows: Sequence[EncodedRow]) -> Dataset:
    """Turn rows into what the collator takes: ids, and labels that ignore what is not learned."""
    return Dataset.from_dict(
        {"input_ids": [row.input_ids for row in rows], "labels": [labels_of(row) for row in rows]}
    )


def _check_learned(weights: Mapping[str, torch.Tensor], team: Team) -> None:
    mine = {name: own(each) for name, each in weights.items()}
    found = [name for name, each in mine.items() if not each.isfinite().all()]
    broken = sorted(set().union(*team.gather(found)))
    if broken:
        raise DataError(
            f"{len(broken)} weights are not numbers after training, first {broken[0]}", fix=LOWER
        )
    adapted = [each for name, each in mine.items() if ".lora_B." in name]
    if adapted and not any(team.gather(any(bool(each.any()) for each in adapted))):
        raise DataError(
            "the adapter learned nothing: every lora_B is still zero",
            fix="train for more steps; a step of warm-up has a learning rate of 0",
        )


def labels_of(row: EncodedRow) -> list[int]:
    """Repeat the ids that are in the loss and ignore the others."""
    labels = [IGNORED] * row.prompt_length + row.input_ids[row.prompt_length :]
    for start, end in row.learned:
        labels[start:end] = row.input_ids[start:end]
    return labels
