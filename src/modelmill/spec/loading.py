"""Read what a user wrote into the spec, and name everything that is wrong with it at once.

The only module that turns documents into models.  YAML 1.2 (so `2e-4` is a number and `no`
is a word), JSON and Helm's values give the same model and therefore the same digests.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails

from modelmill.spec.closed import Spec
from modelmill.spec.errors import InputMissing, Problem, SpecError
from modelmill.spec.profile import Profile
from modelmill.spec.quantize import METHODS
from modelmill.spec.reading import DEPTH_LIMIT, SIZE_LIMIT_BYTES, Lines, check_size, parse_yaml
from modelmill.spec.redaction import KeyPath, redacted, secrets_in
from modelmill.spec.run import RunSpec

SHOWN_CHARACTERS = 60
"""Of a value that is wrong."""

MISSING: Final[Mapping[type[Spec], str]] = {
    RunSpec: "correct the path, or write a run to begin with: modelmill init",
    Profile: "correct the path after --profile; `modelmill explain KEY` says what a key means",
}
"""What to do where there is no such file."""

Model = TypeVar("Model", bound=Spec)


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read a `run.yaml`.

    Args:
        path: YAML or JSON.
        overrides: `a.b=value`, applied before anything is checked.

    Raises:
        SpecError: with every problem, its line and a suggestion.
        InputMissing: there is no such file.
    """
    return _load(RunSpec, path, overrides)


def load_profile(path: Path | None) -> Profile:
    """Read a profile, or take the one that fits a single machine.

    Raises:
        SpecError: with every problem, its line and a suggestion.
        InputMissing: there is no such file.
    """
    return Profile() if path is None else _load(Profile, path, ())


def parse_run(data: JsonValue, source: str) -> RunSpec:
    """Read a run from data that has no lines, such as Helm's values or JSON.

    Raises:
        SpecError: with every problem.
    """
    return _parse(RunSpec, data, source, {})


def parse_profile(data: JsonValue, source: str) -> Profile:
    """Read a profile from data that has no lines.

    Raises:
        SpecError: with every problem.
    """
    return _parse(Profile, data, source, {})


def _load(model: type[Model], path: Path, overrides: Sequence[str]) -> Model:
    data, lines = parse_yaml(_text(path, MISSING[model]), str(path))
    for override in overrides:
        keys, value = _override(override)
        data, where = _placed(data, keys, value)
        # The file has no line for it.
        lines = {**lines, where: 0}
    return _parse(model, data, str(path), lines)


def _text(path: Path, advice: str) -> str:
    try:
        with path.open("rb") as file:
            body = file.read(SIZE_LIMIT_BYTES + 1)
        check_size(len(body), str(path))
        return body.decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise InputMissing("There is no such file", at=str(path), fix=advice) from None
    except UnicodeDecodeError:
        raise SpecError(str(path), [Problem("", "is no UTF-8 text")]) from None
    except OSError as error:
        raise SpecError(str(path), [Problem("", f"cannot be read ({error.strerror})")]) from None


def _override(override: str) -> tuple[Sequence[str], JsonValue]:
    dotted, separator, text = override.partition("=")
    source = f"--set {_shortened(dotted)}"
    if not separator or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", dotted):
        raise SpecError(source, [Problem("", "write it as KEY.KEY=VALUE")])
    keys = dotted.split(".")
    if len(keys) > DEPTH_LIMIT:
        raise SpecError(source, [Problem("", f"nested deeper than {DEPTH_LIMIT} levels")])
    value, _ = parse_yaml(text, source)
    return keys, value


def _placed(data: JsonValue, keys: Sequence[str], value: JsonValue) -> tuple[JsonValue, KeyPath]:
    """Put a value where the keys lead; returns the whole, and the way there."""
    if not keys:
        return value, ()
    first, rest = keys[0], keys[1:]
    if isinstance(data, list) and first.isdecimal() and int(first) < len(data):
        index = int(first)
        inner, way = _placed(data[index], rest, value)
        return [*data[:index], inner, *data[index + 1 :]], (index, *way)
    here = data if isinstance(data, dict) else {}
    inner, way = _placed(here.get(first), rest, value)
    return {**here, first: inner}, (first, *way)


def _parse(model: type[Model], data: JsonValue, source: str, lines: Lines) -> Model:
    found = {(each.key, each.reason): each for each in _secrets(data, lines)}
    parsed: Model | None = None
    try:
        parsed = model.model_validate(data)
    except ValidationError as error:
        schema = model.model_json_schema()
        for details in error.errors(include_url=False):
            for problem in _problems(details, data, schema, lines):
                found.setdefault((problem.key, problem.reason), problem)
    if parsed is None or found:
        merged = _either_or(list(found.values()))
        raise SpecError(source, sorted(merged, key=lambda each: each.line))
    return parsed


def _secrets(data: JsonValue, lines: Lines) -> Iterator[Problem]:
    for path, looks_like in secrets_in(data):
        yield Problem(
            _dotted(path),
            f"looks like {looks_like}; it would be stored and shown with the run",
            line=_line_of(path, lines),
            suggestion="leave it to the environment, or to a Secret on a cluster, and renew it",
        )


def _problems(
    details: ErrorDetails, data: JsonValue, schema: Mapping[str, JsonValue], lines: Lines
) -> Iterator[Problem]:
    path = _path_in(data, details["loc"])
    key = _dotted(path)
    line = _line_of(path, lines)
    match details["type"]:
        case "extra_forbidden":
            suggestion = _suggestion(path, data, schema)
            yield Problem(key, "unknown key", line=line, suggestion=suggestion)
        case "missing":
            yield Problem(key, "required and not given", line=line)
        case "value_error":
            for sentence in str(details["ctx"]["error"]).splitlines():
                inner, separator, reason = sentence.partition(": ")
                if separator and re.fullmatch(r"[a-z_.]+", inner):
                    where = (*path, *inner.split("."))
                    yield Problem(_dotted(where), reason, line=_line_of(where, lines))
                else:
                    yield Problem(key, sentence, line=line)
        case "union_tag_not_found" | "union_tag_invalid":
            tags = details["ctx"].get("expected_tags", ", ".join(map(repr, METHODS)))
            field = details["ctx"]["discriminator"].strip("'")
            yield Problem(f"{key}.{field}", f"should be one of {tags}", line=line)
        case "model_type" | "dict_type":
            # In pydantic's words these name classes, which whoever writes YAML never sees.
            shown = _shown(details["input"])
            yield Problem(key, f"should be a mapping of keys to values (got {shown})", line=line)
        case _:
            reason = details["msg"].replace("Input should", "should").replace("tuple", "list")
            shown = _shown(details["input"])
            yield Problem(key, f"{reason}{f' (got {shown})' if shown else ''}", line=line)


def _either_or(problems: Sequence[Problem]) -> list[Problem]:
    """Fold the members of a union that all refused the same value into one problem."""
    by_key: dict[tuple[str, int, str], list[str]] = {}
    for each in problems:
        by_key.setdefault((each.key, each.line, each.suggestion), []).append(each.reason)
    folded = []
    for (key, line, suggestion), given in by_key.items():
        # What a member says in its own words is nearer than that another one has another type.
        reasons = [reason for reason in given if " (got " not in reason] or given
        heads = [reason.partition(" (got ") for reason in reasons]
        if len(heads) > 1 and all(tail for _, _, tail in heads):
            reason = f"{' or '.join(head for head, _, _ in heads)} (got {heads[0][2]}"
            folded.append(Problem(key, reason, line=line, suggestion=suggestion))
        else:
            folded += [Problem(key, each, line=line, suggestion=suggestion) for each in reasons]
    return [each for each in folded if not _is_looked_into(each, folded)]


def _is_looked_into(problem: Problem, problems: Sequence[Problem]) -> bool:
    """Tell whether another member of a union took the list and says what is wrong inside."""
    inside = f"{problem.key}["
    return problem.reason.endswith("(got a list)") and any(
        other.key.startswith(inside) for other in problems
    )


def _path_in(data: JsonValue, location: Sequence[str | int]) -> KeyPath:
    """Drop the parts of pydantic's location that name union members, not keys."""
    path: list[str | int] = []
    here: JsonValue = data
    for position, part in enumerate(location):
        if isinstance(here, dict) and part in here:
            here = here[str(part)]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        elif not (isinstance(here, dict) and position == len(location) - 1):
            continue
        path.append(part)
    return tuple(path)


def _line_of(path: KeyPath, lines: Lines) -> int:
    """Find the line of a key, or of the nearest thing that holds it."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 0)


def _dotted(path: KeyPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _shown(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return "a list"
    # Before it is cut: half of a secret looks like nothing.
    return _shortened(redacted(repr(value)))


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def _suggestion(path: KeyPath, data: JsonValue, schema: Mapping[str, JsonValue]) -> str:
    """Look for the key beside where it stands, then anywhere in the spec."""
    wrong = str(path[-1])
    siblings = set(_keys_at(schema, path[:-1], schema, data))
    taken = set(_at(data, path[:-1]))
    close = difflib.get_close_matches(wrong, sorted(siblings - taken), n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    elsewhere = dict(_all_keys(schema))
    close = difflib.get_close_matches(wrong, sorted(elsewhere), n=1, cutoff=0.85)
    if close:
        return f"did you mean '{elsewhere[close[0]]}'?"
    return f"known here: {', '.join(sorted(siblings))}" if siblings else ""


def _at(data: JsonValue, path: KeyPath) -> Iterator[str]:
    here = data
    for part in path:
        here = _inside(here, part)
    if isinstance(here, dict):
        yield from here


def _inside(here: JsonValue, part: str | int) -> JsonValue:
    if isinstance(here, list) and isinstance(part, int):
        return here[part]
    return here.get(str(part)) if isinstance(here, dict) else None


def _branches(
    node: Mapping[str, JsonValue], schema: Mapping[str, JsonValue]
) -> Iterator[Mapping[str, JsonValue]]:
    reference = node.get("$ref")
    if isinstance(reference, str):
        definitions = schema["$defs"]
        assert isinstance(definitions, dict)
        target = definitions[reference.rpartition("/")[2]]
        assert isinstance(target, dict)
        yield from _branches(target, schema)
        return
    yield node
    for word in ("anyOf", "oneOf", "allOf"):
        members = node.get(word)
        for member in members if isinstance(members, list) else ():
            if isinstance(member, dict):
                yield from _branches(member, schema)


def _keys_at(
    node: Mapping[str, JsonValue],
    path: KeyPath,
    schema: Mapping[str, JsonValue],
    here: JsonValue = None,
) -> Iterator[str]:
    """List the keys at the end of a path; of a union's members, those of the one that is `here`."""
    for branch in _branches(node, schema):
        properties = branch.get("properties")
        known = properties if isinstance(properties, dict) else {}
        if isinstance(here, dict) and not all(_allows(known, *each) for each in here.items()):
            continue
        if not path:
            yield from known
            continue
        inner = branch.get("items") if isinstance(path[0], int) else known.get(str(path[0]))
        if isinstance(inner, dict):
            yield from _keys_at(inner, path[1:], schema, _inside(here, path[0]))


def _allows(known: Mapping[str, JsonValue], key: str, value: JsonValue) -> bool:
    """Tell whether a key may have this value, as far as that decides what other keys there are."""
    form = known.get(key)
    return not isinstance(form, dict) or form.get("const", value) == value


def _all_keys(schema: Mapping[str, JsonValue]) -> Iterator[tuple[str, str]]:
    sections = schema.get("properties")
    for section in sections if isinstance(sections, dict) else ():
        for key in _keys_at(schema, (section,), schema):
            yield key, f"{section}.{key}"
