"""Templates do what honest ones do, and nothing runs, grows or reaches out for ever."""

import pytest

from modelmill.store.sandbox import LONGEST_TEXT, Limits
from modelmill.store.templates import (
    LONGEST_TEMPLATE,
    ChatTemplate,
    TemplateFailed,
    TemplateUnsafe,
    check_template,
    templates_in,
)

from .published import CHAT, TOKENS, published_templates

PUBLISHED = published_templates()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_template_passes(name: str) -> None:
    """What the families really publish is no attack."""
    check_template(PUBLISHED[name])


GROWING = {
    "loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "range": "{{ range(10**9) }}",
    "text": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}",
    "sum": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}"
    "{% endfor %}",
    "list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}"
    "{% endfor %}",
    "nested list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "nested dictionary": "{% set n = namespace(x={}) %}{% for i in range(60) %}"
    "{% set n.x = {'a': n.x, 'b': n.x} %}{% endfor %}{{ n.x|tojson }}",
    "number": "{% set n = namespace(x=2) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}"
    "{% endfor %}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "product": "{{ 'x' * 10**10 }}",
    "list product": "{{ [1] * 10**10 }}",
    "replace": "{{ ('a' * 9999).replace('a', 'b' * 9999999) }}",
    "replace filter": "{{ ('a' * 9999)|replace('a', 'b' * 9999999) }}",
    "join": "{{ ('x' * 9999999).join(['a'] * 9999) }}",
    "join filter": "{{ range(9999)|join('x' * 9999999) }}",
    "indent": "{{ 'a'|indent(10**9) }}",
    "tojson": "{{ [1]|tojson(indent=10**9) }}",
    "block": "{% set x %}{% for i in range(9999) %}{{ 'x' * 99999 }}{% endfor %}{% endset %}",
    "output": "{% for i in range(9999) %}{{ 'x' * 99999 }}{% endfor %}",
    "variables": "".join(f"{{% set a{n} = 'x' * 6000000{n} %}}" for n in range(9)),
    "slices": "{% set a = 'x' * 9999999 %}"
    + "".join(f"{{% set a{n} = a[{n}:] %}}" for n in range(99)),
    "lists": "".join(f"{{% set a{n} = range(99999)|list %}}" for n in range(999)),
    "format": "{{ '%999999999d' % 1 }}",
    "date": "{{ strftime_now('%Y' * 99999) }}",
}


@pytest.mark.parametrize("name", GROWING)
def test_template_that_grows_is_ended(name: str) -> None:
    """Each way to run or to grow without end is cut short, in a trial as in a rendering."""
    with pytest.raises(TemplateUnsafe):
        check_template(GROWING[name])
    with pytest.raises(TemplateUnsafe):
        ChatTemplate(GROWING[name]).render(CHAT, limits=Limits(steps=10_000, seconds=60.0))


def test_template_that_takes_too_long_is_ended() -> None:
    """Steps that are few but slow are stopped by the clock."""
    slow = "{% for i in range(9999) %}{{ range(99999)|list|length }}{% endfor %}"
    with pytest.raises(TemplateUnsafe, match="too long"):
        ChatTemplate(slow).render(CHAT, limits=Limits(steps=10**9, seconds=0.2))


def test_template_may_be_rendered_often() -> None:
    """Every rendering has all of its steps."""
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    for _ in range(100):
        assert template.render(CHAT[3:], limits=Limits(steps=10)) == "and?"


def test_long_conversation_is_no_attack() -> None:
    """A thousand turns of a thousand words are written out."""
    template = ChatTemplate(PUBLISHED["qwen3.jinja"])
    turn = "word " * 1000
    messages = [{"role": ("user", "assistant")[n % 2], "content": turn} for n in range(1000)]
    assert 5_000_000 < len(template.render(messages, special_tokens=TOKENS)) < LONGEST_TEXT


REACHING = {
    "class": "{{ ''.__class__ }}",
    "class by name": "{{ ''['__cla' ~ 'ss__'] }}",
    "class by filter": "{{ ''|attr('__class__') }}",
    "class by map": "{{ ['']|map(attribute='__cla' ~ 'ss__')|list }}",
    "globals": "{{ raise_exception['__glo' ~ 'bals__'] }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "lipsum": "{{ lipsum.__globals__ }}",
    "self": "{{ self._TemplateReference__context }}",
    "namespace": "{% set n = namespace(**{'__cla' ~ 'ss__': 1}) %}",
    "namespace later": "{% set n = namespace() %}{% set n._x = 1 %}",
    "change": "{{ messages.append({}) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'x' as x %}",
    "extends": "{% extends 'x' %}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}",
    "where no trial goes": "{% if messages|length > 99 %}{{ ().__class__ }}{% endif %}",
}


@pytest.mark.parametrize("name", REACHING)
def test_template_that_reaches_out_is_refused(name: str) -> None:
    """Each known way to Python's internals ends before it gets there."""
    with pytest.raises(TemplateUnsafe):
        check_template(REACHING[name])


@pytest.mark.parametrize("source", ["{% if %}", "{{ 'a", "{% endfor %}", "{{ a | no_such }}"])
def test_text_that_is_no_template(source: str) -> None:
    """It is refused in Jinja's own words, whatever kind of wrong it is."""
    with pytest.raises(TemplateFailed):
        check_template(source)


def test_template_as_long_as_allowed() -> None:
    """The limit is on what a model may bring, and far above what models bring."""
    check_template("x" * LONGEST_TEMPLATE)
    with pytest.raises(TemplateUnsafe, match="characters"):
        check_template("x" * (LONGEST_TEMPLATE + 1))
    assert max(map(len, PUBLISHED.values())) < LONGEST_TEMPLATE / 4


def test_templates_are_found_wherever_they_stand() -> None:
    """A text, texts by name, lists of names and texts, at any depth; null is none."""
    document = {
        "chat_template": "a",
        "processor": [{"chat_template": {"default": "b", "tools": "c"}}, {"chat_template": None}],
        "tokenizer": {"chat_template": [{"name": "rag", "template": "d"}]},
    }
    assert sorted(text for _, text in templates_in(document)) == ["a", "b", "c", "d"]
    for wrong in (1, ["a"], [{"name": "a"}, "b"], {"a": 1}, True):
        with pytest.raises(TemplateUnsafe):
            list(templates_in({"chat_template": wrong}))
