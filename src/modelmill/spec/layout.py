"""Lay out the stages of a run: a pure function of what was asked for and the facts of a place."""

from collections.abc import Iterator, Mapping

from modelmill.spec.closed import Dtype
from modelmill.spec.finetune import FinetuneSpec
from modelmill.spec.infer import GateSpec
from modelmill.spec.plan import Plan, Stage, StageInput, stage_key
from modelmill.spec.profile import Facts
from modelmill.spec.quantize import CalibratedSpec, QuantizeSpec, variant_of
from modelmill.spec.run import RunSpec
from modelmill.spec.settings import (
    ContractSettings,
    FetchAdapterSettings,
    FetchDataSettings,
    FetchModelSettings,
    FetchTestSettings,
    FetchTextSettings,
    FinetuneSettings,
    GateSettings,
    InferSettings,
    MergeSettings,
    Pin,
    QuantizeSettings,
    ReportSettings,
    StageSettings,
    WeightedPin,
)


def sources_of(run: RunSpec) -> tuple[str, ...]:
    """List every source that must be pinned before there can be a plan."""
    train = [each.source for each in run.data.train_sources()]
    asked = [run.model.source, *train, run.data.eval, run.data.test, given_adapter(run)]
    asked += calibration_texts(run)
    return tuple(dict.fromkeys(source for source in asked if isinstance(source, str)))


def calibration_texts(run: RunSpec) -> tuple[str, ...]:
    """List the texts that quantizers look at, each once."""
    calibrated = [spec for spec in run.quantize if isinstance(spec, CalibratedSpec)]
    texts = [each.calibration.text for each in calibrated]
    return tuple(dict.fromkeys(text for text in texts if text is not None))


def given_adapter(run: RunSpec) -> str | None:
    """Name the adapter that a run begins with, to merge it or to go on from it."""
    return (run.finetune.adapter or run.finetune.init_adapter) if run.finetune else None


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
            gate=None if run.gate is None else _gate(run, run.gate),
            samples=run.report.samples,
            slice=run.report.slice,
            model_note=run.model.note,
            seed=run.seed,
        ),
    )


def _gate(run: RunSpec, asked: GateSpec) -> GateSettings:
    return GateSettings(
        models=asked.models,
        metric=asked.metric,
        against=asked.against or run.quantized_from,
        max_worse=asked.max_worse,
    )


class _Layout:
    """Builds stages one after the other; later ones refer to earlier ones."""

    def __init__(
        self, run: RunSpec, facts: Facts, pins: Mapping[str, Pin], again: Mapping[str, int]
    ) -> None:
        self.run = run
        self.facts = facts
        self.pins = pins
        self.again = again
        self.contract = ContractSettings(
            max_length=run.data.max_length,
            format=run.data.format,
            chat_template=run.data.chat_template,
        )

    def stages(self) -> Iterator[Stage]:
        run = self.run
        model = self._stage("fetch-model", FetchModelSettings(source=self.pins[run.model.source]))
        yield model
        data = self._fetch_data()
        if data is not None:
            yield data
        test = self._fetch_test()
        yield test
        texts = self._fetch_texts()
        yield from texts.values()
        adapter, final = None, model
        for stage in self._tuned(model, data):
            yield stage
            if stage.kind in ("fetch-adapter", "finetune"):
                adapter = stage
            final = stage
        compared = [(run.quantized_from, final)] if final is not model else []
        for spec in run.quantize:
            quantized = self._quantize(spec, final, data, texts)
            yield quantized
            compared.append((variant_of(spec), quantized))
        yield self._infer("base", model, test)
        if data is not None and run.data.format != "text" and final is not model:
            # Where nothing is learned the base is what others were quantized from: all are asked
            # alike.  (Asked with examples the base of examples/quantize-only has an NLL of 1.465
            # instead of 1.817, and an 8-bit copy with 1.812 would look much worse than it.)
            yield self._infer_own(model, test, data)
        if adapter is not None and run.infer.adapter:
            yield self._infer("adapter", model, test, adapter)
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
                text_field=self._text_field(),
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

    def _fetch_test(self) -> Stage:
        data = self.run.data
        return self._stage(
            "fetch-test",
            FetchTestSettings(
                format=data.format,
                test=self.pins[data.test],
                template=data.template,
                text_field=self._text_field(),
            ),
        )

    def _fetch_texts(self) -> Mapping[str, Stage]:
        """Lay out a stage for each text that is calibrated on, by the text as asked."""
        return {
            text: self._stage(
                "fetch-text" if number == 1 else f"fetch-text-{number}",
                FetchTextSettings(source=self.pins[text]),
            )
            for number, text in enumerate(calibration_texts(self.run), start=1)
        }

    def _text_field(self) -> str | None:
        return self.run.data.dataset_text_field if self.run.data.format == "text" else None

    def _tuned(self, model: Stage, data: Stage | None) -> Iterator[Stage]:
        """Lay out what makes the tuned model; the last one holds it."""
        asked, given = self.run.finetune, given_adapter(self.run)
        if asked is None:
            return
        adapter = None
        if given is not None:
            adapter = self._stage("fetch-adapter", FetchAdapterSettings(source=self.pins[given]))
            yield adapter
        if asked.is_trained:
            assert data is not None
            adapter = self._finetune(model, data, adapter)
            yield adapter
        if asked.method == "lora":
            assert adapter is not None
            yield self._merge(model, adapter)

    def _finetune(self, model: Stage, data: Stage, first: Stage | None) -> Stage:
        assert self.run.finetune is not None
        return self._stage(
            "finetune",
            FinetuneSettings(
                finetune=self.run.finetune,
                contract=self.contract,
                too_long=self.run.data.too_long,
                loss_on=self.run.data.loss_on,
                dtype=self._written_dtype(self.run.finetune),
                seed=self.run.seed,
            ),
            _input("model", model),
            _input("data", data, "train.jsonl", "eval.jsonl"),
            *([] if first is None else [_input("adapter", first)]),
        )

    def _written_dtype(self, tuned: FinetuneSpec) -> Dtype | None:
        if tuned.method != "full":
            return None
        # A scale has 11 bits and is multiplied by up to 8 more: 16 bits would round the product.
        return "float32" if tuned.qat is not None else self.run.merge.dtype

    def _merge(self, model: Stage, adapter: Stage) -> Stage:
        assert self.run.finetune is not None
        is_ours = adapter.kind == "finetune"
        parts = ("adapter", "tokenizer", "prompt.json", "probe.jsonl") if is_ours else ()
        return self._stage(
            "merge",
            MergeSettings(
                merge=self.run.merge,
                load_in=self.run.finetune.load_in,
                contract=None if is_ours else self.contract,
            ),
            _input("model", model),
            _input("adapter", adapter, *parts),
        )

    def _quantize(
        self, spec: QuantizeSpec, model: Stage, data: Stage | None, texts: Mapping[str, Stage]
    ) -> Stage:
        inputs = [_input("model", model)]
        if isinstance(spec, CalibratedSpec):
            if spec.calibration.has_rows and data is not None:
                inputs.append(_input("data", data, "train.jsonl"))
            if spec.calibration.text is not None:
                inputs.append(_input("text", texts[spec.calibration.text], "text.jsonl"))
        return self._stage(
            f"quantize-{variant_of(spec)}",
            QuantizeSettings(quantize=spec, contract=self.contract, seed=self.run.seed),
            *inputs,
        )

    def _infer(
        self, variant: str, model: Stage, test: Stage, adapter: Stage | None = None
    ) -> Stage:
        inputs = [_input("model", model), _input("test", test, "test.jsonl")]
        if adapter is not None:
            inputs.append(_input("adapter", adapter))
        return self._stage(f"infer-{variant}", self._infer_settings(adapter), *inputs)

    def _infer_own(self, model: Stage, test: Stage, data: Stage) -> Stage:
        """Ask the base in its best form, chosen on rows that are no test rows."""
        own = {"prompt": "own", "shots": self.run.infer.shots, "seed": self.run.seed}
        return self._stage(
            "infer-base-own",
            self._infer_settings(None).model_copy(update=own),
            _input("model", model),
            _input("test", test, "test.jsonl"),
            _input("data", data, "train.jsonl", "eval.jsonl"),
        )

    def _infer_settings(self, adapter: Stage | None) -> InferSettings:
        infer, tuned = self.run.infer, self.run.finetune
        return InferSettings(
            prompt="contract",
            shots=None,
            max_new_tokens=infer.max_new_tokens,
            batch_size=infer.batch_size,
            dtype=self.facts.dtype if infer.dtype == "auto" else infer.dtype,
            nll=infer.metrics.nll is not None,
            contract=self.contract,
            base_load_in=tuned.load_in if adapter is not None and tuned is not None else None,
            seed=None,
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
