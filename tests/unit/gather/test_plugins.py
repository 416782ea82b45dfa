"""Metric plug-ins are found by entry point, and everything wrong with them is said at once."""

from pathlib import Path

import pytest
from pydantic import JsonValue

from modelmill.evaluate.plugin import PluginMetric
from modelmill.gather.plugins import check_plugins, load_plugins
from modelmill.spec.errors import SpecError
from modelmill.spec.infer import MetricsSpec

PACKAGE = Path(__file__).parents[2] / "plugin"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the package, metadata and all, on the path of this Python."""
    monkeypatch.syspath_prepend(PACKAGE)


def asked(**plugins: dict[str, JsonValue]) -> MetricsSpec:
    """Ask for plug-ins."""
    return MetricsSpec.model_validate({"plugins": plugins})


def problems_of(spec: MetricsSpec) -> list[str]:
    """Check plug-ins that cannot be used."""
    with pytest.raises(SpecError) as caught:
        check_plugins(spec)
    return [str(problem).strip() for problem in caught.value.problems]


@pytest.mark.usefixtures("installed")
def test_plugin_is_found_with_its_package_and_its_settings() -> None:
    """Settings pass through the plug-in's own model, which also fills in defaults."""
    found = load_plugins(asked(word_overlap={"least": 0.5}, short={"characters": 3}))
    check_plugins(asked(word_overlap={}, short={}))
    overlap, short = found["word_overlap"], found["short"]
    assert isinstance(overlap, PluginMetric)
    assert isinstance(short, PluginMetric)
    assert overlap.made_by == "word-overlap 1.2"
    assert overlap.scale.title == "Word overlap"
    assert (overlap.settings.fold_case, overlap.settings.least) == (True, 0.5)  # type: ignore[union-attr]
    assert short.settings == {"characters": 3}
    assert short.scale.title == "short"


@pytest.mark.usefixtures("installed")
def test_everything_that_is_wrong_is_said_at_once() -> None:
    """Unknown, unfit, unimportable and refused settings: one message, the installed ones in it."""
    wrong = asked(
        rouge={}, no_metric={}, not_there={}, word_overlap={"least": 2, "fold_case": "x"}, short={}
    )
    said = problems_of(wrong)
    assert len(said) == 5
    for words in (
        "plugins.rouge: not installed where the report is made; there: distance, fragile, ",
        "plugins.no_metric: word_overlap:overlap of word-overlap 1.2 is not a modelmill.",
        "plugins.not_there: cannot be imported from word-overlap 1.2 (AttributeError",
        "plugins.word_overlap.least: Input should be less than or equal to 1",
        "plugins.word_overlap.fold_case: Input should be a valid boolean",
    ):
        assert any(words in each for each in said), words


def test_without_the_package_nothing_is_installed() -> None:
    """The fixture is what makes the plug-ins be there."""
    assert problems_of(asked(word_overlap={})) == [
        "infer.metrics.plugins.word_overlap: not installed where the report is made; there: none"
    ]


@pytest.mark.usefixtures("installed")
def test_two_packages_with_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of them counts must not depend on the order of a path."""
    info = tmp_path / "other-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: other\nVersion: 9\n", encoding="utf-8")
    text = "[modelmill.metrics]\nshort = word_overlap:short\n"
    (info / "entry_points.txt").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (said,) = problems_of(asked(short={}))
    assert said.endswith("brought by more than one package: other 9, word-overlap 1.2")
