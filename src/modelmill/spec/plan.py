"""Turn a run and the facts of a place into stages with keys: a pure function.

A key names a recipe, not bits: the kind of stage, its recipe number, every setting that
can change the result, the accelerator class where numbers depend on it, and the keys of
the inputs.  So equal stages are found again in any run, and a change recomputes exactly
what depends on it.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import JsonValue

from modelmill.spec.canonical import canonical_json, sha256_of
from modelmill.spec.closed import Spec
from modelmill.spec.names import DEVICE_DEPENDENT, ENVIRONMENT_OF, Environment, Kind
from modelmill.spec.profile import Facts
from modelmill.spec.quantize import GptqSpec, QuantizeSpec, variant_of
from modelmill.spec.run import RunSpec
from modelmill.spec.settings import (
    NEUTRAL,
    UNKEYED,
    ContractSettings,
    FetchDataSettings,
    FetchModelSettings,
    FetchTestSettings,
    FinetuneSettings,
    InferSettings,
    MergeSettings,
    Pin,
    QuantizeSettings,
    ReportSettings,
    Settings,
    StageSettings,
    WeightedPin,
)

RECIPES: Final[Mapping[Kind, int]] = {
    "fetch-model": 1,
    "fetch-data": 1,
    "fetch-test": 1,
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


def sources_of(run: RunSpec) -> tuple[str, ...]:
    """List every source that must be pinned before there can be a plan."""
    train = [each.source for each in run.data.train_sources()]
    asked = [run.model.source, *train, run.data.eval, run.data.test]
    return tuple(dict.fromkeys(source for source in asked if isinstance(source, str)))


def make_plan(
    run: RunSpec, facts: Facts, pins: Mapping[str, Pin], again: Mapping[str, int] | None = None
) -> Plan:
    """Lay out the stages of a run.

    Args:
        run: what was asked for.
        facts: the profile's facts that numbers depend on.
        pins: one for every source of `sources_of(run)`.
        again: by stage name, raised by `run --again STAGE`.
    """
    counters = dict(again or {})
    stages = tuple(_Layout(run, facts, pins, counters).stages())
    return Plan(
        run=run,
        facts=facts,
        pins={source: pins[source] for source in sources_of(run)},
        again={name: count for name, count in sorted(counters.items()) if count},
        stages=stages,
        report=ReportSettings(
            metrics=run.infer.metrics,
            gate=run.gate,
            samples=run.report.samples,
            slice=run.report.slice,
            model_note=run.model.note,
            seed=run.seed,
        ),
    )


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
    for name, value in values.items():
        here = f"{path}{name}"
        if here in UNKEYED or (here in NEUTRAL and NEUTRAL[here] == value):
            continue
        kept[name] = _keyed(value, f"{here}.") if isinstance(value, dict) else value
    return kept


class _Layout:
    """Builds stages one after the other; later ones refer to earlier ones."""

    def __init__(
        self, run: RunSpec, facts: Facts, pins: Mapping[str, Pin], again: Mapping[str, int]
    ) -> None:
        self.run = run
        self.facts = facts
        self.pins = pins
        self.again = again
        self.contract = ContractSettings(max_length=run.data.max_length)

    def stages(self) -> Iterator[Stage]:
        run = self.run
        model = self._stage("fetch-model", FetchModelSettings(source=self.pins[run.model.source]))
        yield model
        data = self._fetch_data()
        if data is not None:
            yield data
        test = self._stage(
            "fetch-test",
            FetchTestSettings(
                format=run.data.format,
                test=self.pins[run.data.test],
                template=run.data.template,
            ),
        )
        yield test
        final = model
        if run.finetune is not None and data is not None:
            adapter = self._finetune(model, data)
            final = self._merge(model, adapter)
            yield adapter
            yield final
        compared = [("merged", final)] if final is not model else []
        for spec in run.quantize:
            quantized = self._quantize(spec, final, data)
            yield quantized
            compared.append((variant_of(spec), quantized))
        yield self._infer("base", model, test)
        if data is not None:
            yield self._infer("base-own", model, test, data)
        for variant, source in compared:
            yield self._infer(variant, source, test)

    def _fetch_data(self) -> Stage | None:
        data = self.run.data
        if data.train is None:
            return None
        return self._stage(
            "fetch-data",
            FetchDataSettings(
                format=data.format,
                train=self._train(),
                eval_source=self.pins[data.eval] if isinstance(data.eval, str) else None,
                eval_share=data.eval if isinstance(data.eval, float) else None,
                template=data.template,
                seed=self.run.seed,
            ),
        )

    def _train(self) -> Pin | tuple[WeightedPin, ...]:
        data = self.run.data
        if isinstance(data.train, str):
            return self.pins[data.train]
        return tuple(
            WeightedPin(pin=self.pins[each.source], weight=each.weight)
            for each in data.train_sources()
        )

    def _finetune(self, model: Stage, data: Stage) -> Stage:
        assert self.run.finetune is not None
        return self._stage(
            "finetune",
            FinetuneSettings(
                finetune=self.run.finetune,
                contract=self.contract,
                too_long=self.run.data.too_long,
                seed=self.run.seed,
            ),
            _input("model", model),
            _input("data", data, "train.jsonl", "eval.jsonl"),
        )

    def _merge(self, model: Stage, adapter: Stage) -> Stage:
        assert self.run.finetune is not None
        return self._stage(
            "merge",
            MergeSettings(merge=self.run.merge, load_in=self.run.finetune.load_in),
            _input("model", model),
            _input("adapter", adapter, "adapter", "tokenizer", "prompt.json", "probe.jsonl"),
        )

    def _quantize(self, spec: QuantizeSpec, model: Stage, data: Stage | None) -> Stage:
        inputs = [_input("model", model)]
        if isinstance(spec, GptqSpec) and data is not None:
            inputs.append(_input("data", data, "train.jsonl"))
        return self._stage(
            f"quantize-{variant_of(spec)}",
            QuantizeSettings(quantize=spec, contract=self.contract, seed=self.run.seed),
            *inputs,
        )

    def _infer(self, variant: str, model: Stage, test: Stage, data: Stage | None = None) -> Stage:
        infer = self.run.infer
        inputs = [_input("model", model), _input("test", test, "test.jsonl")]
        if data is not None:
            inputs.append(_input("data", data, "train.jsonl", "eval.jsonl"))
        return self._stage(
            f"infer-{variant}",
            InferSettings(
                prompt="contract" if data is None else "own",
                shots=None if data is None else infer.shots,
                max_new_tokens=infer.max_new_tokens,
                batch_size=infer.batch_size,
                dtype=self.facts.dtype if infer.dtype == "auto" else infer.dtype,
                nll=infer.metrics.nll is not None,
                contract=self.contract,
                seed=None if data is None else self.run.seed,
            ),
            *inputs,
        )

    def _stage(self, name: str, settings: StageSettings, *inputs: StageInput) -> Stage:
        return Stage(
            name=name,
            kind=settings.kind,
            key=stage_key(
                settings.kind,
                settings,
                {each.role: each.key for each in inputs},
                accelerator=self.facts.accelerator,
                again=self.again.get(name, 0),
            ),
            settings=settings,
            inputs=inputs,
        )


def _input(role: str, stage: Stage, *parts: str) -> StageInput:
    return StageInput(role=role, stage=stage.name, kind=stage.kind, key=stage.key, parts=parts)
