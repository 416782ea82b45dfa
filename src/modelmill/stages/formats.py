"""What a row of each data format has to hold, and the `Row` it becomes.

Knows fields that have been read already; knows nothing about files, splits or tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, get_args

from pydantic import JsonValue

from modelmill.spec.data import Format, TemplateSpec
from modelmill.spec.records import Message, Row
from modelmill.spec.template import fill_template, template_fields

MESSAGES: Final = "messages"
"""The field of a conversation, as trl and every chat data set call it."""

MakeRow = Callable[[int, Mapping[str, JsonValue]], Row]
"""Makes a row of its number and its fields; raises ValueError with what is wrong with it."""

_ROLES: Final = get_args(Message.model_fields["role"].annotation)


def row_maker(
    data_format: Format, template: TemplateSpec | None, text_field: str | None
) -> MakeRow:
    """Choose what makes rows of a format.

    Args:
        data_format: one of the spec's.
        template: of prompt_completion.
        text_field: of text.
    """
    if data_format == "messages":
        return _conversation
    if data_format == "text":
        assert text_field is not None
        return lambda number, fields: _text(number, fields, text_field)
    assert template is not None
    wanted = tuple(dict.fromkeys(_required(template)))
    return lambda number, fields: _prompt_completion(number, fields, template, wanted)


def row_needs(data_format: Format, text_field: str | None) -> str:
    """Say how a row should look, for messages."""
    match data_format:
        case "messages":
            return (
                'with {"messages": [{"role": "user", "content": "..."}, '
                '{"role": "assistant", "content": "..."}]}'
            )
        case "text":
            return f"with the text in '{text_field}' (data.dataset_text_field)"
        case "prompt_completion":
            return "with every field that data.template names"


def _required(template: TemplateSpec) -> Iterable[str]:
    return (*template_fields(template.prompt), *template_fields(template.completion))


def _prompt_completion(
    number: int,
    fields: Mapping[str, JsonValue],
    template: TemplateSpec,
    wanted: tuple[str, ...],
) -> Row:
    _refuse_missing(wanted, fields)
    texts: dict[str, str] = {}
    for name in wanted:
        value = fields[name]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            kind = "null" if value is None else type(value).__name__
            msg = f"field '{name}' is {kind}, not text or a number"
            raise ValueError(msg)
        texts[name] = str(value)
    completion = fill_template(template.completion, texts)
    if not completion.strip():
        raise ValueError("the completion is empty")
    prompt = fill_template(template.prompt, texts)
    if not prompt:
        raise ValueError("the prompt is empty")
    return Row(row=number, prompt=prompt, completion=completion, fields=fields)


def _text(number: int, fields: Mapping[str, JsonValue], name: str) -> Row:
    _refuse_missing((name,), fields)
    text = fields[name]
    if not isinstance(text, str) or not text.strip():
        msg = f"field '{name}' is {'empty' if isinstance(text, str) else 'not text'}"
        raise ValueError(msg)
    return Row(row=number, prompt="", completion=text, fields=_without(fields, name))


def _conversation(number: int, fields: Mapping[str, JsonValue]) -> Row:
    _refuse_missing((MESSAGES,), fields)
    turns = fields[MESSAGES]
    if not isinstance(turns, list):
        msg = f"field '{MESSAGES}' is not a list of turns"
        raise ValueError(msg)
    messages = tuple(_message(place, turn) for place, turn in enumerate(turns, 1))
    if not messages[:-1] or messages[-1].role != "assistant":
        raise ValueError("the conversation does not end with an answer of the assistant")
    if not messages[-1].content.strip():
        raise ValueError("the last answer is empty")
    return Row(
        row=number,
        prompt="\n".join(f"{each.role}: {each.content}" for each in messages[:-1]),
        completion=messages[-1].content,
        messages=messages,
        fields=_without(fields, MESSAGES),
    )


def _message(place: int, turn: JsonValue) -> Message:
    if not isinstance(turn, dict):
        msg = f"turn {place} is not an object with role and content"
        raise ValueError(msg)
    role, content = turn.get("role"), turn.get("content")
    if role not in _ROLES:
        msg = f"turn {place} has the role {role!r}, not one of {', '.join(_ROLES)}"
        raise ValueError(msg)
    if not isinstance(content, str):
        msg = f"turn {place} has a content that is not text"
        raise ValueError(msg)
    # Data sets fill every turn up to the same fields; what is null says nothing.
    more = sorted(name for name, value in turn.items() if value is not None)
    unknown = [name for name in more if name not in ("role", "content")]
    if unknown:
        msg = f"turn {place} has {_quoted(unknown)}, which no template here would show"
        raise ValueError(msg)
    return Message.model_validate({"role": role, "content": content})


def _without(fields: Mapping[str, JsonValue], name: str) -> dict[str, JsonValue]:
    return {field: value for field, value in fields.items() if field != name}


def _refuse_missing(wanted: Iterable[str], fields: Mapping[str, JsonValue]) -> None:
    missing = [name for name in wanted if name not in fields]
    if missing:
        msg = f"no field {_quoted(missing)}; it has {_quoted(fields)}"
        raise ValueError(msg)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
