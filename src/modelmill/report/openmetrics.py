"""`metrics.prom`: what a run took and came to, for a monitoring system.

OpenMetrics 1.0 text, which Prometheus' textfile collector and Pushgateway read as well.  Knows the
form of that text; everything it says is in the document already.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from modelmill.report.document import ReportDocument
from modelmill.spec.figures import Part

PREFIX: Final = "modelmill"

_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})

Sample = tuple[Mapping[str, str], float | None]
"""Labels and a value; None for what is not known, which is left out."""


@dataclass(frozen=True)
class _Family:
    """One gauge with all its samples."""

    name: str
    unit: str
    help: str
    samples: tuple[Sample, ...]

    def lines(self) -> Iterator[str]:
        known = [(labels, value) for labels, value in self.samples if value is not None]
        if not known:
            return
        name = f"{PREFIX}_{self.name}{f'_{self.unit}' if self.unit else ''}"
        yield f"# TYPE {name} gauge"
        if self.unit:
            yield f"# UNIT {name} {self.unit}"
        yield f"# HELP {name} {self.help}"
        for labels, value in known:
            inner = ",".join(f'{key}="{each.translate(_ESCAPES)}"' for key, each in labels.items())
            yield f"{name}{{{inner}}} {value:.12g}"


def metrics_prom(document: ReportDocument) -> bytes:
    """Write every stage's cost and every model's scores, each with the run's name."""
    lines = [line for family in _families(document) for line in family.lines()]
    return ("\n".join([*lines, "# EOF"]) + "\n").encode()


def _families(document: ReportDocument) -> Iterator[_Family]:
    run = {"run": document.run}
    outcome = {**run, "outcome": document.outcome, "plan": document.lineage.plan_sha256[:12]}
    yield _Family("run", "", "A run and its outcome; the value is always 1.", ((outcome, 1),))
    yield from _of_stages(document, run)
    yield from _of_spending(document, run)
    yield from _of_models(document, run)


def _of_stages(document: ReportDocument, run: Mapping[str, str]) -> Iterator[_Family]:
    stages = [
        ({**run, "stage": each.stage, "kind": each.kind, "status": each.status}, each)
        for each in document.stages
    ]

    def family(name: str, unit: str, words: str, samples: Iterable[Sample]) -> _Family:
        return _Family(f"stage_{name}", unit, words, tuple(samples))

    yield family(
        "part",
        "seconds",
        "Time of each part of a stage's work.",
        (
            ({**labels, "part": part}, seconds)
            for labels, each in stages
            for part, seconds in _by_part(each.parts).items()
        ),
    )
    yield family("attempts", "", "Attempts of this run.", ((n, s.attempts) for n, s in stages))
    memory = ((labels, each.peak_rss_bytes) for labels, each in stages)
    yield family("peak_resident", "bytes", "Peak of the host's memory.", memory)
    memory = ((labels, each.peak_gpu_bytes) for labels, each in stages)
    yield family("peak_gpu", "bytes", "Peak of a GPU's memory.", memory)
    yield family("received", "bytes", "Pulled.", ((n, s.bytes_in) for n, s in stages))
    yield family("sent", "bytes", "Pushed.", ((n, s.bytes_out) for n, s in stages))


def _of_spending(document: ReportDocument, run: Mapping[str, str]) -> Iterator[_Family]:
    held = [
        (
            {**run, "stage": each.stage, "kind": each.kind, "device": each.spending.device},
            each.spending,
        )
        for each in document.stages
        if each.spending is not None
    ]
    hours = tuple(
        ({**labels, "outcome": outcome}, count)
        for labels, each in held
        for outcome, count in (
            ("committed", max(0.0, each.hours - each.lost_hours)),
            ("lost", each.lost_hours),
        )
    )
    words = "Hours of one device that attempts held, lost where they committed nothing."
    yield _Family("stage_device", "hours", words, hours)
    foretold = tuple(
        ({**labels, "bound": bound}, count)
        for labels, each in held
        for bound, count in (("low", each.low_hours), ("high", each.high_hours))
    )
    words = "What was foretold of them before the stage ran."
    yield _Family("stage_foretold_device", "hours", words, foretold)
    currency = document.spending.currency if document.spending is not None else ""
    costs = tuple(({**labels, "currency": currency}, each.price) for labels, each in held)
    yield _Family("stage_cost", "", "Those hours by the place's prices, lost ones too.", costs)


def _by_part(parts: Iterable[Part]) -> Mapping[str, float]:
    """Add up parts of one name: a sample must not be there twice."""
    seconds: dict[str, float] = {}
    for part in parts:
        seconds[part.name] = seconds.get(part.name, 0.0) + part.seconds
    return seconds


def _of_models(document: ReportDocument, run: Mapping[str, str]) -> Iterator[_Family]:
    models = [({**run, "model": each.model}, each) for each in document.models]
    sizes = tuple((labels, each.size_bytes) for labels, each in models)
    yield _Family("model_size", "bytes", "Weight files on disk.", sizes)
    speeds = tuple((labels, each.tokens_per_second) for labels, each in models)
    yield _Family("model_tokens_per_second", "", "Tokens answered a second.", speeds)
    scores = tuple(
        ({**labels, "metric": metric, "bound": bound}, value)
        for labels, each in models
        for metric, score in each.metrics.items()
        for bound, value in (("value", score.value), ("low", score.low), ("high", score.high))
    )
    yield _Family("model_score", "", "A metric with its 95 % interval.", scores)
