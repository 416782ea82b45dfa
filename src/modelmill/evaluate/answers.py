"""Find the answer inside what a model wrote.

One rule for all models of a run, so that a talkative base model is judged by its query and
not by its manners.  Knows text only; whether the answer is right is not decided here.
"""

import re
from typing import Final

from modelmill.evaluate.sql.tokens import tokens_of

_FENCE: Final = re.compile(r"```[ \t]*(?P<language>\w*)[ \t]*\n?(?P<body>.*?)(?:```|\Z)", re.DOTALL)
_QUERY: Final = re.compile(
    r"\bSELECT\b|\bWITH\s+(?:RECURSIVE\s+)?\w+\s*(?:\([^()]*\)\s*)?AS\s*\(", re.IGNORECASE
)
_SECTION_END: Final = re.compile(r"\n[ \t]*\r?\n|\n[ \t]*(?:###|```)")


def extract_answer(output: str, reference: str) -> str:
    """Take the answer out of an output, in the form the reference has.

    The reference decides only whether an SQL statement is looked for; it is the same for
    every model.
    """
    if is_query(reference):
        return extract_query(output)
    fenced = _FENCE.fullmatch(output.strip())
    return (fenced["body"] if fenced else output).strip()


def is_query(text: str) -> bool:
    """Whether a text starts as an SQL query does."""
    return _QUERY.match(text.lstrip(" \t\r\n(")) is not None


def extract_query(output: str) -> str:
    """Take the first SQL query out of an output.

    From the first fence that holds a query if there is one, else from the running text.  The
    query starts at the first SELECT or WITH ... AS (, preferring one that starts a line, then
    one in capitals, because "select" is also an English word.  It ends before the first
    semicolon outside quotes, an empty line, a "###" heading or a closing fence.  An output
    without any query is returned as it is, trimmed, and will be wrong.
    """
    fences = [match["body"] for match in _FENCE.finditer(output) if _QUERY.search(match["body"])]
    text = fences[0] if fences else output
    start = _query_start(text)
    if start < 0:
        return text.strip()
    if text[start - 1 : start] == "`":
        text = text[: (text.find("`", start) + 1 or len(text) + 1) - 1]
    section = _SECTION_END.split(text[start:], maxsplit=1)[0]
    for token in tokens_of(section):
        # A "#" is no SQL: here the model goes on with the prompt's next heading.
        if token.kind == "operator" and token.text in (";", "#"):
            return section[: token.start].strip()
    return section.strip()


def _query_start(text: str) -> int:
    found = list(_QUERY.finditer(text))
    for match in found:
        if not text[: match.start()].rpartition("\n")[2].strip():
            return match.start()
    for match in found:
        if match.group()[:4].isupper():
            return match.start()
    return found[0].start() if found else -1
