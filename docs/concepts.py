"""Fill the tables of the concepts page: what is computed here, and what runs of the mill gave.

Knows `quantizers`, `learned` and the files in `measured/`; the words are in `quantization.in.md`.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from docs.learned import BITS, recorded
from docs.quantizers import (
    FP4,
    NF4,
    absmean,
    by_code_book,
    example_layer,
    gptq,
    nearest,
)
from docs.tables import filled, table

MEASURED: Final = Path(__file__).parent / "measured"


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class MeasuredScore(_Read):
    """A score of `report.json`."""

    value: float
    low: float
    high: float
    n: int


class MeasuredModel(_Read):
    """A row of `report.json`."""

    model: str
    bits: int | None
    size_bytes: int | None
    bits_per_weight: float | None
    metrics: Mapping[str, MeasuredScore]
    verdict: str | None


class MeasuredRun(_Read):
    """What is kept of a run's `report.json`."""

    run: str
    models: tuple[MeasuredModel, ...]


def quantization_page(text: str) -> str:
    """Put every table in its place; a table without a place, or the reverse, is an error."""
    tables: Mapping[str, Callable[[], str]] = {
        "grid": _grid,
        "methods": _methods,
        "calibration": _calibration,
        "books": _books,
        "rank": _rank,
        "training": _training,
        "bitnet": _bitnet,
        "ternary": lambda: _run("bitnet"),
        "wikisql": lambda: _run("wikisql"),
    }
    return filled(text, tables)


def _middle(found: Sequence[float]) -> str:
    return _share(statistics.median(found))


def _share(value: float) -> str:
    """Two digits that count, in percent."""
    return f"{float(f'{100 * value:.2g}'):g} %"


def _grid() -> str:
    """One group of weights that are mostly positive, on both kinds of 3-bit grid."""
    weights = np.array([-0.1, 0.0, 0.12, 0.2, 0.26, 0.31, 0.45, 0.6])
    scale = np.abs(weights).max() / 3
    symmetric = np.clip(np.round(weights / scale), -3, 3)
    wide = (weights.max() - weights.min()) / 7
    zero = np.round(-weights.min() / wide)
    asymmetric = np.clip(np.round(weights / wide) + zero, 0, 7)
    back, back_too = symmetric * scale, (asymmetric - zero) * wide
    numbers = [f"{each:g}" for each in weights]
    return table(
        ["weights", *numbers, "scale", "zero point", "rms error"],
        [
            [
                *("symmetric", *(f"{each:.0f}" for each in symmetric)),
                *(f"{scale:.3f}", "0", f"{_rms(back - weights):.3f}"),
            ],
            [
                *("asymmetric", *(f"{each:.0f}" for each in asymmetric)),
                *(f"{wide:.3f}", f"{zero:.0f}", f"{_rms(back_too - weights):.3f}"),
            ],
        ],
    )


def _rms(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _methods() -> str:
    layer = example_layer()
    return table(
        ["bits", "round to nearest", "GPTQ", "AutoRound"],
        [
            [
                str(bits),
                _share(layer.error(nearest(layer.weights, bits))),
                _share(layer.error(gptq(layer.weights, layer.calibration, bits))),
                _middle(recorded().autoround[bits]),
            ]
            for bits in BITS
        ],
    )


def _calibration() -> str:
    layer = example_layer()
    rows = [("none: round to nearest", nearest(layer.weights, 3))]
    rows += [
        (f"{count} samples like those in use", gptq(layer.weights, layer.calibration[:, :count], 3))
        for count in (8, 32, 128, 384)
    ]
    rows.append(("384 samples of another kind", gptq(layer.weights, layer.other, 3)))
    return table(
        ["GPTQ at 3 bits, calibrated on", "output lost"],
        [[name, _share(layer.error(quantized))] for name, quantized in rows],
    )


def _books() -> str:
    weights = np.random.default_rng(1).normal(size=(64, 64))
    books = {
        "int4: 15 equal steps": np.linspace(-1, 1, 15),
        "FP4": np.concatenate([FP4, -FP4]),
        "NF4": NF4,
    }
    return table(
        ["code book", "rms error", "bits per weight", "with double quantization"],
        [
            [
                name,
                _share(_rms(by_code_book(weights, book) - weights) / _rms(weights)),
                f"{4 + 32 / 64:.2f}",
                f"{4 + 8 / 64 + 32 / (64 * 256):.2f}",
            ]
            for name, book in books.items()
        ],
    )


SHAPES: Final = {
    "SmolLM2-135M": (30, 134.5e6, ((576, 960), (576, 576), (576, 3072), (1536, 576))),
    "Llama-2-7B": (32, 6738e6, ((4096, 12288), (4096, 4096), (4096, 22016), (11008, 4096))),
}
"""Blocks, parameters, and (inputs, outputs) of a block's linears, those of one input joined."""

JOINED: Final = (3, 1, 2, 1)
"""How many layers each of the joined ones is; every one has a matrix A of its own."""


def _rank() -> str:
    rows = []
    for model, (blocks, parameters, shapes) in SHAPES.items():
        for rank in (1, 8, 16, 64):
            trained = blocks * sum(
                rank * (count * inputs + outputs)
                for (inputs, outputs), count in zip(shapes, JOINED, strict=True)
            )
            rows.append(
                [
                    f"{model}, r={rank}",
                    f"{trained / 1e6:.2f} M",
                    _share(trained / parameters),
                    f"{4 * trained / 2**20:.0f} MiB",
                    f"{16 * trained / 2**30:.2f} GiB",
                    f"{16 * parameters / 2**30:.1f} GiB",
                ]
            )
    return table(
        [
            *("LoRA on all linear layers", "trained", "of all", "adapter file"),
            *("weights, gradients, Adam", "the same for full fine-tuning"),
        ],
        rows,
    )


def _training() -> str:
    learned = recorded()
    return table(
        ["bits", "rounded after training", "trained while rounded"],
        [
            [
                str(bits),
                _middle(learned.rounded[bits]),
                _middle(learned.trained_while_rounded[bits]),
            ]
            for bits in BITS
        ],
    )


def _bitnet() -> str:
    learned, layer = recorded(), example_layer()
    return table(
        ["weights", "one layer's output lost", "the network's error"],
        [
            ["as trained", "0 %", _middle(learned.as_trained)],
            [
                "rounded to -1, 0, 1 by absmean",
                _share(layer.error(absmean(layer.weights))),
                _middle(learned.ternary),
            ],
            ["rounded, then trained further", "", _middle(learned.ternary_trained_further)],
            ["trained so from the beginning", "", _middle(learned.ternary_from_the_beginning)],
        ],
    )


def _run(name: str) -> str:
    found = MeasuredRun.model_validate_json((MEASURED / f"{name}.json").read_bytes())
    metrics = list(found.models[0].metrics)
    rows = [
        [
            model.model,
            "" if model.bits is None else str(model.bits),
            "" if model.size_bytes is None else f"{model.size_bytes / 1e6:.0f} MB",
            "" if model.bits_per_weight is None else f"{model.bits_per_weight:.1f}",
            *(_interval(name, model.metrics.get(name)) for name in metrics),
            model.verdict or "",
        ]
        for model in found.models
    ]
    return table(["model", "bits", "size", "bits per weight", *metrics, "verdict"], rows)


def _interval(metric: str, score: MeasuredScore | None) -> str:
    if score is None:
        return ""
    if metric == "nll":
        return f"{score.value:.3f} ({score.low:.3f} to {score.high:.3f})"
    return f"{100 * score.value:.0f} % ({100 * score.low:.0f} to {100 * score.high:.0f})"
