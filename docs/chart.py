"""Draw what the chart ships and the code decides: values with their words, the Role's rules.

Knows YAML and pydantic's fields; holds no fact of its own.
"""

import json
import textwrap
from collections.abc import Iterator
from typing import Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from modelmill.spec.cluster import STAGE_DEFAULTS, StagePods
from modelmill.spec.profile import Profile
from modelmill.spec.values import Values

HEAD: Final = """\
# One release is one run, called like the release.  Every key stands here with its default;
# a key that is not here is refused.

# What is asked for: the content of a run.yaml, whose keys are in docs/reference.md.
run: {}

# What the cluster offers.  `images.registry` and `store.url` have no default.
profile:
"""

STAGES: Final = """\
By kind of stage, laid over the defaults of the kind: fetch-model, fetch-data, fetch-test, \
fetch-adapter, fetch-text, finetune, merge, quantize, infer, report.  Such as \
`stages: {finetune: {memory: 64Gi}}`."""


def values_page() -> str:
    """Write `values.yaml`: every key, its words and its default."""
    parts = [HEAD]
    parts += (f"{line}\n" for line in _lines(Profile, 1))
    for name, field in Values.model_fields.items():
        if name not in ("run", "profile", "global_"):
            parts += ("\n", *(f"{line}\n" for line in _field(name, field, 0)))
    return "".join(parts)


def role_rules(role: str) -> str:
    """Cut the rules out of the Role, with the words beside them."""
    document = role.split("\n---\n", maxsplit=1)[0]
    return document[document.index("rules:") :].rstrip() + "\n"


def _lines(model: type[BaseModel], depth: int) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if model is Profile and name == "stages":
            yield from _stages(depth)
        else:
            yield from _field(name, field, depth)


def _field(name: str, field: FieldInfo, depth: int) -> Iterator[str]:
    default = field.get_default(call_default_factory=True)
    nested = type(default) if isinstance(default, BaseModel) else None
    own = (nested.__doc__ or "").splitlines()[0] if nested else ""
    yield from _words(field.description or own, depth)
    pad = "  " * depth
    if nested is not None:
        yield f"{pad}{name}:"
        yield from _lines(nested, depth + 1)
    elif default is None:
        yield f"{pad}# {name}:"
    else:
        yield f"{pad}{name}: {_value(default)}"


def _stages(depth: int) -> Iterator[str]:
    yield from _words(STAGES, depth)
    pad = "  " * depth
    for name, field in StagePods.model_fields.items():
        default = field.get_default(call_default_factory=True)
        yield f"{pad}#   {name}: {_value(default)}"
        for line in textwrap.wrap(field.description or "", 90 - len(pad)):
            yield f"{pad}#     {line}"
    yield f"{pad}# Other defaults by kind:"
    for kind, defaults in STAGE_DEFAULTS.items():
        if defaults:
            yield f"{pad}#   {kind}: {_value(defaults)}"
    yield f"{pad}stages: {{}}"


def _words(text: str, depth: int) -> Iterator[str]:
    pad = "  " * depth
    for line in textwrap.wrap(" ".join(text.split()), 96 - len(pad)):
        yield f"{pad}# {line}"


def _value(value: object) -> str:
    """Write a default as YAML on one line, which JSON is."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, default=dict)
