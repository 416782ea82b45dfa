"""Say what a key of a run or a profile means, from the models that read it.

Pure, and holds no fact of its own: types, limits, defaults and words are the schema's, what
is computed anew follows from the plan.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

from pydantic import BaseModel, JsonValue

from modelmill.spec.closed import Spec
from modelmill.spec.effect import stages_anew, stages_elsewhere
from modelmill.spec.errors import Problem, SpecError
from modelmill.spec.names import KINDS
from modelmill.spec.profile import Profile
from modelmill.spec.run import RunSpec
from modelmill.spec.schema import KeyRow, Schema, Section, sections

Document = Literal["run.yaml", "profile"]

_DOCUMENTS: Final[Mapping[Document, type[BaseModel]]] = {"run.yaml": RunSpec, "profile": Profile}

_SUGGESTIONS: Final = 3


class ExplainedKey(Spec):
    """One key, with everything there is to say about it."""

    document: Document
    key: str
    """`[]` stands for each item of a list, `*` for a key of one's own."""
    form: str
    """Which form of a list's item it belongs to, such as `method: gptq`; empty for any."""
    type: str
    """Its limits stand in brackets."""
    default: str
    """As JSON, `required`, or `none`."""
    meaning: str
    anew: tuple[str, ...] | None
    """Stages that are computed anew when it changes, as they are called in the first example;
    None if nothing can be said because it cannot change by itself."""


class Explained(Spec):
    """What was asked about."""

    about: str
    """Of the section, if a section was asked for; else empty."""
    keys: tuple[ExplainedKey, ...]


def explain_key(asked: str, examples: Sequence[RunSpec]) -> Explained:
    """Explain a key, or every key of a section.

    Args:
        asked: dotted, such as `finetune.r`, `quantize.gptq.bits`, `quantize[0].bits`, `data`.
        examples: runs in which a changed value is tried.

    Raises:
        SpecError: there is no such key; with the nearest ones.
    """
    words = tuple(re.sub(r"\[\w*\]", "", asked).split("."))
    about: list[str] = []
    keys: list[ExplainedKey] = []
    for document, schema, section in _every_section():
        rows = [row for row in section.rows if _is_asked(words, section, row)]
        if rows and words in _spellings(section, section.name):
            about.append(section.about)
        for row in rows:
            anew = (
                stages_elsewhere(examples[0], row.key)
                if document == "profile"
                else stages_anew(examples, row, section.form, schema)
            )
            keys.append(_explained(document, section, _of_kind(row, words), anew))
    if not keys:
        nearest = " or ".join(f"'{each}'" for each in _nearest(".".join(words)))
        hint = f"did you mean {nearest}?" if nearest else f"sections: {', '.join(_section_names())}"
        raise SpecError(f"explain {asked}", [Problem("", "there is no such key", suggestion=hint)])
    return Explained(about=" ".join(filter(None, about)), keys=tuple(keys))


def key_names() -> tuple[str, ...]:
    """List every key and section that can be asked about."""
    names = dict.fromkeys(_section_names())
    for _, _, section in _every_section():
        for row in section.rows:
            names.update(dict.fromkeys(map(".".join, _spellings(section, row.key))))
    return tuple(names)


def _is_asked(words: tuple[str, ...], section: Section, row: KeyRow) -> bool:
    return any(_begins(spelling, words) for spelling in _spellings(section, row.key))


def _begins(spelling: tuple[str, ...], words: tuple[str, ...]) -> bool:
    """Tell whether a key is the one that is meant, or lies below it."""
    return len(words) <= len(spelling) and all(
        word == known or (known == "*" and word in (known, *KINDS))
        for known, word in zip(spelling, words, strict=False)
    )


def _spellings(section: Section, key: str) -> tuple[tuple[str, ...], ...]:
    """List how a key can be asked for: with the form it belongs to, and without."""
    name, *rest = key.replace("[]", "").split(".")
    forms = [(name, value, *rest) for value in section.form.values()]
    return ((name, *rest), *forms)


def _of_kind(row: KeyRow, words: tuple[str, ...]) -> KeyRow:
    """Put the kind that was asked for in the place of `*`, with the default that it has."""
    kind = words[1] if len(words) > 1 else ""
    if "*" not in row.key or kind not in KINDS:
        return row
    named = replace(row, key=row.key.replace("*", kind))
    here: JsonValue = Profile().model_dump(mode="json")
    for word in named.key.split("."):
        if not isinstance(here, dict) or word not in here:
            return named
        here = here[word]
    return replace(named, default=json.dumps(here))


def _explained(
    document: Document, section: Section, row: KeyRow, anew: tuple[str, ...] | None
) -> ExplainedKey:
    return ExplainedKey(
        document=document,
        key=row.key,
        form=", ".join(f"{name}: {value}" for name, value in section.form.items()),
        type=row.type.replace("`", ""),
        default=row.default or ("required" if row.is_required else "none"),
        meaning=row.about,
        anew=anew,
    )


def _nearest(asked: str) -> Sequence[str]:
    """Look for the whole key first, then for its last part anywhere."""
    known = key_names()
    if close := difflib.get_close_matches(asked, known, n=1, cutoff=0.8):
        return close
    lasts: dict[str, list[str]] = {}
    for _, _, section in _every_section():
        for row in section.rows:
            lasts.setdefault(row.key.rpartition(".")[2], []).append(row.key.replace("[]", ""))
    for last in difflib.get_close_matches(asked.rpartition(".")[2], lasts, n=1, cutoff=0.75):
        return tuple(dict.fromkeys(lasts[last]))[:_SUGGESTIONS]
    return difflib.get_close_matches(asked, known, n=1, cutoff=0.6)


def _section_names() -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.name for _, _, each in _every_section() if each.name))


def _every_section() -> Iterator[tuple[Document, Schema, Section]]:
    for document, model in _DOCUMENTS.items():
        schema = model.model_json_schema()
        for section in sections(schema):
            yield document, schema, section
