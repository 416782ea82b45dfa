"""Read JSON schemas the way a person needs them: one row per key a user can write.

The reference page and `modelmill explain` are drawn from this.  Knows JSON schema as
pydantic writes it; knows nothing about what the keys mean.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from pydantic import JsonValue

Schema = Mapping[str, JsonValue]

_BOUNDS: Final = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minItems": "at least {} of them",
    "pattern": "matching `{}`",
}
"""JSON schema's words for limits, and ours."""

READABLE_PATTERN_CHARACTERS: Final = 30
"""A longer pattern helps a validator, which reads the schema, and nobody else."""

_KINDS: Final = {"object": "mapping", "string": "text", "integer": "whole number"}
"""JSON schema's words for types, where ours are others."""


@dataclass(frozen=True)
class KeyRow:
    """One key a user can write."""

    key: str
    """Dotted; `[]` stands for each item of a list, `*` for a key of one's own."""
    type: str
    default: str
    """As JSON; empty where there is none."""
    about: str
    is_required: bool = False
    node: Schema = field(default_factory=dict, compare=False, repr=False)
    """What the schema says about it."""


@dataclass(frozen=True)
class Section:
    """The keys of one mapping, or of one of the forms it can have."""

    name: str
    """Its key; empty for the plain keys at the top."""
    form: Mapping[str, str]
    """What tells it from the other forms, such as `method: gptq`; empty where there is one."""
    about: str
    rows: tuple[KeyRow, ...]

    @property
    def title(self) -> str:
        """What stands above it on a page."""
        if not self.name:
            return "At the top"
        form = ", ".join(f"{name}: {value}" for name, value in self.form.items())
        return f"{self.name} with {form}" if form else self.name


def sections(schema: Schema) -> Iterator[Section]:
    """Draw a section of every mapping at the top of a document, and one of its plain keys."""
    plain: list[KeyRow] = []
    for name, node in _properties(schema).items():
        forms = list(_mappings(node, schema))
        if not forms:
            plain.append(_row(name, node, schema, is_required=name in _required(schema)))
        is_list = node.get("type") == "array"
        for form in forms:
            path = f"{name}[]" if is_list else f"{name}.*" if _values(node) else name
            rows = tuple(_rows(form, f"{path}.", schema))
            own = {} if len(forms) == 1 else _form(form)
            yield Section(name, own, _presence(name, node, schema) + _about(form), rows)
    if plain:
        yield Section("", {}, "", tuple(plain))


def forms_of(node: Schema, schema: Schema) -> tuple[Schema, ...]:
    """List every form a value can have, none of them a reference or a union."""
    here = _resolved(node, schema)
    members = _members(here)
    if not members:
        return (here,)
    return tuple(form for member in members for form in forms_of(member, schema))


def choices_of(form: Schema) -> Sequence[JsonValue]:
    """List the values of a form that has nothing but a few; empty where it has more."""
    choices = form.get("enum", [form["const"]] if "const" in form else None)
    return choices if isinstance(choices, list) else ()


def _presence(name: str, node: Schema, schema: Schema) -> str:
    if name in _required(schema):
        return "Required. "
    if node.get("type") == "array":
        return "An item of a list. "
    return "Left out, there is none. " if node.get("default", ...) is None else ""


def _rows(mapping: Schema, path: str, schema: Schema) -> Iterator[KeyRow]:
    for name, node in _properties(mapping).items():
        row = _row(path + name, node, schema, is_required=name in _required(mapping))
        inner = [
            each for form in _mappings(node, schema) for each in _rows(form, f"{row.key}.", schema)
        ]
        if not inner:
            yield row
        elif "anyOf" in node:
            yield replace(row, about=row.about or "A mapping, see below.")
        yield from inner


def _row(key: str, node: Schema, schema: Schema, *, is_required: bool) -> KeyRow:
    about = _text(node.get("description"))
    if not about and is_required and "const" in node:
        about = "Chooses this form."
    elif not about:
        about = " ".join(_about(form) for form in _mappings(node, schema))
    has_default = not is_required and node.get("default", ...) is not None
    default = json.dumps(node.get("default"), ensure_ascii=False) if has_default else ""
    return KeyRow(key, _type(node, schema), default, about, is_required, node)


def _type(node: Schema, schema: Schema) -> str:
    members = [_resolved(each, schema) for each in _members(node) or (node,)]
    choices = [f"`{choice}`" for member in members for choice in choices_of(member)]
    kinds = [
        _kind(member, schema)
        for member in members
        if not choices_of(member) and member.get("type") != "null"
    ]
    if "number" in kinds:
        kinds = [kind for kind in kinds if kind != _KINDS["integer"]]
    return _listing([*choices, *dict.fromkeys(kinds)]) + (_limits(node) if len(members) > 1 else "")


def _kind(node: Schema, schema: Schema) -> str:
    kind = _text(node.get("type"))
    items = node.get("items")
    if isinstance(items, dict):
        item, bracket, limits = _type(items, schema).partition(" (")
        return f"list of {item}s{bracket}{limits}{_limits(node)}"
    return _KINDS.get(kind, kind) + _limits(node)


def _limits(node: Schema) -> str:
    limits = [
        words.format(node[word])
        for word, words in _BOUNDS.items()
        if word in node and len(str(node[word])) <= READABLE_PATTERN_CHARACTERS
    ]
    return f" ({', '.join(limits)})" if limits else ""


def _listing(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _mappings(node: Schema, schema: Schema) -> Iterator[Schema]:
    """Find the mappings with keys of their own that a value, or an item of it, can be."""
    here = _resolved(node, schema)
    if "properties" in here or here.get("additionalProperties") is False:
        yield here
    for member in _members(here):
        yield from _mappings(member, schema)
    for inner in (here.get("items"), _values(here)):
        if isinstance(inner, dict):
            yield from _mappings(inner, schema)


def _values(node: Schema) -> Schema | None:
    """Find what every value of a mapping is whose keys are not fixed."""
    values = node.get("additionalProperties")
    return values if isinstance(values, dict) else None


def _members(node: Schema) -> Sequence[Schema]:
    """List the alternatives of a union; nothing where there is one form only."""
    members = node.get("anyOf") or node.get("oneOf")
    return [each for each in members if isinstance(each, dict)] if isinstance(members, list) else ()


def _resolved(node: Schema, schema: Schema) -> Schema:
    reference = node.get("$ref")
    definitions = schema.get("$defs")
    if not isinstance(reference, str) or not isinstance(definitions, dict):
        return node
    target = definitions[reference.rpartition("/")[2]]
    assert isinstance(target, dict)
    return target


def _properties(mapping: Schema) -> Mapping[str, Schema]:
    properties = mapping.get("properties")
    if not isinstance(properties, dict):
        return {}
    return {name: node for name, node in properties.items() if isinstance(node, dict)}


def _required(mapping: Schema) -> Sequence[JsonValue]:
    required = mapping.get("required")
    return required if isinstance(required, list) else ()


def _form(form: Schema) -> Mapping[str, str]:
    """Find what tells a form from the others, such as `method: gptq`."""
    return {
        name: str(node["const"])
        for name, node in _properties(form).items()
        if "const" in node and name in _required(form)
    }


def _about(mapping: Schema) -> str:
    return _text(mapping.get("description"))


def _text(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""
