"""Hours and prices as text: a table of stages, and a sentence for the run.

Knows the document.  The same cells stand on the page, in Markdown and on a terminal.
"""

from collections.abc import Iterator
from typing import Final

from modelmill.report import words
from modelmill.report.document import ReportDocument
from modelmill.report.spending import RunSpending, Spending, StageSpending, Total
from modelmill.report.table import Table

_HOUR_SECONDS: Final = 3600


def spending_table(document: ReportDocument) -> Table | None:
    """Set what was foretold beside what was held, stage by stage.

    None where that would be the durations of stages once more.
    """
    spending = _worth_saying(document.spending)
    if spending is None:
        return None
    currency = spending.currency
    rows = []
    for stage in document.stages:
        if stage.spending is not None:
            rows.append(
                (stage.stage, place_words(stage.spending), *_cells(stage.spending, currency))
            )
        elif stage.status == "adopted":
            rest = (words.NOTHING,) * (3 if currency else 1)
            rows.append((stage.stage, "", words.NOTHING, "nothing: adopted", *rest))
    totals = (("all GPUs", spending.gpu), ("all without a GPU", spending.cpu))
    rows += [(name, "", *_cells(total, currency)) for name, total in totals if total is not None]
    columns = ("stage", "on", "foretold", "held", "of it lost")
    priced = (f"{currency}, foretold", currency) if currency else ()
    return Table(
        columns=(*columns, *priced),
        rows=tuple(tuple(map(words.one_line, row)) for row in rows),
    )


def spending_sentence(held: RunSpending | None) -> str:
    """Sum a run up in a sentence; empty where there is nothing to say."""
    spending = _worth_saying(held)
    if spending is None:
        return ""
    told = [
        _told(total, what)
        for total, what in ((spending.gpu, "GPU-hours"), (spending.cpu, "hours without a GPU"))
        if total is not None
    ]
    if spending.price is not None:
        told.append(f"{words.money(spending.price)} {spending.currency} in all")
    return f"Devices were held for {'; '.join(told)}."


def _worth_saying(spending: RunSpending | None) -> RunSpending | None:
    """Leave out hours that have no GPU, no price, no loss and nothing to be held against."""
    if spending is None or spending.gpu is not None or spending.price is not None:
        return spending
    cpu = spending.cpu
    is_more = cpu is not None and (cpu.lost_hours > 0 or cpu.low_hours is not None)
    return spending if is_more else None


def basis_notes(document: ReportDocument) -> tuple[str, ...]:
    """Say what was foretold rests on, and what could not be counted; equal words once."""
    return tuple(
        f"{words.listing(stages)}: {basis}" for basis, stages in _by_basis(document).items()
    ) + tuple(_unseen(document))


def _by_basis(document: ReportDocument) -> dict[str, list[str]]:
    bases: dict[str, list[str]] = {}
    for stage in document.stages:
        if stage.spending is not None:
            bases.setdefault(stage.spending.basis, []).append(stage.stage)
    return bases


def _unseen(document: ReportDocument) -> Iterator[str]:
    for stage in document.stages:
        if stage.spending is not None and stage.spending.unseen:
            attempts = words.counted(stage.spending.unseen, "attempt")
            yield f"{stage.stage}: {attempts} whose end nobody saw, not counted"


def _told(total: Total, what: str) -> str:
    told = f"{words.hours(total.hours)} {what}"
    if total.lost_hours:
        told += f", {words.hours(total.lost_hours)} of them lost"
    if total.low_hours is not None and total.high_hours is not None:
        ends = dict.fromkeys(map(words.hours, (total.low_hours, total.high_hours)))
        took = words.hours(total.foretold_hours)
        told += f", and {' to '.join(ends)} foretold for what took {took}"
    return told


def _cells(spending: Spending, currency: str) -> tuple[str, ...]:
    cells = (
        foretold_hours(spending),
        words.duration(_HOUR_SECONDS * spending.hours),
        words.duration(_HOUR_SECONDS * spending.lost_hours)
        if spending.lost_hours
        else words.NOTHING,
    )
    if not currency:
        return cells
    return (*cells, foretold_price(spending), words.money(spending.price))


def foretold_hours(spending: Spending) -> str:
    """Write the hours that were foretold, of one device."""
    low, high = spending.low_hours, spending.high_hours
    if low is None or high is None:
        return words.NOTHING
    if not high:
        return "none"
    return words.span(_HOUR_SECONDS * low, _HOUR_SECONDS * high)


def foretold_price(spending: Spending) -> str:
    """Write what the foretold hours cost, without the currency."""
    low, high = words.money(spending.low_price), words.money(spending.high_price)
    return low if low == high else f"{low} to {high}"


def place_words(spending: StageSpending) -> str:
    """Name what a stage holds."""
    return f"{spending.devices} x {spending.device}" if spending.devices > 1 else spending.device
