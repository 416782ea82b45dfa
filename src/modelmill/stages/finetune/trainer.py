"""TRL's trainer, with a cheaper loss, an exact resume, and the same batches for any team.

Knows batches of ids and labels; must not know where they come from.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.sft_trainer import SFTTrainer

from modelmill.stages.finetune.state import (
    Kept,
    Tensors,
    epoch_generator,
    order_generator,
    present_generators,
    restore_generators,
    restore_optimizer,
    restore_weights,
)
from modelmill.stages.finetune.team import ALONE, Team, Turns

IGNORED: Final = -100
"""The label of a token that is not in the loss."""

_NOTHING: Final = {"input_ids": [0, 0], "labels": [IGNORED, IGNORED]}
"""A row to take part with where a rank has none; a label of the first token would be no target."""


class Trainer(SFTTrainer):
    """TRL's trainer; on a CPU it projects to the vocabulary only where there is a label.

    Without Triton, TRL's fused head scores every position, prompts too, and takes entropy
    and accuracy of all of them: 40 % of a step of 135 M on text-to-SQL.

    Its own checkpoints are pickles, and the order of a resumed epoch is drawn anew; so the
    methods that write and read them are replaced (docs/adr/0022).
    """

    tokens = 0
    """Seen in training so far, without padding."""
    head_is_trained = False
    """TRL's loss reads the head's own weight and passes by an adapter on it."""
    kept: Kept | None = None
    """What training goes on from."""
    order: torch.Generator = torch.default_generator
    """Draws the order of every epoch.  In a team it is one of its own: what else is random draws
    something else in every process."""
    epoch_generator: torch.Tensor
    """It as it was when the present epoch began."""
    generators: Tensors
    """Those of all processes at the end of a step, when a state is kept."""
    keep: Callable[[], None]
    """Keeps a state, at the end of a step."""
    team: Team = ALONE
    """Who shares the batches."""

    def join(self, team: Team) -> None:
        """Share the batches with others, who draw the same orders."""
        self.team = team
        if team.size > 1:
            self.order = torch.Generator()
            self.order.set_state(torch.get_rng_state())
            torch.manual_seed(self.args.seed + team.rank)

    def go(self) -> None:
        """Train from the start, or from what is kept."""
        self.train(resume_from_checkpoint=None if self.kept is None else str(self.kept.folder))

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:  # noqa: ARG002
        if not self.control.should_training_stop:  # nothing would go on from it
            # From here on the first counts what all have seen.
            seen = sum(self.team.gather(self.tokens))
            self.tokens = seen if self.team.is_first else 0
            self.generators = {**present_generators(self.team), "epoch": self.epoch_generator}
            if self.team.size > 1:
                self.generators["order"] = self.order.get_state()
            self.keep()

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Reduce the gradients of every micro-batch: what waits would be whole in each rank."""
        yield

    def _load_from_checkpoint(
        self,
        resume_from_checkpoint: str,  # noqa: ARG002 - the library calls by name
        model: torch.nn.Module | None = None,
    ) -> None:
        assert self.kept is not None
        restore_weights(self.kept, self.model if model is None else model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            assert self.kept is not None
            restore_optimizer(self.kept, self)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Leave it: it came with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            assert self.kept is not None
            self._restore_generators(self.kept)

    def _restore_generators(self, kept: Kept) -> None:
        restore_generators(kept, self.team)
        if self.team.size > 1:
            self.order.set_state(order_generator(kept))

    def _run_epoch(self, **given: Any) -> None:  # noqa: ANN401 - passed on as it comes
        """Draw the order of a resumed epoch from what it was drawn from the first time.

        The library then passes over the batches that were learned from, and sets the
        generators to what they were after them.
        """
        if self.kept is not None and given["epoch"] == given["epochs_trained"]:
            if given["steps_trained_in_current_epoch"]:
                self.order.set_state(epoch_generator(self.kept))
            else:
                self._restore_generators(self.kept)
        self.epoch_generator = self.order.get_state()
        super()._run_epoch(**given)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:  # noqa: ANN401 - as it comes
        """Sort by length within the batches of all ranks."""
        sampler = super()._get_train_sampler(train_dataset)
        if self.team.size > 1:
            sampler.batch_size *= self.team.size
            sampler.generator = self.order
        return sampler

    def _get_dataloader(self, dataset: Dataset, *args: Any, **given: Any) -> DataLoader[Any]:  # noqa: ANN401
        """Deal the batches of one process out: the library's shards are other batches.

        They also repeat rows where the last ones cannot be dealt out evenly.
        """
        if self.team.size == 1:
            loader: DataLoader[Any] = super()._get_dataloader(dataset, *args, **given)
            return loader
        batches = BatchSampler(given["sampler_fn"](dataset), given["batch_size"], drop_last=False)
        return DataLoader(
            dataset,
            batch_sampler=Turns(batches, self.team),
            collate_fn=lambda rows: self.data_collator(rows or [_NOTHING]),
            generator=self.order,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        *args: Any,  # noqa: ANN401 - passed on as they come
        **given: Any,  # noqa: ANN401
    ) -> EvalLoopOutput:
        """Take the mean over the batches that one process would have, weighted by their rows."""
        if self.team.size == 1:
            return super().evaluation_loop(dataloader, *args, **given)
        self.model.eval()
        total, rows = 0.0, 0
        for inputs in dataloader:
            loss, _, _ = self.prediction_step(self.model, inputs, prediction_loss_only=True)
            if _has_labels(inputs["labels"]):
                total += len(inputs["labels"]) * float(loss)
                rows += len(inputs["labels"])
            self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        totals, counts = zip(*self.team.gather((total, rows)), strict=True)
        metrics = {f"{given['metric_key_prefix']}_loss": sum(totals) / sum(counts)}
        return EvalLoopOutput(None, None, metrics, sum(counts))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sum the loss over all labels and divide by their number in the whole batch."""
        # Packed rows have places instead of a mask: there is no padding.
        mask, places = inputs.get("attention_mask"), inputs.get("position_ids")
        labels = inputs["labels"]
        if model.training and (self.team.size == 1 or _has_labels(labels)):
            self.tokens += labels.numel() if mask is None else int(mask.sum())
        # It also passes by the module that puts a divided head together.
        if labels.device.type != "cpu" and not (self.head_is_trained or self.team.divides):
            loss: torch.Tensor = super().compute_loss(
                model, inputs, return_outputs, num_items_in_batch
            )
            return loss
        # A position predicts the token behind it; nothing predicts the first token.
        targets = labels[:, 1:]
        learned = (targets != IGNORED).any(0)
        first = int(learned.nonzero()[0]) if learned.any() else 0
        targets = targets[:, first:]
        logits = model(
            input_ids=inputs["input_ids"],
            attention_mask=mask,
            position_ids=places,
            logits_to_keep=torch.arange(first, labels.shape[1] - 1, device=labels.device),
            use_cache=False,
        ).logits
        total = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        if num_items_in_batch is None:
            return total / (targets != IGNORED).sum().clamp(min=1)
        # Gradients are averaged over ranks, and the labels were counted over all of them.
        return self.team.size * total / num_items_in_batch


def _has_labels(labels: torch.Tensor) -> bool:
    return bool((labels != IGNORED).any())
