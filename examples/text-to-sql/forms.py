"""The questions the example can ask: each form is one SQL shape and the ways to ask for it.

`known` phrasings are used in training and in half of the test, `new` ones in the other half
of the test only.  Knows the slots of a question by name, not where their values come from.
"""

from dataclasses import dataclass
from typing import Literal

Phrasing = Literal["known", "new"]


@dataclass(frozen=True)
class Form:
    """One SQL shape with its phrasings; `{slots}` are filled from a theme."""

    skill: str
    sql: str
    known: tuple[str, ...]
    new: tuple[str, ...]


FORMS = (
    Form(
        "filter",
        "SELECT {label} FROM {table} WHERE {text} = '{value}'",
        known=(
            "Which {plural} have the {text_noun} {value}?",
            "List the {plural} whose {text_noun} is {value}.",
            "Show every {noun} with {text_noun} {value}.",
            "Give me all {plural} where the {text_noun} is {value}.",
        ),
        new=(
            "What are the {plural} with {text_noun} {value}?",
            "Find {plural} that have {value} as their {text_noun}.",
        ),
    ),
    Form(
        "filter",
        "SELECT {label} FROM {table} WHERE {number} {compare} {n}",
        known=(
            "Which {plural} have {a_number} {compare_word} {n}?",
            "List the {plural} whose {number_noun} is {compare_word} {n}.",
            "Show every {noun} with {a_number} {compare_word} {n}.",
            "Give me all {plural} where the {number_noun} is {compare_word} {n}.",
        ),
        new=(
            "What are the {plural} with {a_number} {compare_word} {n}?",
            "Find {plural} that have {a_number} {compare_word} {n}.",
        ),
    ),
    Form(
        "lookup",
        "SELECT {number} FROM {table} WHERE {label} = '{name}'",
        known=(
            "What is the {number_noun} of {name}?",
            "Show the {number_noun} of the {noun} {name}.",
            "Give me the {number_noun} for {name}.",
        ),
        new=(
            "Which {number_noun} does {name} have?",
            "Find the {noun} {name} and tell me its {number_noun}.",
        ),
    ),
    Form(
        "lookup",
        "SELECT {text} FROM {table} WHERE {label} = '{name}'",
        known=(
            "What is the {text_noun} of {name}?",
            "Show the {text_noun} of the {noun} {name}.",
            "Give me the {text_noun} for {name}.",
        ),
        new=(
            "Which {text_noun} does {name} have?",
            "Find the {noun} {name} and tell me its {text_noun}.",
        ),
    ),
    Form(
        "combine",
        "SELECT {label} FROM {table} WHERE {text} = '{value}' AND {number} {compare} {n}",
        known=(
            "Which {plural} with {text_noun} {value} have {a_number} {compare_word} {n}?",
            (
                "List the {plural} whose {text_noun} is {value} and whose {number_noun} is "
                "{compare_word} {n}."
            ),
            "Show every {noun} with {text_noun} {value} and {a_number} {compare_word} {n}.",
        ),
        new=(
            (
                "Find {plural} that have {value} as their {text_noun} and {a_number} "
                "{compare_word} {n}."
            ),
        ),
    ),
    Form(
        "combine",
        "SELECT {label} FROM {table} WHERE {text} = '{value}' OR {text} = '{other_value}'",
        known=(
            "Which {plural} have the {text_noun} {value} or {other_value}?",
            "List the {plural} whose {text_noun} is {value} or {other_value}.",
        ),
        new=("What are the {plural} with {text_noun} {value} or {other_value}?",),
    ),
    Form(
        "aggregate",
        "SELECT {function}({number}) FROM {table}",
        known=(
            "What is the {function_word} {number_noun} of all {plural}?",
            "Show the {function_word} {number_noun} of the {plural}.",
            "Give me the {function_word} {number_noun} over all {plural}.",
        ),
        new=("Find the {function_word} {number_noun} among the {plural}.",),
    ),
    Form(
        "aggregate",
        "SELECT {function}({number}) FROM {table} WHERE {text} = '{value}'",
        known=(
            "What is the {function_word} {number_noun} of {plural} whose {text_noun} is {value}?",
            "Show the {function_word} {number_noun} of {plural} with {text_noun} {value}.",
        ),
        new=(
            (
                "For {plural} that have {value} as their {text_noun}, what is the "
                "{function_word} {number_noun}?"
            ),
        ),
    ),
    Form(
        "count",
        "SELECT COUNT(*) FROM {table} WHERE {text} = '{value}'",
        known=(
            "How many {plural} have the {text_noun} {value}?",
            "Count the {plural} whose {text_noun} is {value}.",
            "Give me the number of {plural} where the {text_noun} is {value}.",
        ),
        new=("What is the number of {plural} with {text_noun} {value}?",),
    ),
    Form(
        "count",
        "SELECT COUNT(*) FROM {table} WHERE {number} {compare} {n}",
        known=(
            "How many {plural} have {a_number} {compare_word} {n}?",
            "Count the {plural} whose {number_noun} is {compare_word} {n}.",
            "Give me the number of {plural} where the {number_noun} is {compare_word} {n}.",
        ),
        new=("What is the number of {plural} with {a_number} {compare_word} {n}?",),
    ),
    Form(
        "order",
        "SELECT {label} FROM {table} ORDER BY {number} {direction}",
        known=(
            "List all {plural} sorted by {number_noun} {direction_word}.",
            "Show the {plural} ordered by {number_noun} {direction_word}.",
            "Give me all {plural} by {number_noun} {direction_word}.",
        ),
        new=("Sort the {plural} by their {number_noun} {direction_word}.",),
    ),
    Form(
        "order",
        "SELECT {label} FROM {table} ORDER BY {number} {direction} LIMIT {k}",
        known=(
            "Which {k} {plural} have the {extreme_word} {number_noun}?",
            "List the {k} {plural} with the {extreme_word} {number_noun}.",
        ),
        new=("What are the {k} {plural} with the {extreme_word} {number_noun}?",),
    ),
    Form(
        "group",
        "SELECT {text}, COUNT(*) FROM {table} GROUP BY {text}",
        known=(
            "How many {plural} are there for each {text_noun}?",
            "Count the {plural} per {text_noun}.",
            "For each {text_noun}, show the number of {plural}.",
        ),
        new=("What is the number of {plural} for every {text_noun}?",),
    ),
    Form(
        "group",
        "SELECT {text}, {function}({number}) FROM {table} GROUP BY {text}",
        known=(
            "What is the {function_word} {number_noun} of the {plural} for each {text_noun}?",
            "Show the {function_word} {number_noun} of {plural} per {text_noun}.",
            "For each {text_noun}, show the {function_word} {number_noun} of the {plural}.",
        ),
        new=("Find the {function_word} {number_noun} among the {plural} of every {text_noun}.",),
    ),
    Form(
        "join",
        "SELECT {table}.{label} FROM {table} JOIN {parent} ON {table}.{parent_key} = "
        "{parent}.id WHERE {parent}.{parent_text} = '{parent_value}'",
        known=(
            "Which {plural} belong to a {parent_noun} whose {parent_text_noun} is {parent_value}?",
            "List the {plural} of every {parent_noun} with {parent_text_noun} {parent_value}.",
        ),
        new=("Find {plural} whose {parent_noun} has the {parent_text_noun} {parent_value}.",),
    ),
    Form(
        "join",
        "SELECT {parent}.name FROM {table} JOIN {parent} ON {table}.{parent_key} = "
        "{parent}.id WHERE {table}.{label} = '{name}'",
        known=(
            "Which {parent_noun} does the {noun} {name} belong to?",
            "Show the {parent_noun} of the {noun} {name}.",
        ),
        new=("Find the {noun} {name} and tell me its {parent_noun}.",),
    ),
    Form(
        "negation",
        "SELECT {label} FROM {table} WHERE {text} != '{value}'",
        known=(
            "Which {plural} do not have the {text_noun} {value}?",
            "List the {plural} whose {text_noun} is not {value}.",
            "Show every {noun} without the {text_noun} {value}.",
        ),
        new=("Find {plural} that do not have {value} as their {text_noun}.",),
    ),
    Form(
        "negation",
        "SELECT COUNT(*) FROM {table} WHERE {text} != '{value}'",
        known=(
            "How many {plural} do not have the {text_noun} {value}?",
            "Count the {plural} whose {text_noun} is not {value}.",
        ),
        new=("What is the number of {plural} without the {text_noun} {value}?",),
    ),
)

WORDS: dict[Phrasing, dict[str, tuple[tuple[str, ...], ...]]] = {
    "known": {
        "compare": ((">", "above"), ("<", "below"), (">=", "at least"), ("<=", "at most")),
        "function": (("AVG", "average"), ("MAX", "highest"), ("MIN", "lowest"), ("SUM", "total")),
        "direction": (
            ("DESC", "from high to low", "highest"),
            ("ASC", "from low to high", "lowest"),
        ),
    },
    "new": {
        "compare": ((">", "more than"), ("<", "less than"), (">=", "at least"), ("<=", "at most")),
        "function": (("AVG", "mean"), ("MAX", "maximum"), ("MIN", "minimum"), ("SUM", "total")),
        "direction": (
            ("DESC", "in descending order", "largest"),
            ("ASC", "in ascending order", "smallest"),
        ),
    },
}
"""By phrasing and slot: what SQL says, then how a question says it."""
