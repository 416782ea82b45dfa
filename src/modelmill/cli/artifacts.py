"""Commands about artifacts: ls, get, verify, rm."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelmill.cli.completing import complete_artifact
from modelmill.cli.options import output_option, store_options, store_words

if TYPE_CHECKING:
    from modelmill.conduct.removing import Removal


@click.group()
def artifacts() -> None:
    """List, fetch, verify and remove what stages have committed."""


@artifacts.command("ls")
@store_options
@output_option
def list_(home: Path, store_url: str | None, output: str) -> None:
    """List every committed artifact."""
    from modelmill.cli.show import bytes_text, print_table
    from modelmill.conduct.place import opened
    from modelmill.conduct.standing import artifact_rows

    with opened(home, store_url) as place:
        rows = sorted(artifact_rows(place.store), key=lambda row: row.created)
    if output == "json":
        click.echo(json.dumps([row.model_dump() for row in rows], indent=2))
        return
    print_table(
        ("key", "stage", "run", "created", "files", "size"),
        [
            (
                row.key[:12],
                row.stage,
                row.run,
                row.created[:19],
                str(row.files),
                bytes_text(row.size_bytes),
            )
            for row in rows
        ],
        numbers_from=4,
    )


@artifacts.command()
@click.argument("key", shell_complete=complete_artifact)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@store_options
def get(key: str, folder: Path, home: Path, store_url: str | None) -> None:
    """Download the artifact whose key begins with KEY into FOLDER, checking every byte.

    Interrupted, the same command goes on where it was.
    """
    from modelmill.conduct.getting import get_artifact
    from modelmill.conduct.place import opened

    with opened(home, store_url) as place:
        paths = get_artifact(place.store, key, folder)
    for path in paths:
        click.echo(str(path))


@artifacts.command()
@click.argument("key", shell_complete=complete_artifact)
@store_options
@output_option
def verify(key: str, home: Path, store_url: str | None, output: str) -> None:
    """Read every byte of the artifact whose key begins with KEY again, and check its lineage."""
    from modelmill.conduct.lookup import find_artifact
    from modelmill.conduct.place import opened
    from modelmill.conduct.standing import verify_artifact
    from modelmill.spec.errors import DigestMismatch

    with opened(home, store_url) as place:
        committed = find_artifact(place.store, key)
        problems = verify_artifact(place.store, committed)
    if output == "json":
        click.echo(json.dumps({"key": committed.manifest.key, "problems": problems}, indent=2))
    for problem in problems if output != "json" else ():
        click.echo(problem)
    if problems:
        sys.exit(DigestMismatch.exit_code)
    click.echo(
        f"{committed.manifest.stage}: {len(committed.manifest.files)} files are good", err=True
    )


@artifacts.command()
@click.argument("key", shell_complete=complete_artifact)
@click.option("--yes", "is_agreed", is_flag=True, help="Remove it; else only show what would go.")
@store_options
@output_option
def rm(key: str, is_agreed: bool, home: Path, store_url: str | None, output: str) -> None:
    """Remove the artifact whose key begins with KEY, and everything that was made from it."""
    from modelmill.conduct.place import opened
    from modelmill.conduct.removing import plan_removal, remove_artifacts

    with opened(home, store_url) as place:
        removal = plan_removal(place.store, key)
        if is_agreed:
            removal = remove_artifacts(place.store, removal)
    _print_removal(removal, key, output)


def _print_removal(removal: "Removal", key: str, output: str) -> None:
    from modelmill.cli.show import bytes_text, print_table

    if output == "json":
        click.echo(removal.model_dump_json(indent=2))
        return
    print_table(
        ("key", "stage", "made by", "used in", "files", "size"),
        [
            (
                row.key[:12],
                row.stage,
                row.run,
                ", ".join(row.used_in),
                str(row.files),
                bytes_text(row.size_bytes),
            )
            for row in removal.artifacts
        ],
        numbers_from=4,
    )
    amount = f"{len(removal.artifacts)} artifacts, {bytes_text(removal.size_bytes)}"
    if removal.is_done:
        click.echo(f"{amount}: removed", err=True)
        return
    for need in removal.needed_by:
        click.echo(f"In the way: run '{need.run}' {need.reason}", err=True)
    command = shlex.join(["modelmill", "artifacts", "rm", key, *store_words(), "--yes"])
    click.echo(f"{amount}: nothing is removed yet; to remove it: {command}", err=True)
