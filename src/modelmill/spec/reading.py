"""Read YAML 1.2 into plain data with the line of every key, whoever wrote it.

A file of a few lines can unfold into gigabytes, and one of brackets can end an interpreter:
every limit is checked on what the text would become, before it becomes that.  Knows nothing
about what keys mean.
"""

from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from pydantic import JsonValue
from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from modelmill.spec.errors import Problem, SpecError
from modelmill.spec.redaction import KeyPath

SIZE_LIMIT_BYTES: Final = 65_536
"""What fits a ConfigMap with room to spare; data goes by reference."""

DEPTH_LIMIT: Final = 32
"""A run needs five levels, a Job twelve; an interpreter gives up at some hundreds."""

SCALAR_LIMIT_CHARACTERS: Final = 16_384
"""One value: a prompt with many examples fits, a file put into a string does not."""

NODE_LIMIT: Final = 20_000
"""Aliases count each time they are used, so a few lines cannot unfold into gigabytes."""

TEXT_LIMIT_CHARACTERS: Final = 262_144
"""All values together, aliases counted each time."""

Lines: TypeAlias = Mapping[KeyPath, int]


def check_size(size_bytes: int, source: str) -> None:
    """Refuse a document that is too large to be a run or a profile.

    Raises:
        SpecError: it is.
    """
    if size_bytes > SIZE_LIMIT_BYTES:
        reason = f"larger than {SIZE_LIMIT_BYTES // 1024} KiB; refer to data, do not embed it"
        raise SpecError(source, [Problem("", reason)])


def parse_yaml(text: str, source: str) -> tuple[JsonValue, Lines]:
    """Parse YAML 1.2 and remember the line of every key.

    Raises:
        SpecError: not YAML, a key twice, too deep, or too large once aliases are followed.
    """
    check_size(len(text.encode()), source)
    yaml = YAML(typ="safe", pure=True)
    try:
        _check_depth(yaml, text)
        node = yaml.compose(text)
        lines = dict(_Unfolded().lines(node, ())) if node is not None else {}
        return yaml.load(text), lines
    except _LimitError as error:
        raise SpecError(source, [Problem("", error.reason, line=error.line)]) from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        reason = " ".join((error.problem or "not YAML").split())
        hint = "a document holds data, never code" if isinstance(error, ConstructorError) else ""
        raise SpecError(source, [Problem("", reason, line=line, suggestion=hint)]) from None
    except (YAMLError, ValueError) as error:
        # After the semicolon Python tells programmers how to allow longer numbers.
        reason = " ".join(str(error).partition(";")[0].split())
        raise SpecError(source, [Problem("", reason)]) from None


class _LimitError(Exception):
    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def _check_depth(yaml: YAML, text: str) -> None:
    """Count brackets and indentation as they come: everything after this is recursive."""
    depth = 0
    for event in yaml.parse(text):
        if isinstance(event, CollectionStartEvent):
            depth += 1
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        if depth > DEPTH_LIMIT:
            raise _LimitError(f"nested deeper than {DEPTH_LIMIT} levels", event.start_mark.line + 1)


class _Unfolded:
    """Walks a document as it is once aliases are followed, and counts what that comes to."""

    def __init__(self) -> None:
        self._nodes = 0
        self._characters = 0

    def lines(self, node: Node, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
        """Yield every key and item with its line."""
        self._count(node, len(path))
        yield path, node.start_mark.line + 1
        if isinstance(node, MappingNode):
            for key, value in node.value:
                self._count(key, len(path))
                if not isinstance(key, ScalarNode):
                    raise _LimitError("a key must be a text", key.start_mark.line + 1)
                here = (*path, str(key.value))
                yield from self.lines(value, here)
                yield here, key.start_mark.line + 1
        elif isinstance(node, SequenceNode):
            for index, value in enumerate(node.value):
                yield from self.lines(value, (*path, index))

    def _count(self, node: Node, depth: int) -> None:
        line = node.start_mark.line + 1
        characters = len(node.value) if isinstance(node, ScalarNode) else 0
        self._nodes += 1
        self._characters += characters
        if characters > SCALAR_LIMIT_CHARACTERS:
            reason = f"a value of {characters} characters; at most {SCALAR_LIMIT_CHARACTERS}"
            raise _LimitError(f"{reason}: refer to data, do not embed it", line)
        if depth > DEPTH_LIMIT:
            reason = f"nested deeper than {DEPTH_LIMIT} levels once aliases are followed"
            raise _LimitError(reason, line)
        if self._nodes > NODE_LIMIT:
            raise _LimitError(f"more than {NODE_LIMIT} values once aliases are followed", line)
        if self._characters > TEXT_LIMIT_CHARACTERS:
            reason = f"more than {TEXT_LIMIT_CHARACTERS} characters once aliases are followed"
            raise _LimitError(reason, line)
