"""What models learn from and are judged on is counted: by prompt, by words and by schema."""

from collections.abc import Callable

from modelmill.report.compose import render
from modelmill.report.document import SharedValues
from modelmill.report.facts import RunFacts
from modelmill.spec.figures import Finetuned, LengthBin

PRINTS = {
    "fetch-data": {
        "train": frozenset("abc"),
        "near/train": frozenset("abc"),
        "field/context/train": frozenset("xy"),
        "eval": frozenset("d"),
    },
    "fetch-test": {
        "test": frozenset("az"),
        "near/test": frozenset("abz"),
        "field/context/test": frozenset("xwv"),
    },
}


def leaking(small: RunFacts, change: Callable[..., RunFacts]) -> RunFacts:
    """Give a run rows that share something."""
    for name, prints in PRINTS.items():
        small = change(small, name, fingerprints=prints)
    return small


def test_test_rows_that_models_learned_from_are_counted(
    small: RunFacts, change: Callable[..., RunFacts]
) -> None:
    """Exactly, by their words, and by the schema they ask about."""
    document, files = render(leaking(small, change))
    entry = next(each for each in document.data if each.stage == "fetch-test")
    assert entry.overlap == {"test/train": 1, "test/eval": 0}
    assert entry.near_overlap == {"test/train": 2}
    assert entry.fields["context"] == {"test/train": SharedValues(shared=1, of=3)}
    assert any("1 test prompts stand in the train rows" in note for note in document.notes)
    html = files["report.html"].decode()
    assert "1 of 3 different values of <code>context</code> in test also stands in train" in html


def test_rows_without_digests_say_nothing(small: RunFacts) -> None:
    """An artifact of an earlier version has none, and its report no line about them."""
    document, files = render(small)
    assert all(not each.fields for each in document.data)
    assert "different values of" not in files["report.html"].decode()


def test_lengths_are_drawn_with_their_limit(
    small: RunFacts, change: Callable[..., RunFacts]
) -> None:
    """The drawing says in words what it shows."""
    stage = small.find("finetune")
    assert stage is not None
    assert stage.measurements is not None
    assert isinstance(stage.measurements.figures, Finetuned)
    bins = (LengthBin(upto=40, rows=30), LengthBin(upto=80, rows=9), LengthBin(upto=120, rows=1))
    figures = stage.measurements.figures.model_copy(update={"lengths": bins, "max_length": 80})
    measured = stage.measurements.model_copy(update={"figures": figures})
    html = render(change(small, "finetune", measurements=measured))[1]["report.html"].decode()
    assert "Half of 40 training rows have at most 40 tokens, 95 % at most 80" in html
    assert html.count('class="bar over"') == 1
    assert "Tokens of training rows" not in render(small)[1]["report.html"].decode()
