"""Complete names in a shell, and print what sets that up: completion.

Whoever presses Tab wants an answer now or none, so names come from `conduct/glance.py`, which
starts nothing and says nothing.
"""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import CompletionItem, get_completion_class

if TYPE_CHECKING:
    from modelmill.conduct.glance import Glance

SHELLS: Final = ("bash", "zsh", "fish")

PATIENCE_VARIABLE: Final = "MODELMILL_COMPLETION_SECONDS"

SHORT_KEY: Final = 12
"""Characters of a key, as `artifacts ls` shows them."""

Items = list[CompletionItem[str]]


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script by which SHELL completes commands, runs, stages, artifacts and keys.

    Bash and zsh read it at the start: eval "$(modelmill completion bash)" in ~/.bashrc, or
    eval "$(modelmill completion zsh)" in ~/.zshrc.  For fish: modelmill completion fish >
    ~/.config/fish/completions/modelmill.fish

    Names come from the store, if it answers within two seconds; where it is far away, allow it
    more in MODELMILL_COMPLETION_SECONDS.  The embedded store is asked while it runs.
    """
    root = click.get_current_context().find_root()
    completer = get_completion_class(shell)
    assert completer is not None
    script = completer(root.command, {}, "modelmill", "_MODELMILL_COMPLETE").source()
    click.echo(script, nl=False)


def complete_run(context: click.Context, _: click.Parameter, incomplete: str) -> Items:
    """Complete the name of a run."""
    return _items(_glance(context).runs(), incomplete)


def complete_stage(context: click.Context, _: click.Parameter, incomplete: str) -> Items:
    """Complete the name of a stage of the run that is named already."""
    # After an option that waits for its value click leaves arguments unnamed.
    run = context.params.get("run") or next(iter(context.args), None)
    return _items(_glance(context).stages(run), incomplete) if run else []


def complete_model(context: click.Context, _: click.Parameter, incomplete: str) -> Items:
    """Complete the name of a model that the run has made."""
    run = context.params.get("run") or next(iter(context.args), None)
    return _items(_glance(context).models(run), incomplete) if run else []


def complete_artifact(context: click.Context, _: click.Parameter, incomplete: str) -> Items:
    """Complete the key of an artifact, as far as it is shown elsewhere."""
    return [
        CompletionItem(key if len(incomplete) > SHORT_KEY else key[:SHORT_KEY], help=kind)
        for kind, key in _glance(context).artifacts()
        if key.startswith(incomplete)
    ]


def complete_explained(_: click.Context, __: click.Parameter, incomplete: str) -> Items:
    """Complete a section, or a key below one."""
    from modelmill.spec.explain import key_names

    depth = incomplete.count(".")
    return _items((name for name in key_names() if name.count(".") <= depth), incomplete)


def _glance(context: click.Context) -> "Glance":
    from modelmill.conduct.glance import PATIENCE_SECONDS, Glance

    home, url = context.params["home"], context.params["store_url"]
    try:
        patience_seconds = float(os.environ.get(PATIENCE_VARIABLE, PATIENCE_SECONDS))
    except ValueError:
        patience_seconds = PATIENCE_SECONDS
    return Glance(home, url, patience_seconds)


def _items(names: Iterable[str], incomplete: str) -> Items:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
