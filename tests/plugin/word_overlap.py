"""A package with metrics, as somebody else would write one; its metadata lies beside it."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field, JsonValue

from modelmill.evaluate.plugin import Answered, TextMetric


class OverlapSettings(BaseModel):
    """How words are compared."""

    fold_case: bool = True
    least: float = Field(0.0, ge=0, le=1)


class BrittleSettings(BaseModel):
    """On which question to break, and how."""

    question: str
    way: Literal["raise", "nan", "two", "exit"] = "raise"


def overlap(row: Answered, settings: OverlapSettings) -> float:
    """Take the share of the reference's words that the answer has."""
    answer, reference = row.answer, row.reference
    if settings.fold_case:
        answer, reference = answer.lower(), reference.lower()
    wanted = set(reference.split())
    share = len(wanted & set(answer.split())) / len(wanted)
    return share if share >= settings.least else 0.0


def is_short(row: Answered, settings: Mapping[str, JsonValue]) -> float:
    """Tell whether an output is at most as long as asked for."""
    most = settings.get("characters", 5)
    assert isinstance(most, int | float)
    return len(row.output) <= most


def brittle(row: Answered, settings: BrittleSettings) -> float:
    """Break on one row."""
    if row.fields["question"] == settings.question:
        if settings.way == "raise":
            raise KeyError(row.answer)
        if settings.way == "exit":
            raise SystemExit(3)
        return {"nan": float("nan"), "two": 2.0}[settings.way]
    return 1.0


word_overlap = TextMetric(score=overlap, settings=OverlapSettings, title="Word overlap")
short = TextMetric(score=is_short, is_binary=True)
fragile = TextMetric(score=brittle, settings=BrittleSettings, is_binary=True)
distance = TextMetric(
    score=lambda row, _: len(row.output), higher_is_better=False, high=None, unit="characters"
)
