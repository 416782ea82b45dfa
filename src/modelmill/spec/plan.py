"""Turn a run and the facts of a place into stages with keys: a pure function.

A key names a recipe, not bits: the kind of stage, its recipe number, every setting that
can change the result, the accelerator class where numbers depend on it, and the keys of
the inputs.  So equal stages are found again in any run, and a change recomputes exactly
what depends on it.
"""

from collections.abc import Mapping
from typing import Final

from pydantic import JsonValue

from modelmill.spec.canonical import canonical_json, sha256_of
from modelmill.spec.closed import Spec
from modelmill.spec.names import DEVICE_DEPENDENT, ENVIRONMENT_OF, Environment, Kind, is_fetch
from modelmill.spec.profile import Facts
from modelmill.spec.run import RunSpec
from modelmill.spec.settings import (
    NEUTRAL,
    UNKEYED,
    UNKEYED_WORDS,
    Pin,
    ReportSettings,
    Settings,
    StageSettings,
)

RECIPES: Final[Mapping[Kind, int]] = {
    "fetch-model": 1,
    "fetch-data": 1,
    "fetch-test": 1,
    "fetch-adapter": 1,
    "fetch-text": 1,
    "finetune": 1,
    "merge": 1,
    "quantize": 1,
    "infer": 1,
}
"""Raised by hand when the same settings come to mean another result; a golden test asks."""


class StageInput(Spec):
    """An artifact a stage reads, or the part of it that it needs."""

    role: str
    """What the stage function calls it."""
    stage: str
    kind: Kind
    key: str
    parts: tuple[str, ...] = ()
    """Files or folders; empty for all of it."""


class Stage(Spec):
    """One stage of a plan."""

    name: str
    kind: Kind
    key: str
    settings: StageSettings
    inputs: tuple[StageInput, ...] = ()

    @property
    def environment(self) -> Environment:
        """The locked set of packages it runs with."""
        return ENVIRONMENT_OF[self.kind]


class Plan(Spec):
    """What a run will do; immutable, and all a stage reads besides its inputs."""

    format: int = 1
    run: RunSpec
    facts: Facts
    pins: Mapping[str, Pin]
    """By the source as asked."""
    again: Mapping[str, int]
    """How often the user asked for a stage to be computed anew."""
    stages: tuple[Stage, ...]
    """Every stage but report, in an order in which inputs come first."""
    report: ReportSettings

    def stage(self, name: str) -> Stage:
        """Find a stage by its name.

        Raises:
            KeyError: there is none of that name.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def holders(self) -> Mapping[str, Stage]:
        """Name the stage whose artifact holds each model of the run, an adapter among them."""
        whole = self.run.finetune is not None and self.run.finetune.method == "full"
        names: Mapping[str, str] = {
            "fetch-model": "base",
            "fetch-adapter": "adapter",
            # After the one it went on from, and so in its place.
            "finetune": "finetuned" if whole else "adapter",
            "merge": "merged",
        }
        return {
            names.get(stage.name, stage.name.removeprefix("quantize-")): stage
            for stage in self.stages
            if stage.name in names or stage.kind == "quantize"
        }

    def made(self) -> Mapping[str, Stage]:
        """Name the stage that makes each model; what was only fetched is left out."""
        return {name: each for name, each in self.holders().items() if not is_fetch(each.kind)}


def folder_of(model: str) -> str:
    """Name the folder of an artifact that a model lies in; empty for all of it."""
    return "adapter" if model == "adapter" else ""


def plan_bytes(plan: Plan) -> bytes:
    """Write the canonical document whose SHA-256 names the plan."""
    return canonical_json(plan.model_dump(mode="json"))


def report_digest(plan_sha256: str, commits: Mapping[str, str]) -> str:
    """Name what a report is about: a plan, and which commits its stages have come to.

    Args:
        plan_sha256: the plan.
        commits: manifest digests of the stages that are committed; the others have failed
            or were skipped.
    """
    return sha256_of({"plan": plan_sha256, "commits": dict(commits)})


def stage_key(
    kind: Kind,
    settings: Settings,
    inputs: Mapping[str, str],
    *,
    accelerator: str,
    again: int = 0,
) -> str:
    """Digest everything that decides a stage's result.

    Args:
        kind: what the stage does.
        settings: what it is told; `UNKEYED` and `NEUTRAL` ones are left out.
        inputs: keys of its inputs by role.
        accelerator: entered only for kinds in `DEVICE_DEPENDENT`.
        again: how often the user asked for another computation.
    """
    return sha256_of(
        {
            "kind": kind,
            "recipe": RECIPES[kind],
            "settings": _keyed_settings(settings),
            "accelerator": accelerator if kind in DEVICE_DEPENDENT else None,
            "again": again,
            "inputs": dict(inputs),
        }
    )


def _keyed_settings(settings: Settings) -> dict[str, JsonValue]:
    return _keyed(settings.model_dump(mode="json"), "")


def _keyed(values: Mapping[str, JsonValue], path: str) -> dict[str, JsonValue]:
    kept: dict[str, JsonValue] = {}
    for name, given in values.items():
        here = f"{path}{name}"
        value = given
        if isinstance(given, list):
            value = [each for each in given if each not in UNKEYED_WORDS.get(here, ())]
        if here in UNKEYED or (here in NEUTRAL and NEUTRAL[here] == value):
            continue
        kept[name] = _keyed(value, f"{here}.") if isinstance(value, dict) else value
    return kept
