"""TRL's trainer, with a loss that costs what its labels need and a resume that is exact.

Knows batches of ids and labels; must not know where they come from.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.nn.functional import cross_entropy
from trl.trainer.sft_trainer import SFTTrainer

from modelmill.stages.finetune.state import (
    Kept,
    epoch_generator,
    restore_generators,
    restore_optimizer,
    restore_weights,
)

IGNORED: Final = -100
"""The label of a token that is not in the loss."""


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
    epoch_generator: torch.Tensor
    """Torch's generator as it was when the present epoch began: the order is drawn from it."""
    keep: Callable[[], None]
    """Keeps a state, at the end of a step."""

    def go(self) -> None:
        """Train from the start, or from what is kept."""
        self.train(resume_from_checkpoint=None if self.kept is None else str(self.kept.folder))

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:  # noqa: ARG002
        if not self.control.should_training_stop:  # nothing would go on from it
            self.keep()

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
            restore_generators(self.kept)

    def _run_epoch(self, **given: Any) -> None:  # noqa: ANN401 - passed on as it comes
        """Draw the order of a resumed epoch from what it was drawn from the first time.

        The library then passes over the batches that were learned from, and sets the
        generators to what they were after them.
        """
        if self.kept is not None and given["epoch"] == given["epochs_trained"]:
            if given["steps_trained_in_current_epoch"]:
                torch.set_rng_state(epoch_generator(self.kept))
            else:
                restore_generators(self.kept)
        self.epoch_generator = torch.get_rng_state()
        super()._run_epoch(**given)

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
        if model.training:
            self.tokens += labels.numel() if mask is None else int(mask.sum())
        if labels.device.type != "cpu" and not self.head_is_trained:
            loss: torch.Tensor = super().compute_loss(
                model, inputs, return_outputs, num_items_in_batch
            )
            return loss
        # A position predicts the token behind it; nothing predicts the first token.
        targets = labels[:, 1:]
        first = int((targets != IGNORED).any(0).nonzero()[0])
        targets = targets[:, first:]
        logits = model(
            input_ids=inputs["input_ids"],
            attention_mask=mask,
            position_ids=places,
            logits_to_keep=torch.arange(first, labels.shape[1] - 1, device=labels.device),
            use_cache=False,
        ).logits
        total = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        return total / (
            (targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        )
