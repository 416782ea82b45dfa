"""Find out which stages are computed anew when one setting changes, by changing it.

Two plans are made, one with another value, and their keys compared; so what is said follows
from `UNKEYED`, `NEUTRAL` and the plan, and cannot differ from what a run does.  Pure.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

from pydantic import JsonValue, ValidationError

from modelmill.spec.layout import make_plan, sources_of
from modelmill.spec.plan import Plan
from modelmill.spec.profile import Facts
from modelmill.spec.redaction import KeyPath
from modelmill.spec.run import RunSpec
from modelmill.spec.schema import KeyRow, Schema, choices_of, forms_of
from modelmill.spec.settings import Pin

REPORT: Final = "report"
"""Made again whenever anything changes: it says what was asked for."""

_HERE: Final = Facts(accelerator="cpu", dtype="float32")
_ELSEWHERE: Final = {"accelerator": "cuda", "dtype": "bfloat16"}


def stages_anew(
    examples: Sequence[RunSpec], row: KeyRow, form: Mapping[str, str], schema: Schema
) -> tuple[str, ...] | None:
    """List the stages that are computed anew when a key of `run.yaml` gets another value.

    Args:
        examples: runs to try it in; the first decides in which the key can change.
        row: the key.
        form: what the item must say for the key to belong to it, such as `method: gptq`.
        schema: of a run.

    Returns:
        Names of stages in the order of the plan, report last; None if no other value can be
        tried, because there is one only or others need more than this key changed.
    """
    forms = forms_of(row.node, schema)
    for run in (each for example in examples for each in _situations(example, row, form)):
        before = _plan(run)
        found = [_difference(before, _plan(other)) for other in _changed(run, row, form, forms)]
        if found:
            # A value may mean the same as the present one, as `auto` does.
            return max(found, key=len)
    return None


def _changed(
    run: RunSpec, row: KeyRow, form: Mapping[str, str], forms: Sequence[Schema]
) -> Iterator[RunSpec]:
    """Make every run that differs in this one key; which values are good, the model decides."""
    data: JsonValue = run.model_dump(mode="json")
    for path in _paths(data, row.key.split("."), form):
        for value in _others(_at(data, path), run, forms):
            with suppress(ValidationError):
                yield RunSpec.model_validate(_with(data, path, value))


def stages_elsewhere(run: RunSpec, key: str) -> tuple[str, ...]:
    """List the stages that are computed anew when a key of the profile gets another value."""
    if key not in Facts.model_fields:
        return ()
    there = _HERE.model_copy(update={key: _ELSEWHERE[key]})
    return _difference(_plan(run), _plan(run, there))


def _situations(run: RunSpec, row: KeyRow, form: Mapping[str, str]) -> Iterator[RunSpec]:
    """Take the gate away where it is in the way, and put an item of the form where there is none.

    A gate names models, and names follow values.
    """
    yield run
    yield run.model_copy(update={"gate": None})
    name, is_item, _ = row.key.partition("[].")
    if form and is_item:
        with suppress(ValidationError):
            yield RunSpec.model_validate(
                {**run.model_dump(mode="json"), "gate": None, name: [dict(form)]}
            )


def _plan(run: RunSpec, facts: Facts = _HERE) -> Plan:
    return make_plan(run, facts, {each: Pin(address=each, digest=each) for each in sources_of(run)})


def _difference(before: Plan, after: Plan) -> tuple[str, ...]:
    lost = _only_in(before, after)
    # A name may follow the value, as in quantize-gptq-3: the one before is the known one.
    return (*(lost or _only_in(after, before)), REPORT)


def _only_in(plan: Plan, other: Plan) -> tuple[str, ...]:
    known = {stage.key for stage in other.stages}
    return tuple(stage.name for stage in plan.stages if stage.key not in known)


def _paths(data: JsonValue, keys: Sequence[str], form: Mapping[str, str]) -> Iterator[KeyPath]:
    """Find where a key stands in a document, in every item that has the form."""
    if not keys:
        yield ()
        return
    name, rest = keys[0].removesuffix("[]"), keys[1:]
    if not isinstance(data, dict) or name not in data:
        return
    inner = data[name]
    if not keys[0].endswith("[]"):
        yield from ((name, *path) for path in _paths(inner, rest, form))
        return
    for index, item in enumerate(inner if isinstance(inner, list) else ()):
        if isinstance(item, dict) and form.items() <= item.items():
            yield from ((name, index, *path) for path in _paths(item, rest, {}))


def _others(present: JsonValue, run: RunSpec, forms: Sequence[Schema]) -> Iterator[JsonValue]:
    """Propose values that differ from the present one."""
    for form in forms:
        for value in _values(present, run, form):
            if value != present or type(value) is not type(present):
                yield value


def _values(present: JsonValue, run: RunSpec, form: Schema) -> Iterator[JsonValue]:
    if choices := choices_of(form):
        yield from choices
        return
    number = present if isinstance(present, int | float) else 1
    text = present if isinstance(present, str) else ""
    items = present if isinstance(present, list) else []
    match form.get("type"):
        case "boolean":
            yield from (False, True)
        case "integer":
            yield from (int(number) * 2, int(number) + 1, int(number) - 1, 1)
        case "number":
            yield from (number / 2, number * 2, 0.5)
        case "string":
            yield from (f"{text}x", *run.models())
        case "array":
            inner = form.get("items")
            known = choices_of(inner) if isinstance(inner, dict) else ()
            yield from ([*items, each] for each in (*known, "x"))
            yield items[:-1]
        case "object":
            yield {}
        case "null":
            yield None


def _at(data: JsonValue, path: KeyPath) -> JsonValue:
    for part in path:
        if isinstance(data, dict):
            data = data[str(part)]
        elif isinstance(data, list):
            data = data[int(part)]
    return data


def _with(data: JsonValue, path: KeyPath, value: JsonValue) -> JsonValue:
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(data, list):
        index = int(first)
        return [*data[:index], _with(data[index], rest, value), *data[index + 1 :]]
    assert isinstance(data, dict)
    return {**data, str(first): _with(data[str(first)], rest, value)}
