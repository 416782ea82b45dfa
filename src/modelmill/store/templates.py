"""Chat templates: programs that come with a model, checked, compiled and run within limits.

The only place where a template is rendered: what `render` writes is what transformers'
`apply_chat_template` writes, as long as the template is honest.  Knows no tokenizers.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer
from pydantic import JsonValue

from modelmill.store.json_files import objects_in
from modelmill.store.sandbox import FILTERS, Limits, Sandbox

LONGEST_TEMPLATE: Final = 128 * 1024
"""Characters; the longest in use has 20,000."""
DEEPEST_TEMPLATE: Final = 100
"""Nodes above a node."""

_PYTHONS: Final = re.compile(r"__\w+__")
_ENDS: Final = (
    *(TemplateError, ValueError, TypeError, LookupError, ArithmeticError),
    *(AttributeError, AssertionError, SyntaxError),
)
_TRIAL_LIMITS: Final = Limits(steps=100_000, seconds=5.0, characters=2**24)
"""A trial has a message or two."""
_TRIALS: Final = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant"),
)


class TemplateFailed(ValueError):
    """The template ended with an error; the text says which, in a sentence."""


class TemplateUnsafe(TemplateFailed):
    """The template reached for what is none of its business, or for too much."""


class ChatTemplate:
    """A compiled chat template; not to be shared by threads."""

    def __init__(self, source: str) -> None:
        """Compile it.

        Raises:
            TemplateUnsafe: it uses what no template may use.
            TemplateFailed: it is no template.
        """
        if len(source) > LONGEST_TEMPLATE:
            raise TemplateUnsafe(f"it has {len(source):,} characters")
        self._environment = Sandbox()
        with _Words():
            tree = self._environment.parse(source)
            _check_tree(tree)
            code = self._environment.compile(_Metered().visit(tree))
            self._template: Template = Template.from_code(
                self._environment, code, self._environment.make_globals(None)
            )

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        ask: bool = False,
        special_tokens: Mapping[str, object] | None = None,
        limits: Limits = Limits(),  # noqa: B008 - they are frozen
    ) -> str:
        """Write out a conversation; with `ask`, up to where the assistant's next turn begins.

        Args:
            messages: each with a role and a content.
            ask: whether the assistant's turn is to begin.
            special_tokens: `bos_token` and its like, by the names templates know them by.
            limits: what it may take.

        Raises:
            TemplateUnsafe: it ran, grew or reached too far.
            TemplateFailed: it refuses the conversation.
        """
        self._environment.start(limits)
        with _Words():
            pieces = self._template.generate(
                **dict(special_tokens or {}),
                messages=[dict(each) for each in messages],
                tools=None,
                documents=None,
                add_generation_prompt=ask,
            )
            return self._environment.concat(pieces)


def check_template(source: str) -> None:
    """Compile a template and try it on short conversations, whatever it thinks of them.

    Raises:
        TemplateUnsafe: it reached for what is none of its business, or for too much.
        TemplateFailed: it is no template.
    """
    template = ChatTemplate(source)
    tokens = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<t>")
    for roles in _TRIALS:
        messages = [{"role": role, "content": "What is it?"} for role in roles]
        try:
            template.render(
                messages, ask=roles[-1] == "user", special_tokens=tokens, limits=_TRIAL_LIMITS
            )
        except TemplateUnsafe:
            raise
        except TemplateFailed:
            continue  # It may want another order of roles, tools or documents.


def templates_in(document: JsonValue) -> Iterator[tuple[str, str]]:
    """Find every chat template in a document of settings, with its key and, if any, its name.

    Raises:
        TemplateUnsafe: what stands there is not a text, or texts by name.
    """
    for found in objects_in(document):
        for key in found.keys() & {"chat_template", "chat_templates"}:
            yield from ((f"{key}{name}", text) for name, text in _named(key, found[key]))


def _named(key: str, value: JsonValue) -> Iterator[tuple[str, str]]:
    """Take apart the forms in use: a text, texts by name, or a list of names and texts."""
    if isinstance(value, list):
        value = (
            {
                str(each["name"]): each["template"]
                for each in value
                if isinstance(each, dict) and {"name", "template"} <= each.keys()
            }
            if all(isinstance(each, dict) for each in value)
            else 0
        )
    if isinstance(value, str):
        yield "", value
    elif isinstance(value, dict):
        for name, text in value.items():
            if not isinstance(text, str):
                raise TemplateUnsafe(f"its {key} {name!r} is not a text")
            yield f" {name!r}", text
    elif value is not None:
        raise TemplateUnsafe(f"its {key} is neither a text nor texts by name")


def _check_tree(tree: nodes.Template) -> None:
    """Refuse what no honest template uses, in branches that no trial reaches too."""
    level: list[nodes.Node] = [tree]
    for _ in range(DEEPEST_TEMPLATE):
        for node in level:
            _check_node(node)
        level = [child for node in level for child in node.iter_child_nodes()]
        if not level:
            return
    raise TemplateUnsafe("it is nested too deep")


def _check_node(node: nodes.Node) -> None:
    match node:
        case nodes.Include() | nodes.Import() | nodes.FromImport() | nodes.Extends():
            raise TemplateUnsafe("it reads other templates")
        case nodes.For(recursive=True):
            raise TemplateUnsafe("it has a recursive loop")
        case nodes.Filter(name=name) if name not in FILTERS:
            raise TemplateUnsafe(f"it uses the filter {name!r}")
        case nodes.Getattr(attr=name) if name.startswith("_"):
            raise TemplateUnsafe(f"it reaches for {name!r}, which is Python's own")
        case nodes.Const(value=str(text)) if found := _PYTHONS.search(text):
            raise TemplateUnsafe(f"it reaches for {found.group()!r}, which is Python's own")
        case nodes.Keyword(key=name) | nodes.Name(name=name) if _PYTHONS.search(name):
            raise TemplateUnsafe(f"it reaches for {name!r}, which is Python's own")


class _Words:
    """Turns whatever a template can end with into words."""

    def __enter__(self) -> None:
        """Do nothing yet."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise an error of ours in the place of any other."""
        if error is None or isinstance(error, TemplateFailed):
            return
        said = " ".join(str(error).split())
        if isinstance(error, SecurityError):
            raise TemplateUnsafe(said) from error
        if isinstance(error, MemoryError | RecursionError | OverflowError):
            raise TemplateUnsafe("it is nested or repeated too often") from error
        if isinstance(error, _ENDS):
            raise TemplateFailed(said or type(error).__name__) from error


class _Metered(NodeTransformer):
    """Sends everything that can repeat or grow through the sandbox's meters."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja's way to visit
        """Count the rounds of a loop."""
        self.generic_visit(node)
        node.iter = _through("rounds", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """Measure a text before it is joined."""
        self.generic_visit(node)
        return _through("joined", *node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        """Measure a list that is made of other values."""
        return self._measured(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        """Measure a tuple, unless it names variables."""
        return self._measured(node, node.items if node.ctx == "load" else [])

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        """Measure a dictionary that is made of other values."""
        return self._measured(node, [each.value for each in node.items])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        """Measure a slice, which is a copy."""
        self.generic_visit(node)
        return _through("measured", node) if isinstance(node.arg, nodes.Slice) else node

    def _measured(self, node: nodes.Literal, parts: Iterable[nodes.Node]) -> nodes.Node:
        made_of_others = any(not isinstance(each, nodes.Const) for each in parts)
        self.generic_visit(node)
        return _through("measured", node) if made_of_others else node


def _through(meter: str, *values: nodes.Node) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(meter), list(values), [], None, None)
