"""What a report is made from: a plan and what became of each of its stages.

Knows records and plans.  Must not know where they lie: the report stage reads them from
the store and puts them in here, and everything after that is computation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from modelmill.spec.figures import Measurements
from modelmill.spec.plan import Plan, Stage, folder_of
from modelmill.spec.prices import Prices
from modelmill.spec.records import Event, Foretold, Manifest, Prediction

Status = Literal["done", "adopted", "failed", "skipped", "missing"]
"""`done` by this run, `adopted` from another one, finally `failed`, `skipped` because an
input failed, or `missing`: not there yet."""


@dataclass(frozen=True)
class StageFacts:
    """What became of one stage."""

    stage: Stage
    status: Status
    manifest: Manifest | None = None
    """Of the commit; settings and versions are read from here, not from the plan."""
    manifest_sha256: str = ""
    uri: str = ""
    """Where its files are, for other programs too."""
    measurements: Measurements | None = None
    predictions: tuple[Prediction, ...] = ()
    """Of an infer stage, in any order."""
    fingerprints: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Of a fetch stage, by split: its prompts by digest, so that leaks can be counted."""
    attempts: int = 0
    """Processes this run started for it."""
    adopted_from: str = ""
    """The run that made the commit, where it was another one."""
    exit_code: int | None = None
    """Of the last attempt of a failed stage."""
    message: str = ""
    """Why it failed, in the words of the error."""


@dataclass(frozen=True)
class RunFacts:
    """What became of one run."""

    run: str
    plan: Plan
    plan_sha256: str
    created: str
    """When the sources were pinned and the plan was made: UTC, ISO 8601."""
    stages: tuple[StageFacts, ...]
    """In the plan's order, without report."""
    events: tuple[Event, ...] = ()
    foretold: Mapping[str, Foretold] = field(default_factory=dict)
    """By key, before the stage ran; a run made by an earlier version has none."""
    prices: Prices = field(default_factory=Prices)

    def uri_of(self, model: str) -> str:
        """Say where a model can be loaded from; empty where it is not committed."""
        holder = self.plan.holders().get(model)
        stage = None if holder is None else self.find(holder.name)
        if stage is None or not stage.uri:
            return ""
        return f"{stage.uri}/{folder_of(model)}".rstrip("/")

    def find(self, name: str) -> StageFacts | None:
        """Find a stage by its name; None where the plan has none of that name."""
        for facts in self.stages:
            if facts.stage.name == name:
                return facts
        return None
