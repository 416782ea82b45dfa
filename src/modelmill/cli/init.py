"""The command that begins: init, which writes a run file to change."""

import shlex
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from modelmill.spec.errors import InputMissing, PermissionRefused, WouldBeLost

if TYPE_CHECKING:
    from modelmill.spec.run import RunSpec

TEMPLATES: Final = ("text-to-sql", "chat", "classification-by-text", "quantize-only")
"""Files in the folder `templates` beside this module."""


@click.command()
@click.argument(
    "template", type=click.Choice(TEMPLATES), default=TEMPLATES[0], metavar="[TEMPLATE]"
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), default=Path("run.yaml"))
def init(template: str, file: Path) -> None:
    """Write a run to change into FILE (run.yaml when absent), with what every line costs or means.

    TEMPLATE is text-to-sql (when absent), chat, classification-by-text or quantize-only.
    """
    write_template(template, file)
    name = shlex.quote(str(file))
    click.echo(
        f"{file}: a run of the kind '{template}'.  Put your model, data and fields into it, then:\n"
        f"modelmill validate {name}\n"
        f"modelmill run {name}",
        err=True,
    )


def template_text(template: str) -> str:
    """Read a template that ships with the package."""
    folder = files("modelmill.cli") / "templates"
    return (folder / f"{template}.yaml").read_text(encoding="utf-8")


def write_template(template: str, file: Path) -> None:
    """Write a template to a file that is not there yet.

    Raises:
        WouldBeLost: the file is there.
        InputMissing: its folder is not.
        PermissionRefused: it cannot be written there.
    """
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(template_text(template))
    except FileExistsError:
        other = file.with_name(f"{template}.yaml")
        another = other if not other.exists() else file.with_name(f"my-{template}.yaml")
        raise WouldBeLost(
            "There is such a file already, and it stays as it is",
            at=str(file),
            fix=f"name another one: {shlex.join(['modelmill', 'init', template, str(another)])}; "
            f"or remove it first: {shlex.join(['rm', str(file)])}",
        ) from None
    except FileNotFoundError:
        raise InputMissing(
            "There is no such folder", at=str(file.parent), fix=f"mkdir -p {file.parent}"
        ) from None
    except OSError as error:
        raise PermissionRefused(
            f"The file cannot be written ({error.strerror})", at=str(file), fix="name another one"
        ) from None


def example_runs() -> "tuple[RunSpec, ...]":
    """Read the templates as runs in which `explain` tries what another value changes."""
    from modelmill.spec.loading import parse_run
    from modelmill.spec.reading import parse_yaml

    return tuple(parse_run(parse_yaml(template_text(name), name)[0], name) for name in TEMPLATES)
