"""What a chat template runs in: Jinja's sandbox, with transformers' words and with meters.

Jinja's immutable sandbox keeps a template from Python's internals.  What is added here keeps it
from running or growing without end, as a loop over `range(10**9)` or a text that is doubled
sixty times would: every single step is kept small, and the steps are counted and timed.
"""

# ruff: noqa: ANN401 - a template computes with anything

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any, Final, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

LONGEST_TEXT: Final = 2**26
"""Characters of one value; a row of data has at most 2**24 bytes."""
MOST_ITEMS: Final = 2**18
"""Of one value, each as often as it is referred to."""
ITEM_CHARACTERS: Final = 16
"""Counted for an item of a list or a dictionary."""
LARGEST_NUMBER_BITS: Final = 256
WIDEST_INDENT: Final = 64

TEXT_METHODS: Final = frozenset(
    {
        *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha"),
        *("isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join"),
        *("lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind"),
        *("rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith"),
        *("strip", "swapcase", "title", "upper"),
    }
)
"""Without those that pad to any width (`center`, `zfill`) or have a language of their own
(`format`, `translate`)."""

FILTERS: Final = frozenset(
    {
        *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first"),
        *("float", "groupby", "indent", "int", "items", "join", "last", "length", "list"),
        *("lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round"),
        *("safe", "select", "selectattr", "sort", "string", "sum", "title", "tojson", "trim"),
        *("truncate", "unique", "upper", "wordcount"),
    }
)
"""Without those that pad, format, reach for attributes by name or roll dice."""

_TOO_LARGE: Final = "it builds something too large"
_WIDE_FORMAT: Final = re.compile(r"%[-+ #0]*[\d*.]")


@dataclass(frozen=True)
class Limits:
    """What one rendering may take."""

    steps: int = 2_000_000
    """Loop rounds, calls and sums; long conversations take thousands."""
    seconds: float = 20.0
    """Ordinary renderings take milliseconds."""
    characters: int = 2**28
    """Of all texts that are built on the way, and not only of the last."""


class _Generation(Extension):
    """Reads `{% generation %}`, with which templates mark what a model learns; changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Take the statements between the tags as they are."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A block of its own, as in transformers: what is assigned inside does not leave it.
        return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Callable[[], str]) -> str:
        return caller()


class _Names(Namespace):
    """A template's namespace, whose names are not Python's."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        """Take the first names."""
        own, *given = args
        for name in dict(*given, **kwargs):
            _check_name(name)
        Namespace.__init__(own, *given, **kwargs)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        msg = f"a name like {name!r} is Python's own"
        raise SecurityError(msg)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template; `start` it before every rendering."""

    intercepted_binops = frozenset({"+", "-", "*", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # Constants are not to be computed while nothing is measured.
            extensions=[_Generation, loopcontrols],
        )
        filters = {**self.filters, "tojson": _to_json}
        self.filters = {name: self._spared(filters[name]) for name in FILTERS}
        self.globals = {
            "range": self.globals["range"],
            "dict": _dict,
            "namespace": _Names,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self.start()

    def start(self, limits: Limits = Limits()) -> None:
        """Count anew, up to limits."""
        self._steps_left = limits.steps
        self._characters_left = limits.characters
        self._ends = time.monotonic() + limits.seconds

    def step(self) -> None:
        """Count a round, a call or a sum."""
        self._steps_left -= 1
        if self._steps_left < 0 or time.monotonic() > self._ends:
            raise SecurityError("it runs too long")

    def built(self, value: Any) -> Any:
        """Count a value that was made, and return it."""
        if isinstance(value, str):
            self._characters_left -= len(value)
        elif isinstance(value, list | tuple | dict):
            self._characters_left -= ITEM_CHARACTERS * len(value)
        if self._characters_left < 0:
            raise SecurityError(_TOO_LARGE)
        return value

    def rounds(self, values: Iterable[object]) -> Iterator[object]:
        """Hand out the values of a loop."""
        for value in values:
            self.step()
            yield value

    def joined(self, *values: object) -> str:
        """Join texts, as `~` does."""
        return self.concat([str(self.measured(value)) for value in values])

    def measured(self, value: object) -> Any:
        """Return a value unless it is larger than any honest one, seen through references."""
        _check_value(value)
        return self.built(value)

    def concat(self, pieces: Iterable[str]) -> str:
        """Join pieces of text, unless they are too many."""
        kept, size = [], 0
        for piece in pieces:
            size += len(piece)
            _check_length(size)
            kept.append(piece)
        return str(self.built("".join(kept)))

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls."""
        self.step()
        owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if isinstance(owner, str):
            if name == "join" and args:
                args = (_joinable(args[0], owner), *args[1:])
            elif name == "replace":
                _check_replace(owner, *args)
        return self.built(super().call(context, called, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute, unless the result is larger than any honest one."""
        self.step()
        if operator == "*":
            _check_product(left, right)
        elif operator == "%" and isinstance(left, str) and _WIDE_FORMAT.search(left):
            raise SecurityError("it pads a text")
        elif operator == "**" and not (abs(right) <= LARGEST_NUMBER_BITS and abs(left) <= 2**16):
            raise SecurityError("it raises to a high power")
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            _check_length(len(left) + len(right))
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > LARGEST_NUMBER_BITS:
            raise SecurityError("it computes with huge numbers")
        return self.built(result) if isinstance(result, str) else self.measured(result)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow a text only the methods that take and give about as much as it has."""
        if isinstance(obj, str) and attr not in TEXT_METHODS:
            return False
        if isinstance(obj, bytes | int | float):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """End a template that reaches for Python's internals; others get an undefined value."""
        if str(attribute).startswith("_"):
            msg = f"it reaches for {attribute!r}, which is Python's own"
            raise SecurityError(msg)
        return super().unsafe_undefined(obj, attribute)

    def _spared(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """Check what a filter is asked for before it does it."""
        name = plain.__name__

        @wraps(plain)
        def run(*args: Any, **kwargs: Any) -> Any:
            # Filters that Jinja hands an environment or a context have it as their first argument.
            start = 1 if hasattr(plain, "jinja_pass_arg") else 0
            given = list(args)
            if name == "do_replace":
                _check_replace(*given[start:])
            elif name == "do_join":
                between = given[start + 1] if len(given) > start + 1 else kwargs.get("d", "")
                given[start] = _joinable(given[start], between)
            elif name == "do_indent":
                _check_indent(
                    given[start + 1] if len(given) > start + 1 else kwargs.get("width", 4)
                )
            return self.built(plain(*given, **kwargs))

        return run

    def wrap_str_format(self, value: object) -> None:
        """Give `format` no treatment of its own: it is not among the methods of a text."""


def _check_value(value: object) -> None:
    """Refuse what would fill the memory if it were written out."""
    items = characters = 0
    left = [value]
    while left:
        each = left.pop()
        items += 1
        if isinstance(each, str):
            characters += len(each)
        elif isinstance(each, Mapping):
            left += each.keys()
            left += each.values()
        elif isinstance(each, list | tuple):
            left += each
        if items > MOST_ITEMS or characters > LONGEST_TEXT:
            raise SecurityError(_TOO_LARGE)


def _check_length(characters: int) -> None:
    if characters > LONGEST_TEXT:
        raise SecurityError(_TOO_LARGE)


def _check_product(left: object, right: object) -> None:
    for value, count in ((left, right), (right, left)):
        if isinstance(value, str) and isinstance(count, int):
            _check_length(len(value) * count)
        elif isinstance(value, list | tuple) and isinstance(count, int):
            _check_length(len(value) * count * (LONGEST_TEXT // MOST_ITEMS))


def _check_replace(text: object, old: object = "", new: object = "", *_: object) -> None:
    text, old, new = str(text), str(old), str(new)
    times = text.count(old)
    _check_length(len(text) + times * max(len(new) - len(old), 0))


def _joinable(values: Iterable[object], between: object) -> list[object]:
    kept = list(values)
    size = sum(len(each) if isinstance(each, str) else 1 for each in kept)
    _check_length(size + len(kept) * len(str(between)))
    return kept


def _check_indent(width: object) -> None:
    if (len(width) if isinstance(width, str) else int(str(width or 0))) > WIDEST_INDENT:
        raise SecurityError("it indents by more than a page")


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    for width in (indent, *(separators or ())):
        _check_indent(width)
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > WIDEST_INDENT:
        raise SecurityError("it asks for an endless date")
    return datetime.now().strftime(form)  # noqa: DTZ005 - templates write the local date
