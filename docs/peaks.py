"""Put what the stages of a run took into measured/peaks.json, which docs/fit.md is drawn from.

    modelmill report RUN -o json | python -m docs.peaks

from the root of the checkout.  The run and its stages are there already, with the lengths of the
rows; what it took before, and by which settings, is replaced.  `python -m docs.generate` draws the
page anew.
"""

import json
import sys
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, JsonValue

from docs.fit import PEAKS


class _Stage(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    stage: str
    peak_rss_bytes: int | None
    settings: Mapping[str, JsonValue] = {}


class Report(BaseModel):
    """What is read of a report."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    run: str
    created: str
    stages: tuple[_Stage, ...]

    @property
    def measured(self) -> Mapping[str, _Stage]:
        """Map names to stages that took anything."""
        return {each.stage: each for each in self.stages if each.peak_rss_bytes}


def recorded(text: str, report: Report) -> str:
    """Replace the peaks of one run.

    Raises:
        ValueError: no run of that name is there.
    """
    # As it is written there, without the defaults of settings.
    peaks = json.loads(text)
    runs = [run for run in peaks["runs"] if run["run"] == report.run]
    if not runs:
        raise ValueError(f"no run is called {report.run}")
    for run in runs:
        run["created"] = report.created
        for stage in run["stages"]:
            taken = report.measured.get(stage["stage"])
            if taken is not None:
                stage["peak_rss_bytes"] = taken.peak_rss_bytes
                # The dtype is another on another CPU.
                stage["settings"] = {
                    key: taken.settings.get(key, value) for key, value in stage["settings"].items()
                }
                stage.pop("is_older", None)
    return json.dumps(peaks, indent=2) + "\n"


if __name__ == "__main__":
    made = Report.model_validate_json(sys.stdin.buffer.read())
    PEAKS.write_text(recorded(PEAKS.read_text(encoding="utf-8"), made), encoding="utf-8")
