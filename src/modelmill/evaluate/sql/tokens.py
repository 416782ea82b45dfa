"""Cut SQL text into tokens and put tokens back into SQL text.

Knows the lexical rules of SQLite, not its grammar: every text has tokens, also a broken one,
and only SQLite decides whether they are a query.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

TokenKind = Literal["string", "blob", "quoted", "number", "word", "open", "close", "operator"]

_TOKEN: Final = re.compile(
    r"""
    (?P<space>\s+ | --[^\n]* | /\*.*?(?:\*/|\Z))
    | (?P<blob>[xX]'[0-9A-Fa-f]*')
    | (?P<string>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\])
    | (?P<number>0[xX][0-9A-Fa-f]+ | (?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<open>\() | (?P<close>\))
    | (?P<operator><> | <= | >= | != | == | \|\| | << | >> | .)
    """,
    re.VERBOSE | re.DOTALL,
)

RESERVED: Final = frozenset(
    """ALL AND AS BETWEEN BY CASE CROSS DISTINCT ELSE END ESCAPE EXCEPT EXISTS FROM FULL GROUP
    HAVING IN INNER INTERSECT IS ISNULL JOIN LEFT LIMIT NATURAL NOT NOTNULL NULL OFFSET ON OR
    ORDER OUTER RIGHT SELECT SET TABLE THEN UNION USING VALUES WHEN WHERE""".split()  # noqa: SIM905
)
"""Words that are never a name unless they are quoted."""


@dataclass(frozen=True, slots=True)
class Token:
    """One lexical unit, as it was written."""

    kind: TokenKind
    text: str
    start: int = 0
    """Offset in the text it was cut from; 0 for a token made by a mutation."""

    @property
    def word(self) -> str:
        """The upper-case word, or nothing for any other kind of token."""
        return self.text.upper() if self.kind == "word" else ""

    @property
    def name(self) -> str:
        """The lower-case name this token can stand for, or nothing.

        SQLite's names are case-insensitive for ASCII only; lower() is close enough to look
        a name up, because the query itself is resolved by SQLite.
        """
        if self.kind == "quoted":
            quote = self.text[-1]
            return self.text[1:-1].replace(quote * 2, quote).lower()
        if self.kind == "word" and self.word not in RESERVED:
            return self.text.lower()
        return ""

    @property
    def value(self) -> str | int | float:
        """The value of a string or number token.

        Raises:
            ValueError: the token is neither.

        """
        if self.kind == "string":
            return self.text[1:-1].replace("''", "'")
        if self.kind != "number":
            message = f"{self.text!r} is not a literal"
            raise ValueError(message)
        if self.text[:2].lower() == "0x":
            return int(self.text, 16)
        number = float(self.text)
        # SQLite reads larger integers as floating point as well.
        return int(self.text) if self.text.isdecimal() and number < 2**63 else number


def tokens_of(text: str) -> tuple[Token, ...]:
    """Cut a text into tokens, without white space and comments.  Never fails."""
    return tuple(
        Token(cast("TokenKind", match.lastgroup), match.group(), match.start())
        for match in _TOKEN.finditer(text)
        if match.lastgroup != "space"
    )


def query_text(tokens: Sequence[Token]) -> str:
    """Write tokens as SQL in which a double-quoted word can only be a name.

    SQLite reads a double-quoted word that names nothing as a string, so a misspelt column
    would run.  The switch for that (SQLITE_DBCONFIG_DQS_DML) is reachable from Python 3.12;
    but only double quotes have this fallback, back-quoted names do not
    (https://www.sqlite.org/quirks.html#double_quoted_string_literals_are_accepted).
    """
    return " ".join(_back_quoted(token) for token in tokens)


def canonical_text(tokens: Sequence[Token]) -> str:
    """Write tokens in one normal form: upper-case words, single spaces, literals untouched."""
    return " ".join(token.text.upper() if token.kind == "word" else token.text for token in tokens)


def statements_of(tokens: Sequence[Token]) -> Iterator[tuple[Token, ...]]:
    """Split tokens at their semicolons, leaving empty statements out."""
    statement: list[Token] = []
    for token in tokens:
        if token.text == ";" and token.kind == "operator":
            if statement:
                yield tuple(statement)
            statement = []
        else:
            statement.append(token)
    if statement:
        yield tuple(statement)


def depths_of(tokens: Sequence[Token]) -> tuple[int, ...]:
    """Count the parentheses (and CASEs) around each token; both brackets count as inside."""
    depths: list[int] = []
    depth = 0
    for token in tokens:
        depth += token.kind == "open" or token.word == "CASE"
        depths.append(depth)
        depth -= token.kind == "close" or token.word == "END"
    return tuple(depths)


def string_token(value: str) -> Token:
    """Write a value as a string literal."""
    return Token("string", "'" + value.replace("'", "''") + "'")


def _back_quoted(token: Token) -> str:
    if token.kind == "quoted" and token.text[0] == '"':
        return "`" + token.text[1:-1].replace('""', '"').replace("`", "``") + "`"
    return token.text
