"""Write the example's text-to-SQL rows: train.jsonl and test.jsonl.

A row is a form of question filled from a theme.  Test rows use tables and literal values that
training never saw; half of them also ask in words that training never saw, and the field
`phrasing` tells the halves apart.  The same seed writes the same bytes.
"""

import argparse
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any, Literal

from forms import FORMS, WORDS, Form, Phrasing

Split = Literal["train", "test"]

HERE = Path(__file__).parent
TRAIN_ROWS = 288
TEST_ROWS = 126

OTHER_TABLE_SHARE = 0.15
"""How often a question about one table comes with a second table it does not need."""

PEOPLE: dict[Split, tuple[str, str]] = {
    "train": (
        "Anna Boris Clara Dario Elena Farid Greta Hugo Irene Jonas Karin Louis",
        "Abbott Becker Costa Dumont Eriksen Fischer Garcia Hansen Ivanov Jensen Kowalski Lopez",
    ),
    "test": (
        "Maya Nils Olga Pablo Quinn Rosa Stefan Tara Umar Vera Wanda Yusuf",
        "Moreau Novak Okafor Petrov Quist Rossi Silva Tamura Usman Vidal Weber Zhang",
    ),
}
THINGS: dict[Split, tuple[str, str]] = {
    "train": (
        "Silver Quiet Northern Little Crooked Blue Distant Early Royal Wild Hollow Second",
        "Harbor Letter Garden Summit Lantern Morning Compass Orchard Signal Feather Stone Voyage",
    ),
    "test": (
        "Golden Broken Southern Great Twisted Scarlet Nearby Late Humble Tame Frozen Seventh",
        "Mirror Willow Canyon Ember Cathedral Thunder Anchor Sparrow Kettle Horizon Clock Ribbon",
    ),
}
LETTERS: dict[Split, str] = {"train": "ABCDEFGHJK", "test": "LMNPRSTVXZ"}


@dataclass(frozen=True)
class Text:
    """A column of words; questions ask for the values listed here."""

    column: str
    noun: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Number:
    """A column of whole numbers."""

    column: str
    noun: str
    low: int
    high: int


@dataclass(frozen=True)
class Theme:
    """A table, the parent table its rows belong to, and the words for both."""

    table: str
    noun: str
    plural: str
    label: str
    label_kind: str
    texts: tuple[Text, ...]
    numbers: tuple[Number, ...]
    parent: str
    parent_noun: str
    parents: str
    parent_text: Text

    @property
    def parent_key(self) -> str:
        """The column that names the parent's row."""
        return f"{self.parent_noun.replace(' ', '_')}_id"


def read_themes(split: Split) -> list[Theme]:
    """Read the themes of one split."""
    with (HERE / f"themes-{split}.toml").open("rb") as file:
        return [theme_of(table, entry) for table, entry in tomllib.load(file).items()]


def theme_of(table: str, entry: dict[str, Any]) -> Theme:
    """Turn one TOML table into a theme."""
    parent = entry["parent"]
    return Theme(
        table=table,
        noun=entry["nouns"][0],
        plural=entry["nouns"][1],
        label=entry["label"]["column"],
        label_kind=entry["label"]["kind"],
        texts=tuple(
            Text(column, text.get("noun", spoken(column)), tuple(text["values"]))
            for column, text in entry["text"].items()
        ),
        numbers=tuple(
            Number(column, number.get("noun", spoken(column)), *number["range"])
            for column, number in entry["number"].items()
        ),
        parent=parent["table"],
        parent_noun=parent["nouns"][0],
        parents=parent["nouns"][1],
        parent_text=Text(parent["column"], spoken(parent["column"]), tuple(parent["values"])),
    )


def spoken(column: str) -> str:
    """Say a column's name as people do."""
    return column.replace("_", " ")


class Draw:
    """Random choices that keep the literals of the two splits apart."""

    def __init__(self, random: Random, split: Split) -> None:
        """Draw for one split from one stream of random numbers."""
        self._random = random
        self._split = split

    def number(self, low: int, high: int) -> int:
        """Choose a number of this split: two residues of seven belong to the test."""
        return self._random.choice(
            [n for n in range(low, high + 1) if (n % 7 in {0, 3}) == (self._split == "test")]
        )

    def name(self, kind: str) -> str:
        """Make up what a row of a table may be called."""
        if kind == "code":
            letters = "".join(self._random.sample(LETTERS[self._split], 2))
            return f"{letters}-{self.number(100, 999)}"
        first, last = (PEOPLE if kind == "person" else THINGS)[self._split]
        return f"{self._random.choice(first.split())} {self._random.choice(last.split())}"

    def slots(self, theme: Theme, phrasing: Phrasing) -> dict[str, str]:
        """Choose a value for every slot a form may have."""
        choice = self._random.choice
        text, number = choice(theme.texts), choice(theme.numbers)
        value, other_value = self._random.sample(text.values, 2)
        n, more = sorted(self._two_numbers(number))
        compare, compare_word = choice(WORDS[phrasing]["compare"])
        function, function_word = choice(WORDS[phrasing]["function"])
        direction, direction_word, extreme_word = choice(WORDS[phrasing]["direction"])
        return {
            "table": theme.table,
            "noun": theme.noun,
            "plural": theme.plural,
            "label": theme.label,
            "label_noun": spoken(theme.label),
            "name": self.name(theme.label_kind),
            "text": text.column,
            "text_noun": text.noun,
            "value": value,
            "other_value": other_value,
            "number": number.column,
            "number_noun": number.noun,
            "a_number": f"{'an' if number.noun[0] in 'aeiou' else 'a'} {number.noun}",
            "n": str(n),
            "more": str(more),
            "k": str(self.number(2, 7)),
            "compare": compare,
            "compare_word": compare_word,
            "function": function,
            "function_word": function_word,
            "direction": direction,
            "direction_word": direction_word,
            "extreme_word": extreme_word,
            "parent": theme.parent,
            "parent_noun": theme.parent_noun,
            "parents": theme.parents,
            "parent_key": theme.parent_key,
            "parent_text": theme.parent_text.column,
            "parent_text_noun": theme.parent_text.noun,
            "parent_value": choice(theme.parent_text.values),
        }

    def _two_numbers(self, number: Number) -> tuple[int, int]:
        """Choose two different numbers inside a column's range."""
        first = self.number(number.low, number.high)
        while (second := self.number(number.low, number.high)) == first:
            pass
        return first, second

    def context(self, theme: Theme, form: Form, slots: dict[str, str]) -> str:
        """Write the schema a question comes with: what it needs, one more column, any order."""
        others = [f"{text.column} TEXT" for text in theme.texts]
        others += [f"{number.column} INTEGER" for number in theme.numbers]
        needed = {f"{slots['text']} TEXT", f"{slots['number']} INTEGER"}
        spare = self._random.choice([column for column in others if column not in needed])
        columns = [f"{theme.label} TEXT", *sorted(needed), spare]
        needs_parent = "{parent" in form.sql
        if needs_parent or self._random.random() < OTHER_TABLE_SHARE:
            columns.append(f"{theme.parent_key} INTEGER")
            parent_columns = ["name TEXT", f"{theme.parent_text.column} TEXT"]
            tables = [(theme.table, columns), (theme.parent, parent_columns)]
        else:
            tables = [(theme.table, columns)]
        for _, names in tables:
            self._random.shuffle(names)
        self._random.shuffle(tables)
        return "; ".join(
            f"CREATE TABLE {table} (id INTEGER, {', '.join(names)})" for table, names in tables
        )


def rows(split: Split, count: int, seed: int) -> Iterator[dict[str, str]]:
    """Make distinct rows, evenly over skills, forms, themes and (in test) phrasings."""
    random = Random(f"{seed}-{split}")
    draw = Draw(random, split)
    themes = read_themes(split)
    phrasings: tuple[Phrasing, ...] = ("known",) if split == "train" else ("known", "new")
    asked = cycle([(form, phrasing) for form in by_skill() for phrasing in phrasings])
    seen: set[str] = set()
    for form, phrasing in islice(asked, count):
        templates = form.known if phrasing == "known" else form.new
        while True:
            theme = random.choice(themes)
            slots = draw.slots(theme, phrasing)
            question = random.choice(templates).format(**slots)
            if question not in seen:
                break
        seen.add(question)
        yield {
            "context": draw.context(theme, form, slots),
            "question": question[0].upper() + question[1:],
            "answer": form.sql.format(**slots),
            "phrasing": phrasing,
            "skill": form.skill,
        }


def by_skill() -> list[Form]:
    """Order the forms so that any stretch of rows has every skill equally often."""
    skills = {form.skill: cycle([f for f in FORMS if f.skill == form.skill]) for form in FORMS}
    return [next(forms) for _ in range(6) for forms in skills.values()]


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description="Write the example's text-to-SQL rows.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the two files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-rows", type=int, default=TRAIN_ROWS)
    parser.add_argument("--test-rows", type=int, default=TEST_ROWS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    counts: dict[Split, int] = {"train": args.train_rows, "test": args.test_rows}
    for split, count in counts.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows(split, count, args.seed)]
        (args.out / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
