"""Text made of a row's fields: `str.format` braces and nothing else of `str.format`."""

import re
from typing import Final


def template_fields(template: str) -> tuple[str, ...]:
    """List the fields a template names, in order of appearance.

    Only `{name}`, `{{` and `}}` have a meaning; attribute access, indexing and format
    specifications are refused, so that a template can neither call code nor reach into
    objects.

    Raises:
        ValueError: a brace is unmatched or holds something other than a name.
    """
    names: list[str] = []
    for match in _BRACES.finditer(template):
        token = match.group()
        if token in ("{{", "}}"):
            continue
        name = token[1:-1] if len(token) > 1 else ""
        if not _FIELD.fullmatch(name):
            shown = token if len(token) > 1 else f"a single '{token}'"
            msg = f"{shown} is not a field name in braces; write '{{{{' or '}}}}' for a brace"
            raise ValueError(msg)
        if name not in names:
            names.append(name)
    return tuple(names)


def fill_template(template: str, fields: dict[str, str]) -> str:
    """Replace every `{name}` by its field; the fields' own braces stay as they are."""

    def value_of(match: re.Match[str]) -> str:
        token = match.group()
        return token[0] if token in ("{{", "}}") else fields[token[1:-1]]

    return _BRACES.sub(value_of, template)


_BRACES: Final = re.compile(r"\{\{|\}\}|\{[^{}]*\}|\{|\}")
_FIELD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
