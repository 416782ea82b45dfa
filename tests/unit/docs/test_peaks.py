"""A report's peaks take the place of those that were there."""

import json
from pathlib import Path

import pytest

with pytest.MonkeyPatch.context() as patch:
    # What draws the pages is not installed.
    patch.syspath_prepend(str(Path(__file__).parents[3]))
    from docs.fit import PEAKS, Peaks
    from docs.peaks import Report, recorded

CREATED = "2030-01-01T00:00:00Z"


def report(run: str, **peaks: int | None) -> Report:
    """Say what a report says of stages, with underscores for their hyphens."""
    stages = [
        {"stage": name.replace("_", "-"), "peak_rss_bytes": each, "status": "done"}
        for name, each in peaks.items()
    ]
    return Report.model_validate({"run": run, "created": CREATED, "stages": stages})


def test_peaks_of_a_run_are_replaced_and_no_others() -> None:
    """Stages that were never measured, or did not run, change nothing."""
    text = PEAKS.read_text(encoding="utf-8")
    made = recorded(text, report("quick", infer_base=7, quantize_nf4=None, fetch_model=8))
    before, after = (Peaks.model_validate_json(each) for each in (text, made))
    assert [run for run in after.runs if run.run != "quick"] == [
        run for run in before.runs if run.run != "quick"
    ]
    old, new = (next(run for run in each.runs if run.run == "quick") for each in (before, after))
    assert new.created == CREATED
    changed = [each for each in new.stages if each not in old.stages]
    assert [(each.stage, each.peak_rss_bytes, each.is_older) for each in changed] == [
        ("infer-base", 7, False)
    ]
    assert json.loads(made).keys() == json.loads(text).keys()


def test_settings_are_those_by_which_it_was_measured() -> None:
    """On another CPU the dtype is another; defaults that were left out stay out."""
    stage = {
        "stage": "infer-base",
        "peak_rss_bytes": 7,
        "settings": {"dtype": "float16", "kind": "infer", "unknown": 1},
    }
    made = recorded(
        PEAKS.read_text(encoding="utf-8"),
        Report.model_validate({"run": "quick", "created": CREATED, "stages": [stage]}),
    )
    run = next(each for each in Peaks.model_validate_json(made).runs if each.run == "quick")
    settings = next(each for each in run.stages if each.stage == "infer-base").settings
    assert (settings.kind, settings.dtype) == ("infer", "float16")


def test_run_that_is_not_there_is_refused() -> None:
    """Its rows' lengths and settings would be missing."""
    with pytest.raises(ValueError, match="no run is called another"):
        recorded(PEAKS.read_text(encoding="utf-8"), report("another"))
