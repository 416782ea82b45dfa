"""Print a plan: what is committed, what will run, and what that will take."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import click
from pydantic import JsonValue

from modelmill.cli.show import SAYS_NOTHING, bytes_text, print_sources, print_table
from modelmill.spec.names import kind_of

if TYPE_CHECKING:
    from modelmill.conduct.fitting import FitRow, Fitting
    from modelmill.conduct.standing import PlanRow, SourceRow
    from modelmill.report.spending import StageSpending

SIZES_FROM: Final = 1
"""Columns of the table that hold sizes."""
HOURS_FROM: Final = 2

_COMMITTED: Final = {"low_seconds": 0.0, "high_seconds": 0.0, "basis": "committed already"}
_FORETOLD: Final = frozenset(
    {"device", "devices", "basis", "low_hours", "high_hours", "low_price", "high_price"}
)


def print_plan(
    rows: Sequence["PlanRow"], sources: Sequence["SourceRow"], fitting: "Fitting", output: str
) -> None:
    """Print stages, sources and what the stages will take.

    Args:
        rows: of stages.
        sources: and their state.
        fitting: estimates, in the order of the rows.
        output: `json` for one list with all of a stage in one place.
    """
    if output == "json":
        click.echo(json.dumps(_documents(rows, fitting), indent=2))
        return
    print_table(
        ("stage", "key", "state", "from run", "inputs"),
        [(row.stage, row.key[:12], row.state, row.from_run, ", ".join(row.inputs)) for row in rows],
    )
    print_fit(fitting)
    print_hours(_hours(rows, fitting), fitting.prices.currency)
    click.echo()
    print_table(
        ("model", "served fastest by", "why"),
        [(each.model, each.engine, each.why) for each in fitting.serving],
    )
    print_sources(sources)


def _documents(rows: Sequence["PlanRow"], fitting: "Fitting") -> list[dict[str, JsonValue]]:
    """Put what is known of a stage in one place, and of a model beside what measures it."""
    serving = {f"infer-{each.model}": each.model_dump() for each in fitting.serving}
    hours = _hours(rows, fitting)
    return [
        {
            **row.model_dump(),
            "fit": fit.model_dump(),
            "hours": hours[row.stage].model_dump(include=set(_FORETOLD)),
            "serving": serving.get(row.stage),
        }
        for row, fit in zip(rows, fitting.rows, strict=True)
    ]


def _hours(rows: Sequence["PlanRow"], fitting: "Fitting") -> Mapping[str, "StageSpending"]:
    """Price what each stage will hold; what is committed holds nothing any more."""
    from modelmill.report.spending import spent_by_stage

    spent: dict[str, StageSpending] = {}
    for row in rows:
        foretold = fitting.foretold[row.stage]
        if row.state == "committed":
            foretold = foretold.model_copy(update=_COMMITTED)
        spent[row.stage] = spent_by_stage(foretold, (), fitting.prices)
    return spent


def print_hours(spent: Mapping[str, "StageSpending"], currency: str) -> None:
    """Print how long stages will hold devices, and in words what that rests on.

    Args:
        spent: by stage; nothing is said of a place without a GPU and without a basis.
        currency: of the place's prices; empty without a list of them.
    """
    from modelmill.report.spending import spent_by_run
    from modelmill.report.spending_table import foretold_hours, foretold_price, place_words

    whole = spent_by_run(tuple(spent.values()), currency)
    if whole is None or (whole.gpu is None and not any(each.high_hours for each in spent.values())):
        return
    totals = (("all GPUs", whole.gpu), ("all without a GPU", whole.cpu))
    rows = [(stage, place_words(each), each) for stage, each in spent.items()]
    click.echo()
    print_table(
        ("stage", "on", "hours", *((currency,) if currency else ())),
        [
            (name, on, foretold_hours(each), *((foretold_price(each),) if currency else ()))
            for name, on, each in (*rows, *((name, "", each) for name, each in totals if each))
        ],
        HOURS_FROM,
    )
    click.echo("Hours of one device, and sums of those that have a basis:", err=True)
    bases = {
        each.basis: [n for n, e in spent.items() if e.basis == each.basis] for _, _, each in rows
    }
    for basis, stages in bases.items():
        click.echo(f"{', '.join(stages)}: {basis}", err=True)


def print_fit(fitting: "Fitting") -> None:
    """Print what every stage will take, and in words what stands in the way."""
    click.echo()
    device = () if fitting.accelerator is None else (f"on {fitting.accelerator.name}",)
    print_table(
        ("stage", "GPU", "host", "disk", "in", "out", *device),
        [(*_cells(row), *([row.state] if device else [])) for row in fitting.rows],
        SIZES_FROM,
    )
    for sentence in dict.fromkeys((*_sentences(fitting), *_sharing(fitting))):
        click.echo(sentence, err=True)


def _cells(row: "FitRow") -> tuple[str, ...]:
    sizes = (row.gpu_bytes, row.host_bytes, row.disk_bytes, row.bytes_in, row.bytes_out)
    return (row.stage, *(bytes_text(each) if each else SAYS_NOTHING[1] for each in sizes))


def _sentences(fitting: "Fitting") -> list[str]:
    if fitting.why_unknown:
        return [f"What stages will take is {fitting.why_unknown}."]
    said = [
        f"{kind_of(row.stage)}: {', '.join(row.assumed)}" for row in fitting.rows if row.assumed
    ]
    said += [
        f"{row.stage} is tight: {'; '.join(row.reasons)}"
        + (f"; {', or '.join(row.advice)}" if row.advice else "")
        for row in fitting.rows
        if row.state == "tight"
    ]
    return ["Estimates, whose errors are in docs/fit.md:", *said]


def _sharing(fitting: "Fitting") -> list[str]:
    """Say what several pods ask for together, and where there is one after all."""
    return [
        f"{kind_of(row.stage)}: on a cluster {row.shared.shards} pods share the rows of a model; "
        f"each takes all of this, and together they ask for "
        f"{f'{row.shared.gpu} GPUs and ' if row.shared.gpu else ''}{row.shared.memory}.  "
        "Elsewhere one process answers all"
        for row in fitting.rows
        if row.shared is not None
    ]
