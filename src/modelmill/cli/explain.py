"""The command that says what a key or an exit code means: explain."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from modelmill.cli.completing import complete_explained
from modelmill.cli.options import output_option

if TYPE_CHECKING:
    from modelmill.spec.explain import ExplainedKey

LARGEST_CODE: Final = 255
"""A process has one byte to say how it ended."""

SHOWN_DIGITS: Final = 20

COLUMNS: Final = ("key", "type", "default", "meaning")


@click.command()
@click.argument("what", metavar="KEY|CODE", shell_complete=complete_explained)
@output_option
def explain(what: str, output: str) -> None:
    """Say what a KEY of a run or profile, or an exit CODE, means and what follows from it.

    A key is written with dots, such as finetune.r, quantize.gptq.bits or stages.finetune.memory;
    a section, such as data, lists its keys.
    """
    if what.isdecimal():
        _print_ends(what, output)
    else:
        _print_keys(what, output)


def _print_ends(digits: str, output: str) -> None:
    from modelmill.cli.codes import ends_of
    from modelmill.cli.show import print_record
    from modelmill.spec.errors import Problem, SpecError

    # Of thousands of digits Python makes no number.
    if len(digits) > len(str(LARGEST_CODE)) or int(digits) > LARGEST_CODE:
        reason = f"there is no such exit code: they end at {LARGEST_CODE}"
        raise SpecError(f"explain {digits[:SHOWN_DIGITS]}", [Problem("", reason)])
    code = int(digits)
    ends = ends_of(code)
    if output == "json":
        click.echo(json.dumps([asdict(end) for end in ends], indent=2))
        return
    for index, end in enumerate(ends):
        if index:
            click.echo()
        print_record(
            (
                ("code", str(end.code)),
                ("of", end.of),
                ("name", end.name),
                ("meaning", end.meaning),
                ("another attempt", end.retry),
                ("what to do", end.advice),
            )
        )


def _print_keys(what: str, output: str) -> None:
    from modelmill.cli.init import example_runs
    from modelmill.cli.show import print_record, print_table
    from modelmill.spec.explain import explain_key

    explained = explain_key(what, example_runs())
    if output == "json":
        click.echo(explained.model_dump_json(indent=2))
        return
    if len(explained.keys) == 1:
        key = explained.keys[0]
        pairs = zip(COLUMNS, _cells_of(key), strict=True)
        print_record([*pairs, ("computed anew", _anew_words(key)), ("stands in", key.document)])
        return
    if explained.about:
        click.echo(f"{explained.about}\n")
    print_table(COLUMNS, [_cells_of(key) for key in explained.keys])
    click.echo("\nWhat another value makes anew: modelmill explain KEY", err=True)


def _cells_of(key: "ExplainedKey") -> tuple[str, ...]:
    name = f"{key.key} ({key.form})" if key.form else key.key
    return name, key.type, key.default, key.meaning


def _anew_words(key: "ExplainedKey") -> str:
    """Say what another value costs."""
    if key.anew is None:
        return "never by itself: it has one value, or changes together with other keys"
    if not key.anew:
        return "nothing: it says where and with how much, never what"
    *stages, report = key.anew
    return ", ".join([*stages, report]) if stages else f"{report} only"
