"""What is watched while a model learns: the curve, the best weights, and when to stop.

Knows the trainer's callbacks; must not know what is trained or how.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modelmill.spec.errors import DataError
from modelmill.spec.figures import CurvePoint
from modelmill.stages.stage import Pulse

LOWER = "lower finetune.learning_rate, or set finetune.precision: float32"


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Map the names of the weights that are trained to them."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def kept(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy the trained weights to where they take no GPU memory."""
    return {name: each.detach().to("cpu", copy=True) for name, each in trainable(model).items()}


def put_back(weights: Mapping[str, torch.Tensor], model: torch.nn.Module) -> None:
    """Give the trained weights the values of a copy."""
    for name, weight in trainable(model).items():
        weight.data.copy_(weights[name])


@dataclass
class Best:
    """The weights with the lowest eval loss so far."""

    step: int
    loss: float
    weights: dict[str, torch.Tensor]


@dataclass
class Watch(TrainerCallback):
    """Shows progress, keeps the curve and the best weights, and stops when nothing gets better.

    A loss that is no number ends the stage.
    """

    pulse: Pulse
    patience: int | None = None
    """Evaluations without anything better, after which training stops; None: never."""
    threshold: float = 0.0
    """By how much the loss has to fall to count as better."""
    curve: list[CurvePoint] = field(default_factory=list)
    best: Best | None = None
    has_stopped_early: bool = False
    _in_vain: int = 0
    _to_beat: float = math.inf
    note: str = ""

    def on_substep_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the trainer calls by name
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: object,
    ) -> None:
        """Show that a micro-batch is done."""
        self._show(state)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: object,
    ) -> None:
        """Ask for a last evaluation: the last weights may be the best."""
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True
        self._show(state)

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float],
        **_: object,
    ) -> None:
        """Keep a point of the curve, and stop where the loss is no number."""
        loss, eval_loss = logs.get("loss"), logs.get("eval_loss")
        for value in (loss, eval_loss):
            if value is not None and not math.isfinite(value):
                raise DataError(f"the loss is {value} at step {state.global_step}", fix=LOWER)
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
        """Show that an evaluation goes on."""
        self._show(state)

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module,
        metrics: dict[str, float],
        **_: object,
    ) -> None:
        """Keep the best weights, and stop training that has brought nothing better."""
        loss = metrics["eval_loss"]
        if self.best is None or loss < self.best.loss:
            self.best = Best(state.global_step, loss, kept(model))
        if loss < self._to_beat - self.threshold:
            self._to_beat, self._in_vain = loss, 0
            return
        self._in_vain += 1
        if self.patience is not None and self._in_vain >= self.patience:
            control.should_training_stop = True
            self.has_stopped_early = state.global_step < state.max_steps

    def _show(self, state: TrainerState) -> None:
        self.pulse.progress(state.global_step, state.max_steps, "steps", self.note)
