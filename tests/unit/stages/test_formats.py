"""Every format takes what it is meant for and says what is wrong with the rest."""

from collections.abc import Mapping

import pytest
from pydantic import JsonValue

from modelmill.stages.formats import row_maker

CHAT = row_maker("messages", None, None)
TEXT = row_maker("text", None, "body")


def turn(role: str, content: str) -> dict[str, JsonValue]:
    """Make a turn."""
    return {"role": role, "content": content}


def test_conversation_becomes_a_row() -> None:
    """The last answer is the completion; null fields that data sets fill in say nothing."""
    question: dict[str, JsonValue] = {**turn("user", "a {b}"), "tool_calls": None}
    row = CHAT(3, {"messages": [turn("system", "s"), question, turn("assistant", "c")], "id": 7})
    assert (row.row, row.completion, row.fields) == (3, "c", {"id": 7})
    assert row.prompt == "system: s\nuser: a {b}"
    assert [each.role for each in row.messages] == ["system", "user", "assistant"]
    assert not row.is_text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "no field 'messages'; it has "),
        ({"messages": "hi"}, "not a list of turns"),
        ({"messages": ["hi"]}, "turn 1 is not an object"),
        ({"messages": [turn("user", "a")]}, "does not end with an answer"),
        ({"messages": [turn("assistant", "a")]}, "does not end with an answer"),
        ({"messages": [turn("human", "a")]}, "turn 1 has the role 'human', not one of system"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "content that is not text"),
        ({"messages": [turn("user", "a"), turn("assistant", " ")]}, "the last answer is empty"),
        (
            {"messages": [{**turn("user", "a"), "images": ["x"]}, turn("assistant", "b")]},
            "turn 1 has 'images', which no template here would show",
        ),
    ],
)
def test_wrong_conversation_says_why(fields: Mapping[str, JsonValue], said: str) -> None:
    """Nothing is left out of a conversation without a word."""
    with pytest.raises(ValueError, match=said):
        CHAT(0, fields)


def test_text_becomes_a_row() -> None:
    """All of it is learned; nothing is asked."""
    row = TEXT(1, {"body": "abc", "lang": "en"})
    assert (row.prompt, row.completion, row.fields) == ("", "abc", {"lang": "en"})
    assert row.is_text


@pytest.mark.parametrize("value", ["", "  ", 3, None, ["a"]])
def test_wrong_text_says_why(value: JsonValue) -> None:
    """A number is a mistake, not a text of digits."""
    with pytest.raises(ValueError, match="field 'body' is "):
        TEXT(0, {"body": value})
