"""What is watched while a model learns: the curve, the best weights, and when to stop.

Knows the trainer's callbacks; must not know what is trained or how.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modelmill.spec.errors import DataError, DeviceFault, ModelmillError
from modelmill.spec.figures import CurvePoint
from modelmill.spec.records import Record
from modelmill.stages.finetune.divergence import Divergence
from modelmill.stages.finetune.fsdp import fill_from_first, whole
from modelmill.stages.stage import Pulse

LOWER = "lower finetune.learning_rate, or set finetune.precision: float32"


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Map the names of the weights that are trained to them."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def copied(model: torch.nn.Module, *, is_kept: bool = True) -> dict[str, torch.Tensor]:
    """Copy the trained weights to where they take no GPU memory.

    Every rank of a team that has divided them has to ask, if only one of them keeps the copy.
    """
    copies = {}
    for name, each in trainable(model).items():
        there = whole(each)
        if is_kept:
            copies[name] = there.to("cpu", copy=True)
    return copies


def put_back(weights: Mapping[str, torch.Tensor], model: torch.nn.Module) -> None:
    """Give the trained weights the values of a copy, of which one rank is enough to have it."""
    for name, weight in trainable(model).items():
        fill_from_first(weight, weights.get(name))


@dataclass
class Best:
    """The weights with the lowest eval loss so far."""

    step: int
    loss: float
    weights: dict[str, torch.Tensor]


class WatchRecord(Record):
    """What a watch remembers, but the best weights."""

    curve: tuple[CurvePoint, ...]
    best_step: int | None
    best_loss: float | None
    in_vain: int
    to_beat: float | None
    """None while anything is better."""
    note: str
    seen: int
    start: float
    smoothed: float
    above: int


@dataclass
class Watch(TrainerCallback):
    """Shows progress, keeps the curve and the best weights, and stops when nothing gets better.

    A loss that is no number, or has run away for good, ends the stage.
    """

    pulse: Pulse
    patience: int | None = None
    """Evaluations without anything better, after which training stops; None: never."""
    threshold: float = 0.0
    """By how much the loss has to fall to count as better."""
    divergence: Divergence | None = field(default_factory=Divergence)
    """None: a loss may rise as it likes."""
    repeats_exactly: bool = True
    """Whether the same steps give the same numbers, so that another attempt changes nothing."""
    keeps_weights: bool = True
    """Whether the best weights are kept here; of processes that all have them, one is enough."""
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
        """Ask for a last evaluation, for the last weights may be the best, and for saves."""
        is_over = state.global_step >= state.max_steps
        if is_over and args.eval_strategy != "no":
            control.should_evaluate = True
        if self.pulse.is_due() and not is_over:
            # The trainer saves after it has evaluated, which is what the next step comes after.
            control.should_save = True
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
                raise self._no_number(value, state.global_step)
        if loss is not None:
            if self.divergence is not None and self.divergence.has_diverged(loss):
                raise DataError(
                    f"the loss has diverged: {self.divergence.smoothed:.3g} at step "
                    f"{state.global_step}, after {self.divergence.start:.3g} at the start",
                    fix=f"{LOWER}; finetune.stop_when_diverging: false lets it go on",
                )
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
            weights = copied(model, is_kept=self.keeps_weights)
            self.best = Best(state.global_step, loss, weights)
        if loss < self._to_beat - self.threshold:
            self._to_beat, self._in_vain = loss, 0
            return
        self._in_vain += 1
        if self.patience is not None and self._in_vain >= self.patience:
            control.should_training_stop = True
            self.has_stopped_early = state.global_step < state.max_steps

    def record(self) -> WatchRecord:
        """Write down what is remembered."""
        divergence = self.divergence or Divergence()
        return WatchRecord(
            curve=tuple(self.curve),
            best_step=None if self.best is None else self.best.step,
            best_loss=None if self.best is None else self.best.loss,
            in_vain=self._in_vain,
            to_beat=None if math.isinf(self._to_beat) else self._to_beat,
            note=self.note,
            seen=divergence.seen,
            start=divergence.start,
            smoothed=divergence.smoothed,
            above=divergence.above,
        )

    def restore(self, record: WatchRecord, best: Best | None) -> None:
        """Remember what an earlier watch wrote down."""
        self.curve, self.best, self.note = list(record.curve), best, record.note
        self._in_vain = record.in_vain
        self._to_beat = math.inf if record.to_beat is None else record.to_beat
        if self.divergence is not None:
            self.divergence = Divergence(record.seen, record.start, record.smoothed, record.above)

    def _no_number(self, value: float, step: int) -> ModelmillError:
        """Blame the recipe where numbers repeat, and perhaps the device where they may not."""
        what = f"the loss is {value} at step {step}"
        if self.repeats_exactly:
            return DataError(what, fix=LOWER)
        return DeviceFault(
            what, fix=f"{LOWER}; if another attempt gets further, look at the GPU of this one"
        )

    def _show(self, state: TrainerState) -> None:
        self.pulse.progress(state.global_step, state.max_steps, "steps", self.note)
