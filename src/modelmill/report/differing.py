"""Find what two plans ask for differently: only what differs, by dotted key.

Knows plans.  Quantized models are found by their names, wherever they stand in the list; other
lists are compared place by place, and as a whole where they hold plain values.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import JsonValue, TypeAdapter

from modelmill.report.comparison import SettingDifference
from modelmill.spec.closed import Spec
from modelmill.spec.plan import Plan
from modelmill.spec.quantize import variant_of
from modelmill.spec.run import RunSpec

_JSON: Final[TypeAdapter[JsonValue]] = TypeAdapter(JsonValue)


def differing_settings(a: Plan, b: Plan) -> tuple[SettingDifference, ...]:
    """List what differs between two runs as asked, with defaults, and what was found for it."""
    return (
        *_differing(_asked(a.run), _asked(b.run), ""),
        *_differing(_document(a.facts), _document(b.facts), "place"),
        *_contents(a, b),
        *_differing({**a.again}, {**b.again}, "again"),
    )


def _asked(run: RunSpec) -> JsonValue:
    named = {variant_of(spec): _document(spec) for spec in run.quantize}
    return _JSON.validate_python({**run.model_dump(mode="json"), "quantize": named})


def _document(value: Spec) -> JsonValue:
    return _JSON.validate_python(value.model_dump(mode="json"))


def _contents(a: Plan, b: Plan) -> Iterator[SettingDifference]:
    """Name sources that both call the same and that held something else."""
    for source in sorted(a.pins.keys() & b.pins.keys()):
        before, after = a.pins[source].digest, b.pins[source].digest
        if before != after:
            yield SettingDifference(key=f"sources.{source}", a=before, b=after)


def _differing(a: JsonValue, b: JsonValue, key: str) -> Iterator[SettingDifference]:
    if a == b:
        return
    inner_a, inner_b = _inner(a), _inner(b)
    if inner_a is None or inner_b is None:
        yield SettingDifference(key=key, a=a, b=b)
        return
    for name in dict.fromkeys([*inner_a, *inner_b]):
        here = name if not key else f"{key}{name}" if name.startswith("[") else f"{key}.{name}"
        if name not in inner_b:
            yield SettingDifference(key=here, a=inner_a[name], only_in="a")
        elif name not in inner_a:
            yield SettingDifference(key=here, b=inner_b[name], only_in="b")
        else:
            yield from _differing(inner_a[name], inner_b[name], here)


def _inner(value: JsonValue) -> Mapping[str, JsonValue] | None:
    match value:
        case dict():
            return value
        case list() if any(isinstance(each, dict | list) for each in value):
            return {f"[{index}]": each for index, each in enumerate(value)}
        case _:
            return None
