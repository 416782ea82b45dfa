"""Read JSON schemas the way a reader of the reference needs them: one row per key.

Knows JSON schema as pydantic writes it; knows nothing about what the keys mean.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydantic import JsonValue

Schema = Mapping[str, JsonValue]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

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
    about: str


@dataclass(frozen=True)
class Section:
    """The keys of one mapping, or of one of the forms it can have."""

    title: str
    about: str
    rows: tuple[KeyRow, ...]


def schema_text(schema: Schema) -> str:
    """Write a schema as the file that editors and validators read."""
    return json.dumps({"$schema": DIALECT, **schema}, indent=2, ensure_ascii=False) + "\n"


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
            title = name if len(forms) == 1 else f"{name} with {_form_name(form)}"
            yield Section(title, _presence(name, node, schema) + _about(form), rows)
    if plain:
        yield Section("At the top", "", tuple(plain))


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
    if is_required:
        default = "**required**"
    elif node.get("default", ...) is None:
        default = "none"
    else:
        default = f"`{json.dumps(node.get('default'), ensure_ascii=False)}`"
    return KeyRow(key, _type(node, schema), default, about)


def _type(node: Schema, schema: Schema) -> str:
    members = [_resolved(each, schema) for each in _members(node) or (node,)]
    choices = [f"`{choice}`" for member in members for choice in _choices(member)]
    kinds = [
        _kind(member, schema)
        for member in members
        if not _choices(member) and member.get("type") != "null"
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


def _choices(node: Schema) -> Sequence[JsonValue]:
    choices = node.get("enum", [node["const"]] if "const" in node else None)
    return choices if isinstance(choices, list) else ()


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


def _form_name(form: Schema) -> str:
    """Name a form by what tells it from the others, such as `method: gptq`."""
    return ", ".join(
        f"{name}: {node['const']}"
        for name, node in _properties(form).items()
        if "const" in node and name in _required(form)
    )


def _about(mapping: Schema) -> str:
    return _text(mapping.get("description"))


def _text(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""
