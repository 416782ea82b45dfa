"""What the rows have in common: repeated ones, and those that models learn from and are judged on.

Knows digests of prompts and fields.  Must not know rows themselves.
"""

from collections.abc import Mapping

from modelmill.report.document import DataEntry, MixedEntry, SharedValues
from modelmill.report.facts import RunFacts, StageFacts
from modelmill.spec.figures import DataFetched
from modelmill.spec.names import NEAR_PRINTS, field_prints

Prints = Mapping[str, frozenset[str]]

TEST = "test"
LEARNED = ("train", "eval")


def data_entries(facts: RunFacts) -> tuple[DataEntry, ...]:
    """Say of every fetched data set how many rows it has and what they share."""
    learned = _learned(facts)
    return tuple(
        DataEntry(
            stage=stage.stage.name,
            rows=figures.rows,
            duplicates=figures.duplicates,
            near_duplicates=figures.near_duplicates,
            overlap={**figures.overlap, **_shared(stage, learned, "{}")},
            near_overlap={
                **figures.near_overlap,
                **_shared(stage, learned, f"{NEAR_PRINTS}/{{}}"),
            },
            fields=_fields(facts, stage, learned),
            mixed=_mixed(facts, figures),
        )
        for stage in facts.stages
        if stage.measurements is not None
        and isinstance(figures := stage.measurements.figures, DataFetched)
    )


def _mixed(facts: RunFacts, figures: DataFetched) -> tuple[MixedEntry, ...]:
    asked = {pin.address: source for source, pin in facts.plan.pins.items()}
    return tuple(
        MixedEntry(
            asked=asked.get(each.address, each.address),
            weight=each.weight,
            rows=each.rows,
            taken=each.taken,
        )
        for each in figures.sources
    )


def leak_notes(facts: RunFacts) -> list[str]:
    """Warn of test prompts that models have learned from: their scores flatter."""
    learned = _learned(facts)
    return [
        f"{count} test prompts stand in the {pair.partition('/')[2]} rows too: scores flatter"
        for stage in facts.stages
        for pair, count in _shared(stage, learned, "{}").items()
        if count
    ]


def _learned(facts: RunFacts) -> Prints:
    """Gather the digests of what models learn from."""
    return {
        name: prints
        for stage in facts.stages
        if TEST not in stage.fingerprints
        for name, prints in stage.fingerprints.items()
    }


def _shared(stage: StageFacts, learned: Prints, form: str) -> dict[str, int]:
    """Count the different test prompts that stand in each split, by `test/<split>`."""
    tested = stage.fingerprints.get(form.format(TEST))
    if tested is None:
        return {}
    return {
        f"{TEST}/{split}": len(tested & learned[form.format(split)])
        for split in LEARNED
        if form.format(split) in learned
    }


def _fields(
    facts: RunFacts, stage: StageFacts, learned: Prints
) -> Mapping[str, Mapping[str, SharedValues]]:
    """Count the test values of the schema and the slices that models have seen."""
    settings = facts.plan.report
    execution = settings.metrics.sql_execution
    names = [*([] if execution is None else [execution.schema_field]), *settings.slice_fields]
    found: dict[str, Mapping[str, SharedValues]] = {}
    for name in dict.fromkeys(names):
        tested = stage.fingerprints.get(field_prints(name, TEST))
        if tested is not None:
            shared = _shared(stage, learned, field_prints(name, "{}"))
            found[name] = {
                pair: SharedValues(shared=count, of=len(tested)) for pair, count in shared.items()
            }
    return found
