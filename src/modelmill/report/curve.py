"""The loss of training and of the eval split over the steps, as paths.

Knows curve points.  Must not know HTML: coordinates run from 0 to 100 in both directions,
so that the drawing stretches with the page and its labels do not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modelmill.report.axis import Axis, linear_axis
from modelmill.report.document import ReportDocument
from modelmill.report.panels import Tick
from modelmill.spec.figures import CurvePoint, Finetuned

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """What is drawn, and what it says."""

    figures: Finetuned
    train: str
    """SVG path data; empty where nothing was logged."""
    evaluated: str
    dots: tuple[str, ...]
    """SVG path data of one eval point each."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    best: float | None
    """Where the kept checkpoint lies, in percent."""
    summary: str
    evals: tuple[tuple[int, float], ...]
    """Step and loss of every eval, for the table behind the drawing."""


def training_curve(document: ReportDocument) -> Curve | None:
    """Draw the training of a run; None where there was none."""
    for stage in document.stages:
        if isinstance(stage.figures, Finetuned):
            return _curve(stage.figures)
    return None


@dataclass(frozen=True)
class Line:
    """The losses of one run in a drawing that several share."""

    run: str
    train: str
    """SVG path data; empty where nothing was logged."""
    evaluated: str
    dots: tuple[str, ...]
    summary: str
    evals: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class SharedCurve:
    """The losses of several runs over the same steps."""

    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    summary: str


def shared_curve(trainings: Sequence[tuple[str, Finetuned]]) -> SharedCurve | None:
    """Draw the training of several runs on one pair of scales; None where no loss was logged.

    Args:
        trainings: name of a run and how its training went.
    """
    series = [
        (
            run,
            _series(each.curve, [point.loss for point in each.curve]),
            _series(each.curve, [point.eval_loss for point in each.curve]),
        )
        for run, each in trainings
    ]
    drawn = [point for _, train, evaluated in series for point in train + evaluated]
    if not drawn:
        return None
    x = linear_axis(0.0, max(step for step, _ in drawn))
    y = linear_axis(min(0.0, *(loss for _, loss in drawn)), max(loss for _, loss in drawn))

    def places(points: Points) -> Points:
        return [(x.at(step), _flipped(y, loss)) for step, loss in points]

    lines = tuple(
        Line(
            run=run,
            train=_path(places(train)),
            evaluated=_path(places(evaluated)),
            dots=tuple(f"M{left:g},{top:g}h0" for left, top in places(evaluated)),
            summary=_summary(train, evaluated) if train or evaluated else "No loss was logged.",
            evals=tuple((int(step), loss) for step, loss in evaluated),
        )
        for run, train, evaluated in series
    )
    return SharedCurve(
        lines=lines,
        x_ticks=tuple(Tick(x.at(step), f"{step:g}") for step in x.ticks),
        y_ticks=tuple(Tick(y.at(loss), f"{loss:g}") for loss in y.ticks),
        summary=" ".join(f"{line.run}: {line.summary}" for line in lines),
    )


def _curve(figures: Finetuned) -> Curve:
    train = _series(figures.curve, [point.loss for point in figures.curve])
    evaluated = _series(figures.curve, [point.eval_loss for point in figures.curve])
    drawn = train + evaluated
    if not drawn:
        return Curve(figures, "", "", (), (), (), None, "No loss was logged.", ())
    x = linear_axis(0.0, max(step for step, _ in drawn))
    y = linear_axis(min(0.0, *(loss for _, loss in drawn)), max(loss for _, loss in drawn))
    places = [(x.at(step), _flipped(y, loss)) for step, loss in evaluated]
    return Curve(
        figures=figures,
        train=_path([(x.at(step), _flipped(y, loss)) for step, loss in train]),
        evaluated=_path(places),
        dots=tuple(f"M{left:g},{top:g}h0" for left, top in places),
        x_ticks=tuple(Tick(x.at(step), f"{step:g}") for step in x.ticks),
        y_ticks=tuple(Tick(y.at(loss), f"{loss:g}") for loss in y.ticks),
        best=None if figures.best_step is None else x.at(figures.best_step),
        summary=_summary(train, evaluated),
        evals=tuple((int(step), loss) for step, loss in evaluated),
    )


def _series(points: Sequence[CurvePoint], losses: Sequence[float | None]) -> Points:
    """Pair steps with the losses that were logged and are numbers."""
    return [
        (float(point.step), loss)
        for point, loss in zip(points, losses, strict=True)
        if loss is not None and math.isfinite(loss)
    ]


def _path(places: Points) -> str:
    return " ".join(
        f"{'L' if index else 'M'}{left:g},{top:g}" for index, (left, top) in enumerate(places)
    )


def _flipped(axis: Axis, value: float) -> float:
    return round(100 - axis.at(value), 3)


def _summary(train: Points, evaluated: Points) -> str:
    told = []
    for name, series in (("Training loss", train), ("eval loss", evaluated)):
        if series:
            step = series[-1][0]
            told.append(f"{name} {series[0][1]:.3f} at first, {series[-1][1]:.3f} at step {step:g}")
    return f"{'; '.join(told)}."
